"""How soon a guest says its first byte: a Machine with its devices, built in a warm process, against QEMU microvm.

Ours: from before the constructor to the console callback. QEMU's: from before the process is spawned to the first byte
on its serial port, with the better of its two accelerators; the same guest file, the same devices.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from pathlib import Path

import guest_os
from benchmarks import Effort, Figure
from benchmarks.statistics import Summary, summarize
from minivmm import Boot, Disk, Machine
from minivmm.errors import HostError
from minivmm.kvm.closing import wait_until_closed
from toolkit.qemu.find import find_qemu
from toolkit.qemu.microvm import Accelerator, Microvm

MAX_MS = 3.0
MIN_SOONER = 10.0


def run(effort: Effort) -> list[Figure]:
    """Milliseconds to the first byte, ours and QEMU's."""
    image = guest_os.image("hello")
    with tempfile.TemporaryDirectory() as directory:
        disk = Path(directory) / "disk.img"
        guest_os.write_disk(disk, 1 << 20)
        _machine(image, disk)
        ours = summarize([_machine(image, disk) for _ in range(2 * effort.rounds)])
        qemu = {}
        missing = []
        for accelerator in Accelerator:
            try:
                qemu[accelerator.value] = _qemu(image, disk, accelerator, effort.rounds)
            except (HostError, OSError) as error:
                missing.append(f"{accelerator.value}: {error}")
    figures = [
        Figure("first byte, warm process", "ms", *ours, bound=f"<= {MAX_MS:g} ms", met=ours.median <= MAX_MS),
    ]
    if missing:
        figures.append(Figure("first byte against QEMU", "ms", None, note="; ".join(missing)))
    if qemu:
        better = min(qemu, key=lambda name: qemu[name].median)
        peer = qemu[better]
        sooner = peer.median / ours.median
        figures.append(
            Figure(
                "first byte against QEMU",
                "ms",
                *ours,
                f"QEMU microvm, {better}",
                *peer,
                f">= {MIN_SOONER:g}x sooner",
                sooner >= MIN_SOONER,
                f"{sooner:.1f}x sooner",
            )
        )
        figures.extend(
            Figure("first byte against QEMU", "ms", *ours, f"QEMU microvm, {name}", *qemu[name])
            for name in qemu
            if name != better
        )
    return figures


def _machine(image: Path, disk: Path) -> float:
    """Milliseconds from nothing to the guest's first byte."""
    first: list[int] = []

    def stamp(data: bytes) -> None:  # noqa: ARG001
        if not first:
            first.append(time.perf_counter_ns())

    wait_until_closed()  # or the end of the machine before would be measured too
    start = time.perf_counter_ns()
    with Machine(image, boot=Boot.LINUX64, disks=[Disk(disk)], rng=True, console=stamp) as machine:
        machine.run(timeout=30)
    return (first[0] - start) / 1e6


def _qemu(image: Path, disk: Path, accelerator: Accelerator, rounds: int) -> Summary:
    """QEMU's milliseconds, with nothing in its way: not paused at the start, nobody speaking QMP to it."""
    binary = find_qemu("x86_64")
    if accelerator.value not in binary.accelerators:
        raise HostError(f"QEMU has no accelerator {accelerator.value}")
    config = Microvm(image, accelerator, disks=(Disk(disk),), rng=True)
    samples = []
    for _ in range(rounds + 1):
        ours, serial = socket.socketpair()
        control, qmp = socket.socketpair()
        with ours, control, serial, qmp:
            fds = (qmp.fileno(), serial.fileno())
            command = config.arguments(binary.path, qmp=fds[0], serial=fds[1], hvc=None, paused=False)
            ours.settimeout(30)
            start = time.perf_counter_ns()
            with subprocess.Popen(command, pass_fds=fds, stderr=subprocess.DEVNULL) as process:
                try:
                    said = ours.recv(1)
                    samples.append((time.perf_counter_ns() - start) / 1e6)
                finally:
                    process.kill()
            if not said:
                raise HostError("the guest said nothing under QEMU")
    return summarize(samples[1:])
