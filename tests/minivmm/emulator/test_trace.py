"""A trace says what happened: all of it, once, in order, and watching changes nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from guest_os import image
from minivmm.emulator.assembly import ABI_NAMES
from minivmm.emulator.hart import Hart
from minivmm.emulator.machine import INTERPRET, TRANSLATE, RiscvMachine
from minivmm.emulator.physical import RAM_BASE
from minivmm.emulator.trace import EVENTS, Event, Tracer
from minivmm.emulator.trace_file import TraceFile
from minivmm.emulator.translator.code import TranslatedCode
from minivmm.emulator.translator.hart import TranslatingHart
from minivmm.emulator.user.process import Process
from minivmm.errors import HostError
from minivmm.outcome import Outcome
from tests.minivmm.emulator.guests import POWER_OFF, write_raw
from tests.minivmm.emulator.programs import compile_program

LOOP = f"""
auipc a0,0x10
addi a2,zero,300
add a1,a1,a2
sd a1,0(a0)
ld a3,0(a0)
amoadd.d a4,a3,(a0)
csrrw a5,mscratch,a4
addi a2,a2,-1
bne a2,zero,{RAM_BASE + 8:#x}
{POWER_OFF}
"""
ENGINES = pytest.mark.parametrize("accelerator", [INTERPRET, TRANSLATE])
OVERWRITES_ITSELF = f"""
auipc s0,0
addi s1,zero,2
lw s2,44(s0)
addi a0,a0,1
addi s1,s1,-1
sw s2,12(s0)
bne s1,zero,{RAM_BASE + 12:#x}
{POWER_OFF}
addi a0,a0,64
"""
"""Adds 1 to a0, then 64, by the same instruction: the first turn overwrites it with the last word of the program."""


@pytest.fixture
def loop(tmp_path: Path) -> Path:
    return write_raw(tmp_path, LOOP)


def traced(path: Path, accelerator: str, *kinds: str) -> tuple[list[Event], RiscvMachine]:
    """What was told of a run to its end; the machine, closed."""
    events: list[Event] = []
    tracer = Tracer(events.append, frozenset(kinds or EVENTS))
    machine = RiscvMachine(path, memory=32 << 20, clock="instructions", accelerator=accelerator, tracer=tracer)
    with machine:
        assert machine.run(timeout=120).outcome is Outcome.SHUTDOWN
    return events, machine


@ENGINES
def test_every_instruction_is_told_once_in_order_with_what_it_changed(loop: Path, accelerator: str) -> None:
    events, machine = traced(loop, accelerator, "instructions")
    assert [event.retired for event in events] == list(range(machine.hart.retired))
    registers: dict[str, int | str] = dict.fromkeys(ABI_NAMES, 0)
    for event in events:
        registers |= event.details
    assert registers == dict(zip(ABI_NAMES, machine.hart.x, strict=False))


@ENGINES
def test_watching_changes_nothing(accelerator: str) -> None:
    events, watched = traced(image("user", "riscv64"), accelerator)
    with RiscvMachine(
        image("user", "riscv64"), memory=32 << 20, clock="instructions", accelerator=accelerator
    ) as machine:
        result = machine.run(timeout=120)
        assert type(machine.hart) is (Hart if accelerator == INTERPRET else TranslatingHart)
    assert len(events) > watched.hart.retired
    assert bytes(watched._output) == result.console
    assert (watched.hart.retired, watched.hart.traps) == (machine.hart.retired, machine.hart.traps)


@ENGINES
def test_the_counts_of_a_run_are_the_counts_of_its_trace(accelerator: str) -> None:
    events, machine = traced(image("user", "riscv64"), accelerator, "blocks", "traps", "chains", "exits", "lookups")
    told = {kind: [event for event in events if event.kind == kind] for kind in EVENTS}
    code = machine.hart.code
    assert len(told["traps"]) == machine.hart.traps > 0
    assert sum(event.details["result"] == "miss, made" for event in told["lookups"]) == code.made
    if isinstance(code, TranslatedCode):
        assert len(told["chains"]) == code.chained > 0
        assert len(told["exits"]) == machine.hart.figures["left"]
        assert all(event.duration and event.details["bytes"] for event in told["blocks"])
        assert {"load", "store", "chain", "jump"} <= {str(event.details["reason"]) for event in told["exits"]}


@ENGINES
def test_code_that_overwrites_itself_is_seen_to(tmp_path: Path, accelerator: str) -> None:
    events, machine = traced(write_raw(tmp_path, OVERWRITES_ITSELF), accelerator)
    assert machine.hart.x[10] == 65
    assert any(event.kind == "flushes" and event.details["reason"] == "store" for event in events)
    assert [
        event.text.split("  ")[0] for event in events if event.pc == RAM_BASE + 12 and event.kind == "instructions"
    ] == [
        "addi a0,a0,1",
        "addi a0,a0,64",
    ]


def test_a_program_s_system_calls_are_told_with_their_results(tmp_path: Path) -> None:
    program = compile_program(tmp_path, "long start(long *stack) { return CALL(READ, 99, stack, 1, 0) == -9 ? 3 : 4; }")
    events: list[Event] = []
    with Process(program, tracer=Tracer(events.append, frozenset({"traps"}))) as process:
        assert process.run(30).code == 3
    assert [event.text for event in events] == ["system call 63: 0xfffffffffffffff7"]


@ENGINES
def test_the_json_is_a_trace_that_viewers_open(loop: Path, accelerator: str) -> None:
    file = io.StringIO()
    writer = TraceFile(file, as_json=True)
    with RiscvMachine(loop, accelerator=accelerator, tracer=Tracer(writer)) as machine:
        machine.run(timeout=60)
    writer.finish()
    events = json.loads(file.getvalue())
    assert len(events) == writer.seen + 1
    for event in events:
        assert event["ph"] in "MXi"
        assert {"name", "pid", "tid"} <= set(event)
        if event["ph"] != "M":
            assert event["ts"] >= 0
            assert event["cat"] in EVENTS
            assert ("dur" in event) == (event["ph"] == "X")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_trace_is_bounded_and_says_what_it_left_out(loop: Path, as_json: bool) -> None:
    file = io.StringIO()
    writer = TraceFile(file, as_json=as_json, limit=100)
    with RiscvMachine(loop, tracer=Tracer(writer)) as machine:
        assert machine.run(timeout=60).outcome is Outcome.SHUTDOWN
    writer.finish()
    assert writer.left_out == writer.seen - 100 > 0
    if as_json:
        assert json.loads(file.getvalue())[-1]["args"]["events"] == writer.left_out
    else:
        lines = file.getvalue().splitlines()
        assert len(lines) == 101
        assert f"{writer.left_out:,} more" in lines[-1]


class FullDisk(io.StringIO):
    """What a file is like when nothing more fits."""

    def write(self, text: str, /) -> int:
        raise OSError(28, f"No space left on device for {len(text)} more")


def test_a_full_disk_is_told_at_the_end_and_does_not_end_the_guest(loop: Path) -> None:
    writer = TraceFile(FullDisk())
    with RiscvMachine(loop, tracer=Tracer(writer)) as machine:
        assert machine.run(timeout=60).outcome is Outcome.SHUTDOWN
    with pytest.raises(HostError, match="could not be written"):
        writer.finish()
