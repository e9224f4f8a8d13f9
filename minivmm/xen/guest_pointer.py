"""A domain's virtual addresses, as hypercalls name them: copied once, and only where the domain itself may go."""

from __future__ import annotations

import errno
from typing import Any, TypeVar

from minivmm.deprivileged import walk
from minivmm.layout import Layout
from minivmm.memory import PAGE_SIZE, GuestMemory
from minivmm.x86.paging import is_canonical
from minivmm.xen.errors import HypercallError

MAX_COPY = 1 << 20  # bytes at once: what a hypercall copies is bounded by its own structure, and by this

Record = TypeVar("Record", bound=tuple[Any, ...])


def canonical(address: int) -> int:
    """`address`. Raises HypercallError(EINVAL) when no address can be so."""
    if not is_canonical(address):
        raise HypercallError(errno.EINVAL, f"{address:#x} is no address (SDM 1, 3.3.7.1)")
    return address


class GuestPointers:
    """Reads and writes through the page tables at `root`, with ring 3's rights. Raises HypercallError(EFAULT)."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.root = 0
        """Machine address of the PML4 in use."""

    def translate(self, address: int) -> int | None:
        """The machine address behind `address`; None where the domain may not read."""
        return walk.translate(self.memory, self.root, address)

    def read_some(self, address: int, length: int) -> bytes:
        """Up to `length` bytes: fewer where the domain may not read on."""
        return walk.read(self.memory, self.root, address, length)

    def _translate(self, address: int, needed: int) -> int:
        """The machine address behind `address`, every level of whose mapping has the `needed` bits."""
        if is_canonical(address):
            machine = walk.translate(self.memory, self.root, address, needed)
            if machine is not None:
                return machine
        raise HypercallError(errno.EFAULT, f"the domain may not reach {address:#x}")

    def read(self, address: int, length: int) -> bytes:
        """A copy of `length` bytes."""
        return b"".join(
            self.memory.read(machine, count) for machine, count in self._pieces(address, length, walk.READABLE)
        )

    def write(self, address: int, data: bytes) -> None:
        """Copies `data` to where the domain itself could store it. Nothing is written unless all of it can be."""
        at = 0
        for machine, count in self._pieces(address, len(data), walk.WRITABLE):
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
        while length > 0:
            count = min(length, PAGE_SIZE - address % PAGE_SIZE)
            pieces.append((self._translate(address, needed), count))
            address, length = address + count & (1 << 64) - 1, length - count
        return pieces
