"""LR, SC and the AMOs (Unprivileged ISA, chapter 8) on one hart.

The reservation is an address and the value that was loaded, as in QEMU: an SC succeeds when both are still the same.
A trap and a return from one drop it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from minivmm.emulator.decoder import Decoded
from minivmm.emulator.semantics import ATOMICS, SIGNED_ATOMICS, Operation
from minivmm.emulator.traps import Access, CodeChanged

if TYPE_CHECKING:
    from collections.abc import Callable

    from minivmm.emulator.hart import Hart
    from minivmm.emulator.mmu import Regime

_M64 = (1 << 64) - 1


class Atomics:
    """The atomic instructions of one hart, and its reservation."""

    def __init__(self, hart: Hart) -> None:
        self._hart = hart
        self.reserved: tuple[int, int, int] | None = None
        """LR's reservation: offset in RAM, size and value."""

    @property
    def reservation(self) -> int:
        """The offset in RAM that is reserved; -1 for none."""
        return -1 if self.reserved is None else self.reserved[0]

    def drop_reservation(self) -> None:
        """No SC succeeds before the next LR."""
        self.reserved = None

    def operation(self, regime: Regime, decoded: Decoded) -> Operation:
        """The function that executes this instruction."""
        name, _, width = decoded.name.partition(".")
        size = 4 if width == "w" else 8
        if name == "lr":
            return partial(self._load_reserved, regime, decoded, size)
        if name == "sc":
            return partial(self._store_conditional, regime, decoded, size)
        return partial(self._modify, regime, decoded, size, ATOMICS[name], name in SIGNED_ATOMICS)

    def _deliver(self, rd: int, value: int, size: int) -> None:
        """x[rd] becomes a value from memory, sign-extended."""
        if rd:
            sign = 1 << 8 * size - 1
            self._hart.x[rd] = (value ^ sign) - sign & _M64

    def _element(self, offset: int, size: int) -> int:
        space = self._hart.space
        return space.ram64[offset >> 3] if size == 8 else space.ram32[offset >> 2]

    def _put(self, offset: int, size: int, value: int) -> bool:
        """Stores; True when that overwrote decoded instructions."""
        space = self._hart.space
        if size == 8:
            space.ram64[offset >> 3] = value & _M64
        else:
            space.ram32[offset >> 2] = value & 0xFFFF_FFFF
        return self._hart.code.note_store(offset, size)

    def _load_reserved(self, regime: Regime, decoded: Decoded, size: int) -> None:
        offset = self._hart.mmu.atomic_offset(regime, self._hart.x[decoded.rs1], size, Access.LOAD)
        value = self._element(offset, size)
        self.reserved = (offset, size, value)
        self._deliver(decoded.rd, value, size)

    def _store_conditional(self, regime: Regime, decoded: Decoded, size: int) -> None:
        """The store's permissions are checked whether or not it succeeds, as the manual leaves open."""
        hart = self._hart
        offset = hart.mmu.atomic_offset(regime, hart.x[decoded.rs1], size, Access.STORE)
        reserved, self.reserved = self.reserved, None
        succeeds = reserved == (offset, size, self._element(offset, size))
        changed = succeeds and self._put(offset, size, hart.x[decoded.rs2])
        if decoded.rd:
            hart.x[decoded.rd] = int(not succeeds)
        if changed:
            raise CodeChanged

    def _modify(
        self, regime: Regime, decoded: Decoded, size: int, operation: Callable[[int, int], int], signed: bool
    ) -> None:
        hart = self._hart
        offset = hart.mmu.atomic_offset(regime, hart.x[decoded.rs1], size, Access.STORE)
        old = self._element(offset, size)
        operand = hart.x[decoded.rs2] & (1 << 8 * size) - 1
        if signed:
            sign = 1 << 8 * size - 1
            changed = self._put(offset, size, operation((old ^ sign) - sign, (operand ^ sign) - sign))
        else:
            changed = self._put(offset, size, operation(old, operand))
        self._deliver(decoded.rd, old, size)
        if changed:
            raise CodeChanged
