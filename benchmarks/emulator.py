"""Emulation of RISC-V: the interpreter, the translator and QEMU's user-mode translator run one and the same program.

Each run is a process of its own, as a user starts it. Once warm is the difference of two runs, a long and a short one,
of which everything but the work is the same; it counts processor time, since none of them ever waits. Rounds of the
engines alternate, so that whatever else the machine does hits all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import Effort, Figure, twin
from benchmarks.statistics import Summary, summarize
from minivmm.errors import HostError

MIN_INTERPRETED = 1.5  # million instructions a second
MIN_TRANSLATED = 100.0  # times the interpreter
MIN_AGAINST_QEMU = 1.0
MAX_WHOLE_RUN = 2.0  # times QEMU's

SHORT = 500  # batches: everything is translated by then
LONG = {"cpu": 8_500, "memory": 20_500}  # the work between is about a second's
INTERPRETED = (1, 9)  # batches: the interpreter takes a quarter of a second for one
WHOLE = 8_500  # batches of cpu: about a second under QEMU
DEADLINE = 120.0  # seconds
QEMU_NAMES = ("qemu-riscv64", "qemu-riscv64-static")
MISSING = "unsupported: qemu-riscv64 is not installed (sudo apt install qemu-user)"


class Run(NamedTuple):
    """One process that ran the program."""

    seconds: float
    """From spawn to exit."""
    busy: float
    """Seconds of processor time, user's and kernel's."""
    figures: dict[str, Any]
    """What `vtk run --json` told."""


def run(effort: Effort) -> list[Figure]:
    """Millions of guest instructions a second, and what translating costs."""
    program = twin.build_riscv64("emulated.c", ("cpu", "memory", "call"))
    qemu = next((path for name in QEMU_NAMES if (path := shutil.which(name))), None)
    figures = _engines(program, max(effort.rounds // 3, 1))
    for workload in LONG:
        figures.append(_warm(program, workload, qemu, effort.rounds))
    return [*figures, *_cold(program, qemu, effort.rounds)]


def _engines(program: Path, rounds: int) -> list[Figure]:
    """The interpreter, and the translator against it."""
    interpreted: list[float] = []
    translated: list[float] = []
    for _ in range(rounds):
        interpreted.append(_rate(*(_ours(program, "cpu", count, "interpret") for count in INTERPRETED)))
        translated.append(_rate(*(_ours(program, "cpu", count) for count in (SHORT, LONG["cpu"]))))
    slow, fast = summarize(interpreted), summarize(translated)
    unit = "MIPS"
    return [
        Figure(
            *("interpreter: cpu", unit, *slow),
            bound=f">= {MIN_INTERPRETED:g} {unit}",
            met=slow.median >= MIN_INTERPRETED,
        ),
        Figure(
            *("translator: cpu", unit, *fast, "interpreter", *slow),
            bound=f">= {MIN_TRANSLATED:g}x",
            met=fast.median / slow.median >= MIN_TRANSLATED,
        ),
    ]


def _warm(program: Path, workload: str, qemu: str | None, rounds: int) -> Figure:
    """The translator against QEMU's, once everything is translated."""
    ours: list[float] = []
    theirs: list[float] = []
    counts = (SHORT, LONG[workload])
    for _ in range(rounds):
        runs = [_ours(program, workload, count) for count in counts]
        ours.append(_rate(*runs))
        if qemu is not None:
            short, long = (_run([qemu, str(program), workload, str(count)]) for count in counts)
            theirs.append(_instructions(*runs) / (long.busy - short.busy) / 1e6)
    name, unit, mine = f"translator: {workload}, once warm", "MIPS", summarize(ours)
    if not theirs:
        return Figure(name, unit, *mine, note=MISSING)
    peer = summarize(theirs)
    met = mine.median / peer.median >= MIN_AGAINST_QEMU
    return Figure(name, unit, *mine, "qemu-riscv64", *peer, f">= {MIN_AGAINST_QEMU:g}x", met)


def _cold(program: Path, qemu: str | None, rounds: int) -> list[Figure]:
    """What a program costs from its start, and what translating has of it."""
    whole: list[float] = []
    theirs: list[float] = []
    costs: list[float] = []
    made: dict[str, Any] = {}
    for _ in range(rounds):
        ours = _ours(program, "cpu", WHOLE)
        made = ours.figures
        whole.append(ours.seconds)
        costs.append(made["translating_us"] / made["decoded"])
        if qemu is not None:
            theirs.append(_run([qemu, str(program), "cpu", str(WHOLE)]).seconds)
    mine = summarize(whole)
    name = "translator: a whole run of a second"
    cost = summarize(costs)
    share = cost.median * made["decoded"] / 1000
    figures = [
        Figure(
            *("translating", "us/instruction", *cost),
            note=f"{made['decoded']} instructions in {made['blocks']} blocks: {share:.0f} ms of a run",
        )
    ]
    if qemu is None:
        return [Figure(name, "s", *mine, note=MISSING), *figures]
    peer, buffer = summarize(theirs), _qemu_buffer(qemu, program)
    met = mine.median / peer.median <= MAX_WHOLE_RUN
    size = Summary(made["bytes"] / 1024, 0.0)
    return [
        Figure(name, "s", *mine, "qemu-riscv64", *peer, f"<= {MAX_WHOLE_RUN:g}x", met),
        *figures,
        Figure(
            *("machine code made", "KiB", *size, "qemu-riscv64", buffer.size / 1024, 0.0),
            note=f"{made['blocks']} blocks; QEMU's {buffer.blocks}, the time it takes it does not tell",
        ),
    ]


class _Buffer(NamedTuple):
    blocks: int
    size: int  # bytes


def _qemu_buffer(qemu: str, program: Path) -> _Buffer:
    """What QEMU translates of the program, by its own log."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        _run([qemu, "-d", "out_asm", "-D", str(log), str(program), "cpu", "1"])
        sizes = [int(size) for size in re.findall(r"^OUT: \[size=(\d+)\]", log.read_text(errors="replace"), re.M)]
    return _Buffer(len(sizes), sum(sizes))


def _instructions(short: Run, long: Run) -> int:
    return int(long.figures["instructions"] - short.figures["instructions"])


def _rate(short: Run, long: Run) -> float:
    """Million instructions a second of what the long run does more."""
    return _instructions(short, long) / (long.busy - short.busy) / 1e6


def _ours(program: Path, workload: str, batches: int, accelerator: str = "translate") -> Run:
    script = Path(sys.executable).with_name("vtk")  # what a user starts
    vtk = [str(script)] if script.exists() else [sys.executable, "-m", "toolkit.cli"]
    options = ["--user", "--json", "--accel", accelerator, "--timeout", str(DEADLINE)]
    return _run([*vtk, "run", *options, str(program), "--", workload, str(batches)])


def _run(command: Sequence[str]) -> Run:
    """Raises HostError when it fails."""
    # As installed packages are: with their byte code, whatever this shell says about writing it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, start = _children_busy(), time.perf_counter()
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=DEADLINE + 10,
        env=environment,
    )
    seconds, busy = time.perf_counter() - start, _children_busy() - before
    if done.returncode:
        raise HostError(f"{command[0]} exited with {done.returncode}", cause=done.stderr.decode(errors="replace"))
    if b'"end":' not in done.stdout + done.stderr:
        raise HostError(f"{command[0]} did not do the work", cause=done.stdout.decode(errors="replace"))
    report = done.stdout.rpartition(b'{"schema"')
    return Run(seconds, busy, json.loads(report[1] + report[2])["figures"] if report[1] else {})


def _children_busy() -> float:
    times = os.times()
    return times.children_user + times.children_system
