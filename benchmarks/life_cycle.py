"""Whether machines leave anything behind: file descriptors and resident memory before and after many of them."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from benchmarks import Effort, Figure
from benchmarks.guests import write_elf
from benchmarks.statistics import summarize
from minivmm import Disk, Machine, Outcome
from minivmm.kvm.closing import wait_until_closed

EXIT_AT_ONCE = b"\xb0\x00\xe6\xf4"  # mov al, 0; out 0xf4, al
WARM_UP = 50
MAX_GROWTH_KIB = 2048  # over all cycles: an allocator's slack, far less than a page a machine


def resident_kib() -> int:
    """This process's resident set, in KiB (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE") // 1024


def open_fds() -> int:
    """How many file descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def run(effort: Effort) -> list[Figure]:
    """Runs `effort.cycles` machines with a disk and an rng, one after the other."""
    with tempfile.TemporaryDirectory() as directory:
        guest = write_elf(Path(directory) / "guest.elf", EXIT_AT_ONCE)
        disk = Path(directory) / "disk.img"
        disk.write_bytes(bytes(1 << 20))
        for _ in range(WARM_UP):
            cycle(guest, disk)
        wait_until_closed()
        fds, resident = open_fds(), resident_kib()
        samples = []
        for _ in range(effort.cycles):
            start = time.perf_counter_ns()
            cycle(guest, disk)
            samples.append((time.perf_counter_ns() - start) / 1e6)
        wait_until_closed()
        more_fds, growth = open_fds() - fds, resident_kib() - resident
    name = f"{effort.cycles} machines"
    return [
        Figure(f"{name}: file descriptors left", "", more_fds, bound="0", met=more_fds == 0),
        Figure(
            f"{name}: resident memory grown", "KiB", growth, bound=f"<= {MAX_GROWTH_KIB}", met=growth <= MAX_GROWTH_KIB
        ),
        Figure(f"{name}: made, run and closed, each", "ms", *summarize(samples)),
    ]


def cycle(guest: Path, disk: Path) -> None:
    """One machine's whole life."""
    with Machine(guest, memory=16 << 20, disks=[Disk(disk)], rng=True) as machine:
        result = machine.run(timeout=30)
    if result.outcome is not Outcome.SHUTDOWN:
        raise AssertionError(f"the machine ended otherwise: {result.outcome} {result.detail}")
