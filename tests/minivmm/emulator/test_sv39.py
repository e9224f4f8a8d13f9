"""Sv39 (Privileged 1.12, 4.3 and 4.4): who may do what to which page, and what the walk leaves behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from minivmm.emulator.csr_table import Status
from minivmm.emulator.hart import Hart
from minivmm.emulator.mmu import PTE_A, PTE_D, PTE_R, PTE_U, PTE_V, PTE_W, PTE_X
from minivmm.emulator.physical import RAM_BASE
from minivmm.emulator.translator.hart import TranslatingHart
from minivmm.emulator.traps import Cause, Privilege
from tests.minivmm.emulator.bench import DATA, TABLES, Bench

M, S, U = Privilege.M, Privilege.S, Privilege.U
PAGE = 0x40_0000_0000 - 0x5000  # virtual: the last pages of the lower half
LOAD, STORE, FETCH = Cause.LOAD_PAGE_FAULT, Cause.STORE_PAGE_FAULT, Cause.INSTRUCTION_PAGE_FAULT
RWX = PTE_R | PTE_W | PTE_X


@pytest.fixture(params=[Hart, TranslatingHart], ids=["interpret", "translate"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Code at RAM_BASE is mapped one to one, for S and, at the next page but one, for U."""
    made = Bench(request.param)
    made.map(RAM_BASE, RAM_BASE, PTE_R | PTE_X)
    made.map(RAM_BASE + 0x3000, RAM_BASE + 0x3000, PTE_R | PTE_X | PTE_U)
    made.ram.write_u64(DATA, 0x1122_3344_5566_7788)
    made["s0"] = PAGE
    made.paging()
    yield made
    made.close()


def attempt(bench: Bench, line: str, mode: Privilege) -> int:
    """The exception's cause; 0 when there was none."""
    bench.csrs.mcause = 0
    bench.run(line, mode=mode, at=RAM_BASE + 0x3000 if mode == U else RAM_BASE)
    if bench.csrs.mcause:
        assert bench.csrs.mtval == bench["s0"]
    return bench.csrs.mcause


@pytest.mark.parametrize(
    ("flags", "mode", "status", "load", "store"),
    [
        pytest.param(PTE_R, S, 0, 0, STORE, id="read-only"),
        pytest.param(PTE_R | PTE_W, S, 0, 0, 0, id="read-write"),
        pytest.param(PTE_X, S, 0, LOAD, STORE, id="execute-only"),
        pytest.param(PTE_X, S, Status.MXR, 0, STORE, id="execute-only with MXR"),
        pytest.param(PTE_W | PTE_X, S, 0, LOAD, STORE, id="write without read is reserved"),
        pytest.param(PTE_R | PTE_W | PTE_U, S, 0, LOAD, STORE, id="a user page in S"),
        pytest.param(PTE_R | PTE_W | PTE_U, S, Status.SUM, 0, 0, id="a user page in S with SUM"),
        pytest.param(PTE_R | PTE_W, U, 0, LOAD, STORE, id="a supervisor page in U"),
        pytest.param(PTE_R | PTE_W | PTE_U, U, 0, 0, 0, id="a user page in U"),
        pytest.param(PTE_R | PTE_W | 1 << 60, S, 0, LOAD, STORE, id="a reserved bit"),
        pytest.param(PTE_R | PTE_W | 1 << 63, S, 0, LOAD, STORE, id="N without Svnapot"),
        pytest.param(PTE_U, S, 0, LOAD, STORE, id="a pointer with U, at the last level"),
    ],
)
def test_permissions(bench: Bench, flags: int, mode: Privilege, status: int, load: int, store: int) -> None:
    bench.map(PAGE, DATA, flags)
    bench.csrs.write(0x300, bench.csrs.mstatus | int(status))
    assert attempt(bench, "ld a0,0(s0)", mode) == load
    assert attempt(bench, "sd s1,0(s0)", mode) == store
    assert attempt(bench, "amoor.d a1,s1,(s0)", mode) == store
    assert attempt(bench, "lr.d a1,(s0)", mode) == load


def test_an_address_that_is_not_canonical_is_a_page_fault(bench: Bench) -> None:
    for address in (1 << 38, (1 << 63) | PAGE, (1 << 64) - (1 << 39)):
        bench["s0"] = address
        assert attempt(bench, "ld a0,0(s0)", S) == LOAD


def test_the_walk_sets_accessed_and_then_dirty(bench: Bench) -> None:
    entry = bench.map(PAGE, DATA, PTE_R | PTE_W)
    assert attempt(bench, "ld a0,0(s0)", S) == 0
    assert bench.ram.read_u64(entry) & (PTE_A | PTE_D) == PTE_A
    assert attempt(bench, "sd a0,0(s0)", S) == 0
    assert bench.ram.read_u64(entry) & (PTE_A | PTE_D) == PTE_A | PTE_D


