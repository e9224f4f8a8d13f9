"""Reading memory as ring 3 of an address space sees it (SDM 3A 4.5)."""

from __future__ import annotations

from minivmm.errors import GuestMemoryError
from minivmm.memory import PAGE_SIZE, GuestMemory
from minivmm.x86.paging import Pte

FRAME = 0x000F_FFFF_FFFF_F000
"""The address bits of an entry."""

_SHIFTS = (39, 30, 21, 12)


READABLE = Pte.PRESENT | Pte.USER
WRITABLE = Pte.PRESENT | Pte.USER | Pte.WRITABLE


def translate(memory: GuestMemory, root: int, address: int, needed: int = READABLE) -> int | None:
    """The machine address behind a linear one, None where ring 3 may not: every level must have the `needed` bits."""
    table = root & FRAME
    for shift in _SHIFTS:
        try:
            entry = memory.read_u64(table + 8 * (address >> shift & 0x1FF))
        except GuestMemoryError:
            return None
        if entry & needed != needed:
            return None
        if shift == 12 or (entry & Pte.LARGE and shift < 39):
            offset = (1 << shift) - 1
            return entry & FRAME & ~offset | address & offset
        table = entry & FRAME
    return None


def read(memory: GuestMemory, root: int, address: int, length: int) -> bytes:
    """Up to `length` bytes at a linear address: fewer where ring 3 may not read on."""
    data = b""
    while len(data) < length:
        machine = translate(memory, root, address)
        if machine is None:
            break
        count = min(length - len(data), PAGE_SIZE - address % PAGE_SIZE)
        try:
            data += memory.read(machine, count)
        except GuestMemoryError:
            break
        address += count
    return data
