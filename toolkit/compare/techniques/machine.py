"""The techniques that make a machine of this processor: minivmm on KVM, a Xen domain, QEMU's microvm."""

from __future__ import annotations

from collections.abc import Callable

from toolkit.compare.results import HYPERCALL, TOTAL
from toolkit.compare.session import BenchMachine, MachineSession, Session
from toolkit.compare.techniques.technique import Bench, Obstacle, bench_image, obstacle_of


class Hvm:
    """Our own hypervisor, in this process. `notify` is the machine's: who carries virtio notifications."""

    def __init__(self, name: str, notify: str, summary: str) -> None:
        self.name = name
        self.summary = summary
        self._notify = notify

    def obstacle(self) -> Obstacle | None:
        """There may be no KVM, or no right to use it."""
        return obstacle_of(open_kvm) or obstacle_of(bench_image)

    def open(self, bench: Bench) -> Session:
        """See Technique."""
        from minivmm import Disk, Machine

        image = bench_image()
        machines: list[Machine] = []

        def build(console: Callable[[bytes], None]) -> BenchMachine:
            disks = [Disk(bench.disk, read_only=True)]
            machines.append(Machine(image, memory=bench.memory, disks=disks, console=console, notify=self._notify))
            machines[0].kernel_stats()  # opens the counters: once a vCPU runs, that waits for its next exit
            return machines[0]

        def counters() -> dict[str, int]:
            to_user = machines[0].exits
            total = {TOTAL: sum(to_user.values())}  # all that is known where KVM has no counters
            counted = exits_of(machines[0].kernel_stats())
            return total | counted | {f"user_{reason}": count for reason, count in to_user.items()}

        return MachineSession(build, lifetime=bench.lifetime, counters=counters)


class Paravirt:
    """The bench guest as a paravirtual Xen domain of our own hypervisor, in this process. It gets no disk."""

    name = "paravirt"
    summary = "a Xen domain on minivmm: a kernel that asks for what it may not do"

    def obstacle(self) -> Obstacle | None:
        """There may be no KVM, or no right to use it."""
        return obstacle_of(open_kvm) or obstacle_of(lambda: bench_image("xen"))

    def open(self, bench: Bench) -> Session:
        """See Technique."""
        from minivmm import XenMachine

        image = bench_image("xen")
        machines: list[XenMachine] = []

        def build(console: Callable[[bytes], None]) -> BenchMachine:
            machines.append(XenMachine(image, memory=bench.memory, console=console))
            machines[0].kernel_stats()  # as Hvm does
            return machines[0]

        def counters() -> dict[str, int]:
            domain = machines[0].domain
            own = {f"{HYPERCALL}{name}": count for name, count in dict(domain.hypercalls).items()}
            own |= {f"trap_{vector}": count for vector, count in dict(domain.traps_taken).items()}
            own |= {f"domain_{reason.replace(' ', '_')}": count for reason, count in dict(domain.exits).items()}
            total = {TOTAL: sum(own.values())}  # all that is known where KVM has no counters
            return total | exits_of(machines[0].kernel_stats()) | own

        return MachineSession(build, lifetime=bench.lifetime, counters=counters)


class Qemu:
    """The same machine made by QEMU: `-M microvm` with the same devices, driven over QMP.

    Disks are QEMU's defaults for a raw file: cache=writeback, through the host's page cache as minivmm's, and
    aio=threads.
    """

    def __init__(self, name: str, accelerator: str, summary: str) -> None:
        self.name = name
        self.summary = summary
        self._accelerator = accelerator

    def obstacle(self) -> Obstacle | None:
        """There may be no QEMU, or no KVM for it to use."""
        from toolkit.qemu import find_qemu

        missing = obstacle_of(find_qemu)
        if missing is None and self._accelerator == "kvm":
            missing = obstacle_of(open_kvm)
        return missing or obstacle_of(bench_image)

    def open(self, bench: Bench) -> Session:
        """See Technique."""
        from minivmm import Disk
        from toolkit.qemu import Accelerator, QemuMachine

        image = bench_image()
        machines: list[QemuMachine] = []

        def build(console: Callable[[bytes], None]) -> BenchMachine:
            machines.append(
                QemuMachine(
                    image,
                    memory=bench.memory,
                    disks=[Disk(bench.disk, read_only=True)],
                    console=console,
                    accelerator=Accelerator(self._accelerator),
                )
            )
            return machines[0]

        def counters() -> dict[str, int]:
            return exits_of(machines[0].kernel_stats())

        return MachineSession(build, lifetime=bench.lifetime, counters=counters)


def exits_of(counters: dict[str, int]) -> dict[str, int]:
    """The exits among KVM's per-vCPU counters, which also count other things."""
    return {name: count for name, count in counters.items() if name == TOTAL or name.endswith("_exits")}


def open_kvm() -> None:
    """Raises HostError unless this user can open a KVM that works."""
    from minivmm.kvm.system import Kvm

    Kvm().close()
