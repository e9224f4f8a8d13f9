"""Traps, returns, page tables and flushes that translated code does by itself, and the end they must leave to a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from minivmm.emulator.assembly import program
from minivmm.emulator.csr_table import Status
from minivmm.emulator.machine import TRANSLATE, RiscvMachine
from minivmm.emulator.mmu import PTE_A, PTE_D, PTE_PPN_SHIFT, PTE_R, PTE_U, PTE_V, PTE_W, PTE_X
from minivmm.emulator.physical import RAM_BASE
from minivmm.emulator.translator.hart import TranslatingHart
from minivmm.emulator.traps import Cause, Privilege
from minivmm.outcome import Outcome
from tests.minivmm.emulator.bench import DATA, S_HANDLER, Bench
from tests.minivmm.emulator.guests import write_raw

DELEGATED = 0xB1FF
WINDOW = 0x10_0000_0000
ALL = PTE_R | PTE_W | PTE_X | PTE_A | PTE_D
GO_ON = "csrrs t0,sepc,zero\naddi t0,t0,4\ncsrrw zero,sepc,t0\nsret"


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(TranslatingHart)
    made.csrs.medeleg = DELEGATED
    yield made
    made.close()


def exits_of(bench: Bench, source: str, mode: Privilege, count: int) -> int:
    """How often translated code is left while it executes about `count` instructions of `source`, known already."""
    bench.put(source)
    hart = bench.hart
    assert isinstance(hart, TranslatingHart)
    exits = 0
    for times in (100, count):
        hart.pc = RAM_BASE
        hart.enter(int(mode))
        exits, goal = hart.exits, hart.retired + times
        while hart.retired < goal:
            hart.execute(goal - hart.retired)
    return hart.exits - exits


def test_a_system_call_and_its_return_stay_in_translated_code(bench: Bench) -> None:
    bench.put(GO_ON, S_HANDLER)
    exits = exits_of(bench, f"addi a0,a0,1\necall\njal zero,{RAM_BASE}", Privilege.U, 4000)
    assert bench["a0"] > 500
    assert bench.hart.traps >= 500
    assert bench.csrs.scause == Cause.ECALL_FROM_U
    assert exits < 10


def test_a_page_fault_stays_in_translated_code(bench: Bench) -> None:
    bench.map(RAM_BASE, RAM_BASE, ALL)
    bench.map(S_HANDLER, S_HANDLER, ALL)
    bench.put(GO_ON, S_HANDLER)
    bench.paging()
    bench["s0"] = WINDOW
    exits = exits_of(bench, f"addi a0,a0,1\nsd a0,8(s0)\njal zero,{RAM_BASE}", Privilege.S, 4000)
    assert (bench.csrs.scause, bench.csrs.stval) == (Cause.STORE_PAGE_FAULT, WINDOW + 8)
    assert bench.hart.traps >= 500
    assert exits < 10


def test_a_changed_page_is_seen_behind_the_fence_without_leaving_translated_code(bench: Bench) -> None:
    bench.map(RAM_BASE, RAM_BASE, ALL)
    entry = bench.map(WINDOW, DATA, ALL)
    bench.map(entry, entry & ~0xFFF, ALL)
    bench.ram.write_u64(DATA, 1)
    bench.ram.write_u64(DATA + 0x1000, 2)
    bench["s0"], bench["s1"] = WINDOW, entry
    for register, page in (("s2", DATA), ("s3", DATA + 0x1000)):
        bench[register] = page >> 12 << PTE_PPN_SHIFT | ALL | PTE_V
    change = "sd {0},0(s1)\nsfence.vma zero,zero\nld {1},0(s0)\n"
    source = change.format("s2", "a0") + change.format("s3", "a1") + f"jal zero,{RAM_BASE}"
    bench.paging()
    exits = exits_of(bench, source, Privilege.S, 7000)
    assert (bench["a0"], bench["a1"]) == (1, 2)
    assert exits < 10


def test_code_behind_a_fence_is_the_code_that_is_there_then(bench: Bench) -> None:
    """The page that is executed next is another after the fence: what was translated of the old one is not executed."""
    called = RAM_BASE + 0x4000
    bench.map(RAM_BASE, RAM_BASE, ALL)
    entry = bench.map(called, DATA, ALL)
    bench.map(entry, entry & ~0xFFF, ALL)
    for page, line in ((DATA, "addi a0,a0,1"), (DATA + 0x1000, "addi a1,a1,1")):
        bench.put(f"{line}\njalr zero,0(ra)", page)
    bench["s1"], bench["s4"] = entry, called
    for register, page in (("s2", DATA), ("s3", DATA + 0x1000)):
        bench[register] = page >> 12 << PTE_PPN_SHIFT | ALL | PTE_V
    bench.paging()
    change = "sd {0},0(s1)\nsfence.vma zero,zero\njalr ra,0(s4)\n"
    exits_of(bench, change.format("s2") + change.format("s3") + f"jal zero,{RAM_BASE}", Privilege.S, 1000)
    assert bench["a0"] > 90
    assert bench["a0"] - bench["a1"] in (0, 1)


def test_a_trap_halfway_through_blocks_does_not_keep_a_slice_from_ending(bench: Bench) -> None:
    """Each time, less is left than the next block has, and some of what is granted to it is not needed."""
    bench.put("csrrs a0,sip,zero\naddi a1,a1,1\naddi a1,a1,1\nld a2,0(s0)\n" + "addi a1,a1,1\n" * 8 + "wfi", S_HANDLER)
    bench.map(S_HANDLER, S_HANDLER, ALL)
    bench.paging()
    bench["s0"] = WINDOW
    bench.hart.pc = S_HANDLER
    bench.hart.enter(int(Privilege.S))
    for _ in range(5):
        bench.hart.execute(1)
    assert bench.hart.retired + bench.hart.traps < 100


def test_a_reservation_does_not_outlive_a_trap(bench: Bench) -> None:
    bench.put(GO_ON, S_HANDLER)
    bench["s0"] = DATA
    bench.put("lr.d a0,(s0)\nsc.d a1,zero,(s0)\nlr.d a0,(s0)\necall\nsc.d a2,zero,(s0)\naddi a3,zero,1")
    for _ in range(2):  # the second time through the TLB
        bench["a3"] = 0
        bench.hart.pc = RAM_BASE
        bench.hart.enter(int(Privilege.U))
        while not bench["a3"]:
            bench.hart.execute(1)
        assert (bench["a1"], bench["a2"]) == (0, 1)


def test_an_interrupt_that_waits_is_taken_behind_the_instruction_that_lets_it_in(bench: Bench) -> None:
    hart, csrs = bench.hart, bench.csrs
    bench.put(f"jal zero,{S_HANDLER}", S_HANDLER)
    for lines, software in ((0x200, 0), (0, 2)):
        bench.lines = lines
        csrs.mideleg, csrs.mie, csrs.mip, csrs.mstatus = 0x222, 0x222, software, csrs.mstatus & ~2
        bench.put("addi a0,zero,1\ncsrrsi zero,sstatus,2\naddi a0,zero,2\naddi a0,zero,3\nwfi")
        hart.pc = RAM_BASE
        hart.enter(int(Privilege.S))
        while hart.pc != S_HANDLER and bench["a0"] < 2:
            hart.look_at_interrupts()
            hart.execute(1)
        assert bench["a0"] == 1
        assert csrs.sepc == RAM_BASE + 8
        bench["a0"] = 0


def test_a_user_page_is_not_the_supervisors_in_translated_code_either(bench: Bench) -> None:
    bench.map(RAM_BASE, RAM_BASE, ALL)
    bench.map(S_HANDLER, S_HANDLER, ALL)
    bench.map(WINDOW, DATA, ALL | PTE_U)
    bench.put(GO_ON, S_HANDLER)
    bench.paging()
    bench["s0"] = WINDOW
    bench.ram.write_u64(DATA, 7)
    exits_of(bench, f"ld a0,0(s0)\njal zero,{RAM_BASE}", Privilege.S, 100)
    assert (bench["a0"], bench.csrs.scause) == (0, Cause.LOAD_PAGE_FAULT)


def test_a_guest_that_traps_for_ever_is_ended_at_its_deadline(tmp_path: Path) -> None:
    """Nothing is ever executed: stvec is the instruction that traps."""
    start = """
    lui t0,0xb
    addi t0,t0,0x1ff
    csrrw zero,medeleg,t0
    auipc t0,0
    addi t0,t0,32
    csrrw zero,stvec,t0
    csrrw zero,mepc,t0
    lui t1,1
    srli t1,t1,1
    csrrs zero,mstatus,t1
    mret
    """
    at = RAM_BASE + len(program(start, RAM_BASE))
    assert at == RAM_BASE + 44
    image = write_raw(tmp_path, start + "ebreak\n")
    with RiscvMachine(image, memory=4 << 20, accelerator=TRANSLATE) as machine:
        result = machine.run(timeout=0.3)
        assert machine.hart.mode == Privilege.S
    assert result.outcome is Outcome.DEADLINE
    assert machine.hart.traps > 1000


def test_a_kernel_reaches_a_users_page_only_while_it_allows_itself_to(bench: Bench) -> None:
    bench.map(RAM_BASE, RAM_BASE, ALL)
    bench.map(S_HANDLER, S_HANDLER, ALL)
    bench.map(WINDOW, DATA, ALL | PTE_U)
    bench.put("addi a2,a2,1\n" + GO_ON, S_HANDLER)
    bench.paging()
    bench["s0"], bench["s1"] = WINDOW, int(Status.SUM)
    bench.ram.write_u64(DATA, 7)
    source = "addi a3,a3,1\naddi a0,zero,0\ncsrrs zero,sstatus,s1\nld a0,0(s0)\ncsrrc a1,sstatus,s1\nld a4,0(s0)\n"
    exits = exits_of(bench, f"{source}jal zero,{RAM_BASE}", Privilege.S, 2600)
    assert (bench["a0"] in (0, 7), bench["a4"]) == (True, 0)
    assert bench["a1"] & int(Status.SUM)
    assert bench["a3"] > 200
    assert abs(bench["a2"] - bench["a3"]) <= 2  # the second load faults each time, the first one never
    assert exits < 10