@pytest.mark.parametrize("level", [1, 2])
def test_superpages_translate_and_must_be_aligned(bench: Bench, level: int) -> None:
    size = 1 << 12 + 9 * level
    virtual = PAGE & -size
    bench.map(virtual, RAM_BASE & -size, PTE_R, level)
    bench["s0"] = virtual + (DATA - RAM_BASE)
    assert attempt(bench, "ld a0,0(s0)", S) == 0
    assert bench["a0"] == 0x1122_3344_5566_7788
    bench.map(virtual, (RAM_BASE & -size) + 0x1000, PTE_R, level)
    bench.hart.mmu.flush()
    assert attempt(bench, "ld a0,0(s0)", S) == LOAD


def test_a_changed_entry_counts_after_sfence_vma(bench: Bench) -> None:
    bench.map(PAGE, DATA, PTE_R)
    assert attempt(bench, "ld a0,0(s0)", S) == 0
    bench.map(PAGE, DATA, 0)
    bench.run("sfence.vma zero,zero", mode=S)
    assert attempt(bench, "ld a0,0(s0)", S) == LOAD


def test_the_part_of_a_load_that_faults_is_the_one_named(bench: Bench) -> None:
    bench.map(PAGE, DATA, PTE_R | PTE_W)
    bench["s0"] = PAGE + 0x1000
    assert attempt(bench, "ld a0,-4(s0)", S) == LOAD  # mtval is the next page's start: see attempt
    bench["a0"] = (1 << 64) - 1
    assert attempt(bench, "sd a0,-4(s0)", S) == STORE
    assert bench.ram.read_u32(DATA + 0xFFC) == 0


def test_a_page_crossing_access_reaches_two_frames_that_are_not_neighbours(bench: Bench) -> None:
    bench.map(PAGE, DATA, PTE_R | PTE_W)
    bench.map(PAGE + 0x1000, DATA + 0x4000, PTE_R | PTE_W)
    bench["s0"], bench["a0"] = PAGE + 0x1000, 0x0102_0304_0506_0708
    bench.run("sd a0,-3(s0)\nld a1,-3(s0)", mode=S)
    assert bench["a1"] == bench["a0"]
    assert bench.ram.read(DATA + 0xFFD, 3) + bench.ram.read(DATA + 0x4000, 5) == bench["a0"].to_bytes(8, "little")


def test_fetching_needs_execute_and_the_right_mode(bench: Bench) -> None:
    for flags, mode, cause in ((PTE_R, S, FETCH), (RWX | PTE_U, S, FETCH), (RWX, U, FETCH), (RWX, S, 0)):
        bench.map(PAGE, DATA + 0x1000, flags)
        bench.hart.mmu.flush()
        bench.ram.write_u32(DATA + 0x1000, 0x13)  # nop
        bench.csrs.mcause, bench.hart.pc = 0, PAGE
        bench.hart.enter(int(mode))
        bench.hart.step()
        assert bench.csrs.mcause == cause
        assert cause == 0 or bench.csrs.mtval == bench.csrs.mepc == PAGE


def test_an_instruction_whose_second_half_is_not_mapped_faults_there(bench: Bench) -> None:
    bench.map(PAGE, DATA, RWX)
    bench.ram.write(DATA + 0xFFE, bytes.fromhex("1305"))
    bench.hart.pc = PAGE + 0xFFE
    bench.hart.enter(int(S))
    bench.hart.step()
    assert bench.trap == (FETCH, PAGE + 0xFFE, PAGE + 0x1000)
    bench.map(PAGE + 0x1000, DATA + 0x2000, RWX)
    bench.ram.write(DATA + 0x2000, bytes.fromhex("2500"))
    bench.run("sfence.vma zero,zero", mode=S)
    bench.hart.pc = PAGE + 0xFFE
    bench.hart.step()
    assert (bench["a0"], bench.hart.pc) == (2, PAGE + 0x1002)


def test_m_mode_is_not_translated_unless_mprv_says_so(bench: Bench) -> None:
    bench.map(PAGE, DATA, PTE_R)
    bench["s0"] = DATA
    bench.run("ld a0,0(s0)")
    assert bench["a0"] == 0x1122_3344_5566_7788
    bench["s0"] = PAGE
    bench.csrs.write(0x300, int(Status.MPRV) | S << 11)
    bench.run("ld a1,0(s0)")
    assert bench["a1"] == 0x1122_3344_5566_7788


def test_tables_outside_memory_are_an_access_fault(bench: Bench) -> None:
    root = TABLES + (PAGE >> 30 & 511) * 8
    bench.ram.write_u64(root, (1 << 43) << 10 | PTE_V)
    assert attempt(bench, "ld a0,0(s0)", S) == Cause.LOAD_ACCESS_FAULT


def test_two_virtual_pages_of_one_frame_are_the_same_memory_and_code(bench: Bench) -> None:
    code = DATA + 0x1000
    bench.map(PAGE, code, RWX)
    bench.map(PAGE + 0x1000, code, RWX)
    bench.ram.write_u32(code, 0x0015_0513)  # addi a0,a0,1
    bench["s0"], bench["s1"] = PAGE + 0x1000, 0x0025_0513  # addi a0,a0,2
    for expected in (1, 3):
        bench.hart.pc = PAGE
        bench.hart.enter(int(S))
        bench.hart.step()
        assert bench["a0"] == expected
        bench.run("sw s1,0(s0)", mode=S)
