"""The techniques compared. One table; a new technique is one class, or one entry of a class that is here.

Every technique runs the same workload sources; machines the same guest file with the same disk file, a domain the same
kernel on Xen's interface instead of the hardware's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from minivmm.errors import VtkError
from toolkit.compare.results import HYPERCALL, TOTAL
from toolkit.compare.session import BenchMachine, MachineSession, ProcessSession, Session

REFERENCE = "native"
"""The technique whose time is 1.0 and whose checksum is right."""


class Bench(NamedTuple):
    """What every technique is given."""

    disk: Path
    """The disk of the blk-* workloads. Read-only: it is open in several machines at once."""
    memory: int
    """Guest memory, bytes."""
    lifetime: float
    """Seconds after which a machine ends by itself, whatever became of us."""


class Obstacle(NamedTuple):
    """Why a technique cannot run here."""

    reason: str
    remedy: str


class Technique(Protocol):
    """One column of the table."""

    name: str
    summary: str
    """One line for a person."""

    def obstacle(self) -> Obstacle | None:
        """What stands in the way on this host; None when the technique should work."""

    def open(self, bench: Bench) -> Session:
        """A running bench program. Raises VtkError when it does not start."""


class Native:
    """The workloads as an ordinary process of the host."""

    name = REFERENCE
    summary = "an ordinary process of this host: the 1.0 of the table"

    def obstacle(self) -> Obstacle | None:
        """The program may not build."""
        import guest_os

        return _obstacle(guest_os.native)

    def open(self, bench: Bench) -> Session:
        """See Technique."""
        import guest_os

        return ProcessSession([guest_os.native(), "--disk", bench.disk])


class Hvm:
    """Our own hypervisor, in this process. `notify` is the machine's: who carries virtio notifications."""

    def __init__(self, name: str, notify: str, summary: str) -> None:
        self.name = name
        self.summary = summary
        self._notify = notify

    def obstacle(self) -> Obstacle | None:
        """There may be no KVM, or no right to use it."""
        return _obstacle(_open_kvm) or _obstacle(_bench_image)

    def open(self, bench: Bench) -> Session:
        """See Technique."""
        from minivmm import Disk, Machine

        image = _bench_image()
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
        return _obstacle(_open_kvm) or _obstacle(_bench_domain)

    def open(self, bench: Bench) -> Session:
        """See Technique."""
        from minivmm import XenMachine

        image = _bench_domain()
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

        missing = _obstacle(find_qemu)
        if missing is None and self._accelerator == "kvm":
            missing = _obstacle(_open_kvm)
        return missing or _obstacle(_bench_image)

    def open(self, bench: Bench) -> Session:
        """See Technique."""
        from minivmm import Disk
        from toolkit.qemu import Accelerator, QemuMachine

        image = _bench_image()
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


TECHNIQUES: tuple[Technique, ...] = (
    Native(),
    Hvm("hvm", "inline", "minivmm on KVM: full virtualization with the CPU's help"),
    Paravirt(),
    Qemu("qemu-kvm", "kvm", "QEMU microvm on the same KVM"),
    Qemu("qemu-tcg", "tcg", "QEMU microvm, every instruction translated by its TCG"),
)

BY_NAME = {technique.name: technique for technique in TECHNIQUES}


def exits_of(counters: dict[str, int]) -> dict[str, int]:
    """The exits among KVM's per-vCPU counters, which also count other things."""
    return {name: count for name, count in counters.items() if name == TOTAL or name.endswith("_exits")}


def _bench_image() -> Path:
    import guest_os

    return guest_os.image("bench")


def _bench_domain() -> Path:
    import guest_os

    return guest_os.image("bench", "xen")


def _open_kvm() -> None:
    """Raises HostError unless this user can open a KVM that works."""
    from minivmm.kvm.system import Kvm

    Kvm().close()


def _obstacle(needed: Callable[[], object]) -> Obstacle | None:
    """What `needed` raises, as an obstacle."""
    try:
        needed()
    except VtkError as error:
        return Obstacle(": ".join(filter(None, (error.message, error.cause))), error.remedy)
    return None
