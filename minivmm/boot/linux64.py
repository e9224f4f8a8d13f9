"""The Linux 64-bit boot protocol (Documentation/arch/x86/boot.rst, "64-bit boot protocol").

The image is entered at its ELF entry point in long mode: flat segments with __BOOT_CS 0x10 and __BOOT_DS 0x18, low
memory mapped one to one, interrupts off, RSI the address of `boot_params` (the "zero page").
"""

from __future__ import annotations

from minivmm.boot.e820 import E820Entry, memory_map
from minivmm.boot.flat import BOOT_CS, COMMAND_LINE, InitialState, flat_segments, write_command_line
from minivmm.kvm import abi
from minivmm.layout import Layout
from minivmm.memory import GuestMemory
from minivmm.x86 import descriptors
from minivmm.x86.paging import identity_map
from minivmm.x86.registers import RFLAGS_RESERVED, Cr0, Cr4, Efer

# Where this protocol's structures lie, beside those of `flat`.
ZERO_PAGE = 0x7000
STACK = 0x8FF0
PAGE_TABLES = 0x9000  # 6 pages

MAPPED_GIB = 4

# Offsets in struct boot_params (asm/bootparam.h) and in its setup_header at 0x1f1.
E820_ENTRIES = 0x1E8
BOOT_FLAG = 0x1FE
HEADER = 0x202
TYPE_OF_LOADER = 0x210
CMD_LINE_PTR = 0x228
CMDLINE_SIZE = 0x238
E820_TABLE = 0x2D0

BOOT_FLAG_MAGIC = 0xAA55
HEADER_MAGIC = 0x53726448  # "HdrS"
LOADER_UNDEFINED = 0xFF

BOOT_E820_ENTRY = Layout("<QQI", E820Entry)


def prepare(memory: GuestMemory, entry: int, cmdline: bytes) -> InitialState:
    """Writes boot_params, the command line, a GDT and page tables, and gives the registers to enter with."""
    table = memory_map(memory)
    memory.write_u16(ZERO_PAGE + BOOT_FLAG, BOOT_FLAG_MAGIC)
    memory.write_u32(ZERO_PAGE + HEADER, HEADER_MAGIC)
    memory.write(ZERO_PAGE + TYPE_OF_LOADER, bytes((LOADER_UNDEFINED,)))
    memory.write_u32(ZERO_PAGE + CMD_LINE_PTR, COMMAND_LINE)
    memory.write_u32(ZERO_PAGE + CMDLINE_SIZE, len(cmdline))
    memory.write(ZERO_PAGE + E820_ENTRIES, bytes((len(table),)))
    memory.write(ZERO_PAGE + E820_TABLE, BOOT_E820_ENTRY.pack_all(table))
    write_command_line(memory, cmdline)

    sregs = flat_segments(memory, descriptors.code64(BOOT_CS))
    sregs.cr0 = Cr0.PE | Cr0.MP | Cr0.ET | Cr0.NE | Cr0.WP | Cr0.AM | Cr0.PG
    sregs.cr3 = identity_map(memory, PAGE_TABLES, MAPPED_GIB)
    sregs.cr4 = Cr4.PAE | Cr4.OSFXSR | Cr4.OSXMMEXCPT
    sregs.efer = Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE
    regs = abi.kvm_regs(rip=entry, rsi=ZERO_PAGE, rsp=STACK, rbp=STACK, rflags=RFLAGS_RESERVED)
    return InitialState(regs, sregs)
