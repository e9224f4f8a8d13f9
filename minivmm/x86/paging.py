"""4-level paging (SDM 3A 4.5): the entries' bits, and the identity map that 64-bit boot protocols ask for."""

from __future__ import annotations

import array
from functools import lru_cache

from minivmm.memory import GuestMemory

LARGE_PAGE = 2 << 20
VIRTUAL_BITS = 48  # of a linear address; the rest repeat the highest of them


def is_canonical(address: int) -> bool:
    """SDM 1, 3.3.7.1."""
    return (address + (1 << VIRTUAL_BITS - 1)) & (1 << 64) - 1 < 1 << VIRTUAL_BITS


class Pte:
    """Bits of a paging-structure entry (SDM 3A tables 4-15 to 4-20)."""

    PRESENT = 1 << 0
    WRITABLE = 1 << 1
    USER = 1 << 2
    ACCESSED = 1 << 5
    DIRTY = 1 << 6
    LARGE = 1 << 7


def identity_map(memory: GuestMemory, tables: int, gibibytes: int) -> int:
    """Maps the first `gibibytes` GiB one to one with 2 MiB pages; the tables go to `tables` on. Returns CR3.

    Uses 2 + `gibibytes` pages: PML4, PDPT, and a page directory a GiB. 1 GiB pages would need fewer and fail on
    software back ends (docs/backends.md).
    """
    pdpt, directories = tables + 0x1000, tables + 0x2000
    link = Pte.PRESENT | Pte.WRITABLE | Pte.ACCESSED
    memory.write_u64(tables, pdpt | link)
    for index in range(gibibytes):
        memory.write_u64(pdpt + 8 * index, directories + 0x1000 * index | link)
    memory.write(directories, _large_pages(gibibytes))
    return tables


@lru_cache(maxsize=4)
def _large_pages(gibibytes: int) -> bytes:
    """The page directories' entries: the same for every machine, so made once."""
    leaf = Pte.PRESENT | Pte.WRITABLE | Pte.ACCESSED | Pte.DIRTY | Pte.LARGE
    return array.array("Q", range(leaf, gibibytes * (1 << 30) + leaf, LARGE_PAGE)).tobytes()
