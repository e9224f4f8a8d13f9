"""What Python adds to an exit: the real dispatch path (run loop, bus, UART) against a C loop on the same KVM.

Both run the same guest code, `out dx, al; jmp`, to the UART's scratch register. Rounds of the two alternate, so that
whatever else the machine does hits both.
"""

from __future__ import annotations

import fcntl
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks import Effort, Figure, twin
from benchmarks.guests import write_elf
from benchmarks.statistics import summarize
from minivmm import Machine
from minivmm.kvm import abi

SCRATCH = 0x3FF
OUT_LOOP = b"\xba\xff\x03\0\0\xb0\x5a\xee\xeb\xfd"  # mov edx, 0x3ff; mov al, 0x5a; again: out dx, al; jmp again
IN_LOOP = b"\xba\xff\x03\0\0\xec\xeb\xfd"  # mov edx, 0x3ff; again: in al, dx; jmp again

EXITS = 20_000
SECONDS = 0.25
SLOW_EXIT = 7000.0  # ns: from here on the promise is a ratio, below it an addition
MAX_RATIO = 1.25
MAX_ADDED = 800.0  # ns


def run(effort: Effort) -> list[Figure]:
    """Nanoseconds an exit in both, and what was promised of them."""
    program = twin.build("exit_loop.c")
    ours: list[float] = []
    inputs: list[float] = []
    bare: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        out_guest = write_elf(Path(directory) / "out.elf", OUT_LOOP)
        in_guest = write_elf(Path(directory) / "in.elf", IN_LOOP)
        for _ in range(effort.rounds):
            command = [str(program), hex(SCRATCH), str(EXITS), "irqchip"]
            theirs.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
            ours.append(_machine(out_guest))
            inputs.append(_machine(in_guest))
            bare.append(_bare(out_guest))
    mine, peer = summarize(ours), summarize(theirs)
    added = summarize([here - there for here, there in zip(ours, theirs, strict=True)])  # of one round each
    slow = peer.median >= SLOW_EXIT
    twin_name = "the same loop in C"
    return [
        Figure(
            "exit: out to a UART register",
            "ns",
            *mine,
            twin_name,
            *peer,
            f"<= {MAX_RATIO:g}x where an exit costs 7 us or more",
            mine.median / peer.median <= MAX_RATIO if slow else None,
        ),
        Figure(
            "exit: what that adds to C's",
            "ns",
            *added,
            bound=f"<= {MAX_ADDED:g} ns",
            met=added.median <= MAX_ADDED,
        ),
        Figure("exit: in from a UART register", "ns", *summarize(inputs), twin_name, *peer),
        Figure("exit: an empty Python loop around the ioctl", "ns", *summarize(bare), twin_name, *peer),
    ]


def _bare(guest: Path) -> float:
    """Nanoseconds an exit of a loop that does nothing with it: what no VMM in Python can go below."""
    with Machine(guest) as machine:
        ioctl, fd, run_vcpu = fcntl.ioctl, machine.processors[0].vcpu.fd, abi.KVM_RUN
        for _ in range(EXITS // 10):
            ioctl(fd, run_vcpu)
        start = time.perf_counter_ns()
        for _ in range(EXITS):
            ioctl(fd, run_vcpu)
        return (time.perf_counter_ns() - start) / EXITS


def _machine(guest: Path) -> float:
    """Nanoseconds an exit in a running Machine."""
    with Machine(guest) as machine:
        machine.start(timeout=60)
        time.sleep(SECONDS / 5)
        before, start = machine.exits["io"], time.perf_counter_ns()
        time.sleep(SECONDS)
        after, end = machine.exits["io"], time.perf_counter_ns()
    return (end - start) / (after - before)
