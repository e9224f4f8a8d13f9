"""Containers with nothing in them but the bench program, on whatever engine answers here: Docker's, or Podman's.

The engine is found (toolkit.host), never started. Its image is made from one file and removed in the end.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import socket
import tarfile
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from minivmm.errors import HostError
from toolkit.compare.linux.kinds import Running, await_ready
from toolkit.compare.linux.memory import Memory, memory_of, parent_of
from toolkit.compare.session import LineBuffer, Session, SessionEnded, read_line
from toolkit.compare.techniques import Obstacle
from toolkit.host import Host, State

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

PROGRAM = "bench"
REPOSITORY = "vtk-compare"
API_TIMEOUT = 30  # seconds for one answer of the engine


class EngineError(HostError):
    """The container engine refused, or does not answer."""


class SocketSession:
    """A container's terminal: commands to it, lines from it. `close` removes the container."""

    def __init__(self, line: socket.socket, container: Container) -> None:
        self._line = line
        self._container = container
        self._buffer = LineBuffer()
        self._poll = select.poll()
        self._poll.register(line, select.POLLIN)

    def send_line(self, line: str) -> None:
        """See Session."""
        try:
            self._line.sendall(line.encode() + b"\n")
        except OSError as error:
            raise SessionEnded("the container has ended", cause=error.strerror or str(error)) from error

    def read_line(self, deadline: float) -> tuple[int, bytes]:
        """See Session."""
        line = read_line(self._line.fileno(), self._poll, self._buffer, deadline)
        if line is None:
            raise SessionEnded("the container has ended")
        return line

    def exits(self) -> dict[str, int]:
        """A container has none."""
        return {}

    def text(self) -> str:
        """See Session."""
        return self._buffer.text()

    def close(self) -> None:
        """See Session."""
        self._line.close()
        with contextlib.suppress(EngineError), _engine_errors("remove the container"):
            self._container.remove(force=True)


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
        self._client: DockerClient | None = None
        self._image = ""

    def obstacle(self) -> Obstacle | None:
        """There may be no engine that answers."""
        if self._fact.state is State.OK:
            return None
        return Obstacle(f"{self._fact.value}: {self._fact.cause}", self._fact.remedy)

    def open(self) -> Running:
        """See Kind. Raises EngineError, SessionLost."""
        with _engine_errors("run a container"):
            client = self._connected()
            began = time.monotonic_ns()
            container = client.containers.create(
                self._image, [f"/{PROGRAM}"], stdin_open=True, tty=True, network_mode="none"
            )
            try:
                stream: Any = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
                line = socket.socket(fileno=os.dup(stream.fileno()))
                line.setblocking(True)
                stream.close()
                container.start()
                container.reload()
                pid = int(container.attrs["State"]["Pid"])
            except BaseException:
                container.remove(force=True)
                raise
        return RunningContainer(SocketSession(line, container), began, pid)

    def close(self) -> None:
        """Removes the image."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(EngineError), _engine_errors("remove the image"):
                client.images.remove(self._image, force=True)
            client.close()

    def _connected(self) -> DockerClient:
        """The engine, with our image in it."""
        if self._client is None:
            import docker

            # The fact reads "Docker 28.2.2, /var/run/docker.sock".
            path = self._fact.value.rpartition(", ")[2]
            self._client = docker.DockerClient(base_url=f"unix://{path}", timeout=API_TIMEOUT)
            # A name for each vtk, with a host: Podman 4.3 ignores the tag, and looks for other names in a registry.
            repository = f"localhost/{REPOSITORY}-{os.getpid()}"
            self._client.api.import_image_from_data(_root(), repository=repository, tag="latest")
            self._image = f"{repository}:latest"
        return self._client


def _root() -> bytes:
    """A root file system of one program, as a tar archive."""
    from guest_os.hosted import linux_program

    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        entry = tarfile.TarInfo(PROGRAM)
        data = linux_program(PROGRAM).read_bytes()
        entry.size, entry.mode = len(data), 0o755
        archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


@contextlib.contextmanager
def _engine_errors(doing: str) -> Iterator[None]:
    """What the engine, or the way to it, says against it, as an EngineError."""
    import requests
    from docker.errors import DockerException

    try:
        yield
    except (DockerException, requests.RequestException, OSError) as error:
        raise EngineError(f"the container engine did not {doing}", cause=str(error), remedy="vtk doctor") from error
