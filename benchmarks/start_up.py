"""Whole processes, as a user starts them: `vtk --help`, `vtk run hello`, and QEMU with the same guest."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import guest_os
from benchmarks import Effort, Figure
from benchmarks.statistics import Summary, summarize
from minivmm.errors import HostError
from toolkit.qemu.find import find_qemu

MAX_HELP_MS = 150.0
MAX_RUN_MS = 120.0
DEBUG_EXIT = ("-device", "isa-debug-exit,iobase=0xf4,iosize=0x04")


def run(effort: Effort) -> list[Figure]:
    """Milliseconds from spawn to exit."""
    image = guest_os.image("hello")
    rounds = 2 * effort.rounds
    script = Path(sys.executable).with_name("vtk")  # what a user starts
    vtk = [str(script)] if script.exists() else [sys.executable, "-m", "toolkit.cli"]
    bare = _time([sys.executable, "-c", "pass"], rounds)
    shown_help = _time([*vtk, "--help"], rounds)
    hello = _time([*vtk, "run", "hello"], rounds)
    figures = [
        Figure(
            "vtk --help",
            "ms",
            *shown_help,
            "python -c pass",
            *bare,
            f"<= {MAX_HELP_MS:g} ms",
            shown_help.median <= MAX_HELP_MS,
        )
    ]
    promise = (f"<= {MAX_RUN_MS:g} ms", hello.median <= MAX_RUN_MS)
    try:
        qemu = find_qemu("x86_64")
    except HostError as error:
        return [*figures, Figure("vtk run hello", "ms", *hello, "", None, 0.0, *promise, note=error.message)]
    machine = [qemu.path, "-M", "microvm,acpi=off", "-nodefaults", "-no-user-config", "-display", "none", *DEBUG_EXIT]
    for accelerator, cpu in (("tcg", "max"), ("kvm", "host,-arch-capabilities")):
        if accelerator not in qemu.accelerators:
            continue
        command = [*machine, "-accel", accelerator, "-cpu", cpu, "-serial", "stdio", "-kernel", str(image)]
        try:
            peer = _time(command, effort.rounds, expected=1)
        except HostError:
            continue
        figures.append(Figure("vtk run hello", "ms", *hello, f"QEMU microvm, {accelerator}", *peer, *promise))
    return figures


def _time(command: list[str], rounds: int, *, expected: int = 0) -> Summary:
    """Milliseconds of `command`, first run (cold caches) left out. Raises HostError when it fails."""
    # As installed packages are: with their byte code, whatever this shell says about writing it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    samples = []
    for _ in range(rounds + 1):
        start = time.perf_counter_ns()
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60, env=environment
        )
        samples.append((time.perf_counter_ns() - start) / 1e6)
        if ended.returncode != expected:
            raise HostError(f"{command[0]} exited with {ended.returncode}", cause=ended.stderr.decode(errors="replace"))
    return summarize(samples[1:])
