"""The bench program in containers: a Kind of the table of consolidation."""

from __future__ import annotations

import time

from toolkit.compare.containers import Engine, socket_of
from toolkit.compare.linux.kinds import Running, await_ready
from toolkit.compare.linux.memory import Memory, memory_of, parent_of
from toolkit.compare.session import Session
from toolkit.compare.techniques import Obstacle
from toolkit.host import Host, State


class RunningContainer:
    """A container whose program has said that it is ready."""

    def __init__(self, session: Session, began: int, pid: int) -> None:
        self.session = session
        self.started = float(await_ready(session) - began)
        self._pid = pid

    def memory(self) -> Memory:
        """The program, and the process that watches over it (Docker's containerd-shim, Podman's conmon)."""
        return Memory(memory_of(self._pid).own + memory_of(parent_of(self._pid)).own, 0)


class Containers:
    """The bench program in containers."""

    name = "container"

    def __init__(self, host: Host) -> None:
        self._fact = host["containers"]
        self._engine: Engine | None = None

    def obstacle(self) -> Obstacle | None:
        """There may be no engine that answers."""
        if self._fact.state is State.OK:
            return None
        return Obstacle(f"{self._fact.value}: {self._fact.cause}", self._fact.remedy)

    def open(self) -> Running:
        """See Kind. Raises EngineError, SessionLost."""
        from guest_os.hosted import linux_program

        if self._engine is None:
            self._engine = Engine(socket_of(self._fact.value), linux_program("bench"))
        self._engine.connect()  # the image is not part of the time to start
        began = time.monotonic_ns()
        started = self._engine.run()
        return RunningContainer(started.session, began, started.pid)

    def close(self) -> None:
        """Removes the image."""
        if self._engine is not None:
            self._engine.close()
