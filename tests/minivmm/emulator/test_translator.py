"""Translated code: it does what the interpreter does, follows what the guest changes, and cannot harm the host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from guest_os import image
from minivmm.emulator.assembly import program
from minivmm.emulator.machine import INTERPRET, TRANSLATE, RiscvMachine
from minivmm.emulator.physical import RAM_BASE
from minivmm.emulator.translator.code import BLOCK_ROOM, TranslatedCode
from minivmm.emulator.translator.hart import TranslatingHart
from minivmm.emulator.traps import Cause, Privilege
from minivmm.outcome import Outcome
from tests.minivmm.emulator import sequences
from tests.minivmm.emulator.bench import DATA, HANDLER, Bench

FUNCTION = RAM_BASE + 0x3000
RETURN = "jalr zero,0(ra)"


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(TranslatingHart)
    yield made
    made.close()


def hart_of(bench: Bench) -> TranslatingHart:
    assert isinstance(bench.hart, TranslatingHart)
    return bench.hart


def code_of(bench: Bench) -> TranslatedCode:
    assert isinstance(bench.hart.code, TranslatedCode)
    return bench.hart.code


def go(bench: Bench, source: str, count: int, at: int = RAM_BASE) -> None:
    """Executes `source` from `at`, `count` instructions or some more."""
    bench.put(source, at)
    bench.hart.pc = at
    bench.hart.execute(count)


# --- the same as the interpreter ------------------------------------------------------------------------------------
def check_sequences(directory: Path, seed: int, count: int) -> None:
    guest = directory / "sequences.bin"
    guest.write_bytes(sequences.guest(seed, count))
    reports = []
    for accelerator in (INTERPRET, TRANSLATE):
        with RiscvMachine(guest, clock="instructions", accelerator=accelerator) as machine:
            result = machine.run(timeout=300)
            reports.append((result.outcome, result.console, machine.hart.retired, machine.hart.traps))
    assert reports[0][0] is Outcome.SHUTDOWN
    assert reports[1] == reports[0], f"seed {seed}"


@pytest.mark.parametrize("seed", [1, 2])
def test_random_sequences_leave_the_same_registers_traps_memory_and_counts(tmp_path: Path, seed: int) -> None:
    check_sequences(tmp_path, seed, 30)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200, 220))
def test_many_random_sequences_leave_the_same(tmp_path: Path, seed: int) -> None:
    check_sequences(tmp_path, seed, 200)


@pytest.mark.parametrize("guest", ["hello", "user", "drivers"])
def test_a_guest_is_told_the_same_and_executes_as_much(guest: str) -> None:
    ends = []
    for accelerator in (INTERPRET, TRANSLATE):
        path = image(guest, "riscv64")
        with RiscvMachine(path, memory=32 << 20, clock="instructions", accelerator=accelerator) as machine:
            result = machine.run(timeout=120)
            ends.append((result.outcome, result.code, result.console, machine.hart.retired))
    assert ends[1] == ends[0]


def test_the_kernel_passes_its_own_checks() -> None:
    with RiscvMachine(image("selftest", "riscv64"), memory=64 << 20, accelerator=TRANSLATE) as machine:
        result = machine.run(timeout=120)
    assert b'{"selftest":"passed","failed":0}' in result.console, result


# --- the buffer -----------------------------------------------------------------------------------------------------
def test_no_page_is_writable_and_executable_at_once(bench: Bench) -> None:
    bench.run("addi a0,zero,1")
    code = code_of(bench).buffer
    rights = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, flags, *_ = line.split()
        start, end = (int(part, 16) for part in span.split("-"))
        if "vtk-translated" in line:
            assert "wx" not in flags, line
            rights[flags] = (start, end)
    assert set(rights) >= {"rw-s", "r-xs"}
    assert any(start <= code.address < end for start, end in [rights["r-xs"]])


def test_a_full_buffer_is_forgotten_and_the_guest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TranslatingHart, "buffer_size", BLOCK_ROOM + (12 << 10))
    with RiscvMachine(image("user", "riscv64"), memory=32 << 20, accelerator=TRANSLATE) as machine:
        result = machine.run(timeout=120)
        code = machine.hart.code
    assert result.outcome is Outcome.SHUTDOWN, result
    assert isinstance(code, TranslatedCode)
    assert code.flushed > 2
    assert code.buffer.used <= code.buffer.size


# --- chains ---------------------------------------------------------------------------------------------------------
def test_a_loop_stays_in_translated_code(bench: Bench) -> None:
    go(bench, f"addi a0,zero,1000\naddi a0,a0,-1\nbne a0,zero,{RAM_BASE + 4}\necall", 3001)
    go(bench, f"addi a0,zero,1000\naddi a0,a0,-1\nbne a0,zero,{RAM_BASE + 4}\necall", 2004)
    assert bench["a0"] == 0
    assert hart_of(bench).exits < 10


def test_a_call_across_pages_is_chained_in_m_mode_and_its_return_finds_the_jump_cache(bench: Bench) -> None:
    bench.put(f"addi a1,a1,1\n{RETURN}", FUNCTION)
    go(bench, f"addi a0,zero,500\njal ra,{FUNCTION}\naddi a0,a0,-1\nbne a0,zero,{RAM_BASE + 4}\necall", 2501)
    assert (bench["a0"], bench["a1"]) == (0, 500)
    assert code_of(bench).chained >= 2
    assert hart_of(bench).exits < 10


def test_a_chained_block_that_is_overwritten_is_not_executed_any_more(bench: Bench) -> None:
    bench.put(f"addi a1,a1,1\n{RETURN}", FUNCTION)
    caller = f"jal ra,{FUNCTION}\njal ra,{FUNCTION}\necall"
    go(bench, caller, 7)
    assert bench["a1"] == 2
    bench["s0"] = FUNCTION
    bench["s1"] = int.from_bytes(program("addi a1,a1,64", FUNCTION), "little")
    go(bench, "sw s1,0(s0)\necall", 2, at=RAM_BASE + 0x5000)
    bench.hart.pc = RAM_BASE
    bench.hart.execute(7)
    assert bench["a1"] == 2 + 64 + 64


def test_a_device_overwrites_a_chained_block_and_fence_i_shows_it(bench: Bench) -> None:
    bench.put(f"addi a1,a1,1\n{RETURN}", FUNCTION)
    go(bench, f"jal ra,{FUNCTION}\nfence.i\njal ra,{FUNCTION}\necall", 4)
    bench.hart.execute(4)
    before = bench["a1"]
    bench.put("addi a1,a1,64", FUNCTION)
    go(bench, "fence.i\necall", 1, at=RAM_BASE + 0x5000)
    bench.hart.pc = RAM_BASE
    bench.hart.execute(3)
    assert bench["a1"] == before + 64


def test_code_that_overwrites_its_own_block_sees_it_at_the_next_instruction(bench: Bench) -> None:
    bench["s0"] = RAM_BASE + 4
    bench["s1"] = int.from_bytes(program("addi a0,zero,2", RAM_BASE + 4), "little")
    go(bench, "sw s1,0(s0)\naddi a0,zero,1\naddi a2,zero,3\necall", 3)
    assert (bench["a0"], bench["a2"]) == (2, 3)


# --- exact exceptions -----------------------------------------------------------------------------------------------
def test_a_fault_in_the_middle_of_a_block_has_done_what_comes_before_it_and_nothing_else(bench: Bench) -> None:
    bench.put("addi t0,t0,1\necall", HANDLER)
    before = bench.hart.retired
    go(bench, "addi a0,zero,1\naddi a1,zero,2\nld a2,0(zero)\naddi a0,zero,9\necall", 3)
    assert (bench["a0"], bench["a1"]) == (1, 2)
    assert bench.trap[:2] == (Cause.LOAD_ACCESS_FAULT, RAM_BASE + 8) or bench["t0"] == 1
    assert bench.hart.retired - before in (2, 3)  # the two, and the handler's first where the slice went on


def test_memory_is_reached_through_the_tlb_after_the_first_access_and_not_after_a_flush(bench: Bench) -> None:
    bench["s0"] = DATA
    loop = f"addi a0,zero,100\nld a1,0(s0)\nsd a1,8(s0)\naddi a0,a0,-1\nbne a0,zero,{RAM_BASE + 4}\necall"
    go(bench, loop, 401)
    exits = hart_of(bench).exits
    bench.hart.pc = RAM_BASE
    bench.hart.execute(401)
    assert hart_of(bench).exits - exits <= 2
    bench.hart.mmu.flush()
    exits = hart_of(bench).exits
    bench.hart.pc = RAM_BASE
    bench.hart.execute(401)
    assert hart_of(bench).exits - exits >= 2


def test_every_mode_translates(bench: Bench) -> None:
    for mode in (Privilege.M, Privilege.S, Privilege.U):
        bench.run("addi a0,a0,1\naddi a0,a0,1", mode=mode)
    assert bench["a0"] == 6
