"""The PVH boot protocol (xen/include/public/arch-x86/hvm/start_info.h and docs/misc/pvh).

An image with an ELF note of type XEN_ELFNOTE_PHYS32_ENTRY is entered at that physical address in 32-bit protected mode
without paging: flat segments, interrupts off, EBX the address of `hvm_start_info`.
"""

from __future__ import annotations

from typing import NamedTuple

from minivmm.boot.e820 import memory_map
from minivmm.boot.elf import Elf
from minivmm.boot.flat import BOOT_CS, COMMAND_LINE, InitialState, flat_segments, write_command_line
from minivmm.errors import ImageError
from minivmm.kvm import abi
from minivmm.layout import Layout
from minivmm.memory import GuestMemory
from minivmm.x86 import descriptors
from minivmm.x86.registers import RFLAGS_RESERVED, Cr0

XEN_ELFNOTE_PHYS32_ENTRY = 18
XEN_HVM_START_MAGIC_VALUE = 0x336EC578

START_INFO = 0x6000
MEMORY_MAP = 0x6100


class HvmStartInfo(NamedTuple):
    """struct hvm_start_info, version 1."""

    magic: int
    version: int
    flags: int
    nr_modules: int
    modlist_paddr: int
    cmdline_paddr: int
    rsdp_paddr: int
    memmap_paddr: int
    memmap_entries: int


HVM_START_INFO = Layout("<IIIIQQQQI4x", HvmStartInfo)


class MemmapEntry(NamedTuple):
    """struct hvm_memmap_table_entry: e820's fields and padding."""

    addr: int
    size: int
    type: int


HVM_MEMMAP_TABLE_ENTRY = Layout("<QQI4x", MemmapEntry)


def entry_point(elf: Elf) -> int | None:
    """The address its PVH note names, or None. Raises ImageError for a note that is too short."""
    for note in elf.notes():
        if note.name == "Xen" and note.type == XEN_ELFNOTE_PHYS32_ENTRY:
            if len(note.desc) < 4:
                raise ImageError(elf.path, "its PVH note holds no address")
            return int.from_bytes(note.desc[:8], "little") & 0xFFFFFFFF
    return None


def prepare(memory: GuestMemory, entry: int, cmdline: bytes) -> InitialState:
    """Writes hvm_start_info, the memory map and the command line, and gives the registers to enter with."""
    table = memory_map(memory)
    info = HvmStartInfo(XEN_HVM_START_MAGIC_VALUE, 1, 0, 0, 0, COMMAND_LINE, 0, MEMORY_MAP, len(table))
    memory.write(START_INFO, HVM_START_INFO.pack(info))
    memory.write(MEMORY_MAP, HVM_MEMMAP_TABLE_ENTRY.pack_all(MemmapEntry(*entry) for entry in table))
    write_command_line(memory, cmdline)

    sregs = flat_segments(memory, descriptors.code32(BOOT_CS))
    sregs.cr0 = Cr0.PE | Cr0.ET
    return InitialState(abi.kvm_regs(rip=entry, rbx=START_INFO, rflags=RFLAGS_RESERVED), sregs)
