"""What the boot protocols promise a guest, read back from its memory."""

from __future__ import annotations

import struct

from minivmm.boot import linux64, pvh
from minivmm.boot.e820 import E820_RAM, memory_map
from minivmm.memory import HOLE_END, HOLE_START, GuestMemory
from minivmm.x86.paging import Pte

MIB = 1 << 20


def test_the_memory_map_covers_all_ram_and_nothing_else() -> None:
    memory = GuestMemory(HOLE_START + 64 * MIB)
    entries = memory_map(memory)
    ram = [(entry.addr, entry.addr + entry.size) for entry in entries if entry.type == E820_RAM]
    assert ram == [(0, 0x9FC00), (MIB, HOLE_START), (HOLE_END, HOLE_END + 64 * MIB)]


def test_the_zero_page_holds_what_a_linux_kernel_reads() -> None:
    memory = GuestMemory(64 * MIB)
    state = linux64.prepare(memory, 0x100000, b"console=ttyS0")
    page = memory.read(linux64.ZERO_PAGE, 4096)
    assert state.regs.rsi == linux64.ZERO_PAGE
    assert page[0x1FE:0x200] == b"\x55\xaa"
    assert page[0x202:0x206] == b"HdrS"
    assert page[0x210] == 0xFF
    (line,) = struct.unpack_from("<I", page, 0x228)
    assert memory.read(line, 14) == b"console=ttyS0\0"
    assert page[0x1E8] == 3
    assert struct.unpack_from("<QQI", page, 0x2D0 + 2 * 20) == (MIB, 63 * MIB, 1)


def test_low_memory_is_mapped_one_to_one_by_large_pages() -> None:
    memory = GuestMemory(64 * MIB)
    state = linux64.prepare(memory, 0x100000, b"")
    for address in (0, 0x100000, 63 * MIB, 0xFEE00000, (4 << 30) - 1):
        pdpt = memory.read_u64(state.sregs.cr3) & ~0xFFF
        directory = memory.read_u64(pdpt + 8 * (address >> 30)) & ~0xFFF
        entry = memory.read_u64(directory + 8 * (address >> 21 & 511))
        assert entry & (Pte.PRESENT | Pte.WRITABLE | Pte.LARGE) == Pte.PRESENT | Pte.WRITABLE | Pte.LARGE
        assert entry & ~0x1FFFFF == address & ~0x1FFFFF


def test_the_gdt_in_memory_says_what_the_segment_registers_say() -> None:
    memory = GuestMemory(64 * MIB)
    sregs = linux64.prepare(memory, 0x100000, b"").sregs
    assert memory.read_u64(sregs.gdt.base + sregs.cs.selector) == 0x00AF9B000000FFFF
    assert memory.read_u64(sregs.gdt.base + sregs.ds.selector) == 0x00CF93000000FFFF
    pvh_sregs = pvh.prepare(memory, 0x100000, b"").sregs
    assert memory.read_u64(pvh_sregs.gdt.base + pvh_sregs.cs.selector) == 0x00CF9B000000FFFF


def test_hvm_start_info_names_command_line_and_memory_map() -> None:
    memory = GuestMemory(64 * MIB)
    state = pvh.prepare(memory, 0x100000, b"quiet")
    info = pvh.HVM_START_INFO.unpack(memory.read(state.regs.rbx, pvh.HVM_START_INFO.size))
    assert (info.magic, info.version) == (0x336EC578, 1)
    assert memory.read(info.cmdline_paddr, 6) == b"quiet\0"
    entries = [
        pvh.HVM_MEMMAP_TABLE_ENTRY.unpack(memory.read(info.memmap_paddr + 24 * index, 24))
        for index in range(info.memmap_entries)
    ]
    assert entries == [tuple(entry) for entry in memory_map(memory)]
