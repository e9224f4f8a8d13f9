"""The memory map a guest is told: what is RAM and what is not, in the shape both boot protocols use."""

from __future__ import annotations

from typing import NamedTuple

from minivmm.memory import GuestMemory

EBDA = 0x9FC00  # the BIOS data area and what lies up to 1 MiB is not RAM on a PC
HIGH_MEMORY = 0x100000


# ACPI 6, 15.1 (and XEN_HVM_MEMMAP_TYPE_*).
E820_RAM = 1
E820_RESERVED = 2


class E820Entry(NamedTuple):
    """One range: guest-physical address and size in bytes."""

    addr: int
    size: int
    type: int


def memory_map(memory: GuestMemory) -> tuple[E820Entry, ...]:
    """The RAM of `memory` as a PC reports it."""
    low, *high = memory.regions
    return (
        E820Entry(0, EBDA, E820_RAM),
        E820Entry(EBDA, HIGH_MEMORY - EBDA, E820_RESERVED),
        *((E820Entry(HIGH_MEMORY, low.size - HIGH_MEMORY, E820_RAM),) if low.size > HIGH_MEMORY else ()),
        *(E820Entry(region.guest_address, region.size, E820_RAM) for region in high),
    )
