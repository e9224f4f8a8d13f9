"""A domain's virtual addresses, as hypercalls name them: copied once, and only where the domain itself may go."""

from __future__ import annotations

import errno
from typing import Any, TypeVar

from minivmm.errors import GuestMemoryError
from minivmm.layout import Layout
from minivmm.memory import PAGE_SIZE, GuestMemory
from minivmm.x86.paging import Pte
from minivmm.xen.errors import HypercallError

FRAME = 0x000F_FFFF_FFFF_F000  # the address bits of an entry
_SHIFTS = (39, 30, 21, 12)
MAX_COPY = 1 << 20  # bytes at once: what a hypercall copies is bounded by its own structure, and by this

Record = TypeVar("Record", bound=tuple[Any, ...])


class GuestPointers:
    """Reads and writes through the page tables at `root`, with ring 3's rights. Raises HypercallError(EFAULT)."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.root = 0
        """Machine address of the PML4 in use."""

    def _translate(self, address: int, needed: int) -> int:
        """The machine address behind `address`, every level of whose mapping has the `needed` bits."""
        if (address + (1 << 47)) & (1 << 64) - 1 < 1 << 48:
            table = self.root
            for shift in _SHIFTS:
                entry = self.memory.read_u64(table + 8 * (address >> shift & 0x1FF))
                if entry & needed != needed or (entry & Pte.LARGE and shift != 12):
                    break
                table = entry & FRAME
            else:
                return table | address & PAGE_SIZE - 1
        raise HypercallError(errno.EFAULT, f"the domain may not reach {address:#x}")

    def read(self, address: int, length: int) -> bytes:
        """A copy of `length` bytes."""
        return b"".join(
            self.memory.read(machine, count) for machine, count in self._pieces(address, length, Pte.PRESENT | Pte.USER)
        )

    def write(self, address: int, data: bytes) -> None:
        """Copies `data` to where the domain itself could store it. Nothing is written unless all of it can be."""
        at = 0
        for machine, count in self._pieces(address, len(data), Pte.PRESENT | Pte.USER | Pte.WRITABLE):
            self.memory.write(machine, data[at : at + count])
            at += count

    def read_record(self, address: int, layout: Layout[Record]) -> Record:
        """One structure."""
        return layout.unpack(self.read(address, layout.size))

    def _pieces(self, address: int, length: int, needed: int) -> list[tuple[int, int]]:
        """Machine addresses and lengths of the pages' parts, all translated before the first is used."""
        if not 0 <= length <= MAX_COPY:
            raise HypercallError(errno.EINVAL, f"{length} bytes are too many for one hypercall")
        pieces = []
        try:
            while length > 0:
                count = min(length, PAGE_SIZE - address % PAGE_SIZE)
                pieces.append((self._translate(address, needed), count))
                address, length = address + count & (1 << 64) - 1, length - count
        except GuestMemoryError as error:
            raise HypercallError(errno.EFAULT, error.message) from error
        return pieces
