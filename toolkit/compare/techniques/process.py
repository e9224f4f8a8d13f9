"""The techniques whose workloads are a program of this host's kernel: a process, and the same file in a container."""

from __future__ import annotations

from toolkit.compare.session import ProcessSession, Session
from toolkit.compare.techniques.technique import REFERENCE, Bench, Obstacle, obstacle_of


class Native:
    """The workloads as an ordinary process of the host."""

    name = REFERENCE
    summary = "an ordinary process of this host: the 1.0 of the table"

    def obstacle(self) -> Obstacle | None:
        """The program may not build."""
        import guest_os

        return obstacle_of(guest_os.native)

    def open(self, bench: Bench) -> Session:
        """See Technique."""
        import guest_os

        return ProcessSession([guest_os.native(), "--disk", bench.disk])


class Container:
    """The same file, alone in a container: its own names of processes, files and users, the same kernel."""

    name = "container"
    summary = "the same program in a container: the host's kernel, seen through namespaces"

    def obstacle(self) -> Obstacle | None:
        """There may be no engine that answers, or the program may not build."""
        import guest_os
        from toolkit.compare.containers import find_engine

        return obstacle_of(find_engine) or obstacle_of(guest_os.native)

    def open(self, bench: Bench) -> Session:
        """See Technique."""
        import guest_os
        from toolkit.compare.containers import Engine, find_engine

        engine = Engine(find_engine(), guest_os.native())
        try:
            return engine.run("--disk", "/disk", files={"/disk": bench.disk}, close_engine=True).session
        except BaseException:
            engine.close()
            raise
