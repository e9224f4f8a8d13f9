"""The techniques that run what was compiled for another processor, RISC-V: minivmm's emulator, QEMU's machine, and
QEMU's processor alone beneath a Linux program."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from minivmm.errors import HostError
from toolkit.compare.results import TOTAL
from toolkit.compare.session import BenchMachine, MachineSession, ProcessSession, Session
from toolkit.compare.techniques.technique import Bench, Obstacle, bench_image, obstacle_of

RISCV64 = "riscv64"
COUNTED = ("instructions", "traps", "walks")
"""What the emulated hart counts of the guest, whoever executes it."""


class Emulated:
    """The bench guest on minivmm's RISC-V machine, in this process. `name` is the machine's accelerator."""

    def __init__(self, name: str, summary: str) -> None:
        self.name = name
        self.summary = summary

    def obstacle(self) -> Obstacle | None:
        """The guest may not build, or the host give no memory for machine code."""
        return obstacle_of(lambda: bench_image(RISCV64))

    def open(self, bench: Bench) -> Session:
        """See Technique."""
        from minivmm import Disk, RiscvMachine

        image = bench_image(RISCV64)
        machines: list[RiscvMachine] = []

        def build(console: Callable[[bytes], None]) -> BenchMachine:
            disks = [Disk(bench.disk, read_only=True)]
            machines.append(
                RiscvMachine(image, memory=bench.memory, disks=disks, console=console, accelerator=self.name)
            )
            return machines[0]

        def counters() -> dict[str, int]:
            counted = machines[0].exits
            found = {name: counted.get(name, 0) for name in COUNTED}
            if "left" in counted:  # an interpreter has nothing to leave
                found[TOTAL] = counted["left"]
            return found

        return MachineSession(build, lifetime=bench.lifetime, counters=counters)


class QemuVirt:
    """The same guest file on QEMU's machine of the same layout, over QMP. Translated by its TCG."""

    name = "qemu-system-riscv64"
    summary = "the same guest on QEMU's virt board, translated by its TCG"

    def obstacle(self) -> Obstacle | None:
        """There may be no QEMU for it."""
        from toolkit.qemu import find_qemu

        return obstacle_of(lambda: find_qemu(RISCV64)) or obstacle_of(lambda: bench_image(RISCV64))

    def open(self, bench: Bench) -> Session:
        """See Technique."""
        from minivmm import Disk
        from toolkit.qemu import QemuMachine
        from toolkit.qemu.virt import Virt

        shape = Virt(bench_image(RISCV64), memory=bench.memory, disks=[Disk(bench.disk, read_only=True)])

        def build(console: Callable[[bytes], None]) -> BenchMachine:
            return QemuMachine.shaped(shape, console=console)

        return MachineSession(build, lifetime=bench.lifetime)


class QemuUser:
    """The native program compiled for Linux on RISC-V, its instructions translated, its system calls this kernel's."""

    name = "qemu-riscv64"
    summary = "the native program for RISC-V, translated by qemu-user; system calls are this kernel's"

    def obstacle(self) -> Obstacle | None:
        """There may be no QEMU for it."""
        return obstacle_of(_find_qemu_user) or obstacle_of(_program)

    def open(self, bench: Bench) -> Session:
        """See Technique."""
        return ProcessSession([_find_qemu_user(), _program(), "--disk", bench.disk])


def _program() -> str:
    import guest_os

    return str(guest_os.native(RISCV64))


def _find_qemu_user() -> str:
    """The path of qemu-user for RISC-V, whichever of its two packages it comes from. Raises HostError."""
    for name in ("qemu-riscv64", "qemu-riscv64-static"):
        path = shutil.which(name)
        if path is not None:
            return path
    raise HostError("qemu-riscv64 is not installed", cause="it is not on PATH", remedy="sudo apt install qemu-user")
