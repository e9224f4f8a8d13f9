"""What runs the same program several times over: a process, a container, a whole machine.

Kind (protocol)
├── Processes     the bench program as it is
├── Containers    (containers.py) in a container of its own, with nothing else in it
└── Machines      as the only program of a Linux in QEMU
"""

from __future__ import annotations

import time
from typing import Protocol

from toolkit.compare.linux.guest import LinuxGuest
from toolkit.compare.linux.machine import BOOT_TIMEOUT, LinuxMachine, OpenMachine
from toolkit.compare.linux.memory import Memory, memory_of
from toolkit.compare.session import ProcessSession, Session
from toolkit.compare.techniques import Obstacle
from toolkit.qemu.microvm import Accelerator


class Running(Protocol):
    """One that runs."""

    started: float
    """Nanoseconds from asking for it to its first line."""
    session: Session

    def memory(self) -> Memory:
        """What it costs the host now. Raises VtkError."""


class Kind(Protocol):
    """One column of the table of consolidation."""

    name: str

    def obstacle(self) -> Obstacle | None:
        """What stands in the way on this host."""

    def open(self) -> Running:
        """One more. Raises VtkError."""

    def close(self) -> None:
        """Gives back what all of them shared."""


class RunningProcess:
    """A session whose program has said that it is ready, and the process that costs the memory."""

    def __init__(self, process: ProcessSession, began: int) -> None:
        self.session: Session = process
        self.started = float(await_ready(process) - began)
        self._pid = process.pid

    def memory(self) -> Memory:
        """See Running."""
        return memory_of(self._pid)


class Processes:
    """The bench program as an ordinary process."""

    name = "process"

    def obstacle(self) -> Obstacle | None:
        """None: the guest's own program is the same file."""
        return None

    def open(self) -> Running:
        """See Kind."""
        from guest_os.hosted import linux_program

        program = linux_program("bench")
        began = time.monotonic_ns()
        return RunningProcess(ProcessSession([program]), began)

    def close(self) -> None:
        """Nothing is shared."""


class RunningMachine:
    """A machine that has booted."""

    def __init__(self, machine: OpenMachine, began: int) -> None:
        self.session: Session = machine
        self.started = float(machine.ready_at - began)
        self._machine = machine

    def memory(self) -> Memory:
        """See Running."""
        pid = self._machine.machine.pid
        assert pid is not None
        return memory_of(pid)


class Machines:
    """The bench program in a Linux of its own, on one of QEMU's machines."""

    def __init__(self, guest: LinuxGuest, type_: str, accelerator: Accelerator, lifetime: float) -> None:
        self.name = type_
        self._shape = LinuxMachine(guest, type_, accelerator)
        self._lifetime = lifetime

    def obstacle(self) -> Obstacle | None:
        """None: looked for before there is a guest."""
        return None

    def boot(self) -> RunningMachine:
        """A machine whose ready line is still to be read. Raises VtkError.

        QEMU starts at once, without the halt that lets a monitor see everything from the first moment.
        """
        began = time.monotonic_ns()
        return RunningMachine(OpenMachine(self._shape, paused=False, lifetime=self._lifetime), began)

    def open(self) -> Running:
        """See Kind."""
        running = self.boot()
        await_ready(running.session)
        return running

    def close(self) -> None:
        """Nothing is shared."""


def await_ready(session: Session) -> int:
    """When the ready line came (time.monotonic_ns()). Closes the session where it does not come. Raises SessionLost."""
    try:
        stamp, _ = session.read_line(time.monotonic() + BOOT_TIMEOUT)
    except BaseException:
        session.close()
        raise
    return stamp
