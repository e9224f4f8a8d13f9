"""Containers with nothing in them but one static program, on whatever engine answers here: Docker's, or Podman's.

The engine is found (toolkit.host), never started. The image is made from one file, without a registry, and removed in
the end.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import select
import socket
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minivmm.errors import HostError
from toolkit.compare.session import LineBuffer, Session, SessionEnded, read_line

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

PROGRAM = "bench"
REPOSITORY = "vtk-compare"
API_TIMEOUT = 30  # seconds for one answer of the engine


class EngineError(HostError):
    """The container engine refused, or does not answer."""


class SocketSession:
    """A container's terminal: commands to it, lines from it. `close` removes the container, and then does `after`."""

    def __init__(self, line: socket.socket, container: Container, after: Callable[[], None]) -> None:
        self._line = line
        self._container = container
        self._after = after
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
        with contextlib.suppress(EngineError), engine_errors("remove the container"):
            self._container.remove(force=True)
        self._after()


class Started(NamedTuple):
    """A container that runs."""

    session: Session
    pid: int
    """Its program, on this host."""


class Engine:
    """The engine that listens at `path`, and in it an image of nothing but `program`."""

    _count = itertools.count()

    def __init__(self, path: str, program: Path) -> None:
        self._path = path
        self._program = program
        self._client: DockerClient | None = None
        self._image = ""

    def run(self, *arguments: str, files: Mapping[str, Path] | None = None, close_engine: bool = False) -> Started:
        """Starts the program in a container. files: what of the host it sees, read-only, by the path it has there.
        close_engine: the session's end is the engine's. Raises EngineError."""
        with engine_errors("run a container"):
            from docker.types import Mount

            client = self.connect()
            mounts = [Mount(there, str(here), "bind", read_only=True) for there, here in (files or {}).items()]
            container = client.containers.create(
                self._image,
                [f"/{PROGRAM}", *arguments],
                stdin_open=True,
                tty=True,
                network_mode="none",
                mounts=mounts,
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
        return Started(SocketSession(line, container, self.close if close_engine else _nothing), pid)

    def close(self) -> None:
        """Removes the image. May be called again."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(EngineError), engine_errors("remove the image"):
                client.images.remove(self._image, force=True)
            client.close()

    def connect(self) -> DockerClient:
        """The engine, with our image in it. Raises EngineError."""
        if self._client is None:
            import docker

            with engine_errors("answer"):
                client = docker.DockerClient(base_url=f"unix://{self._path}", timeout=API_TIMEOUT)
            # A name for each, with a host: Podman 4.3 ignores the tag, and looks for other names in a registry.
            repository = f"localhost/{REPOSITORY}-{os.getpid()}-{next(self._count)}"
            try:
                with engine_errors("take our image"):
                    client.api.import_image_from_data(_root(self._program), repository=repository, tag="latest")
            except BaseException:
                client.close()
                raise
            self._client, self._image = client, f"{repository}:latest"
        return self._client


def find_engine() -> str:
    """The path of the socket of an engine that answers. Raises EngineError."""
    from toolkit.host import State, container_engine

    fact = container_engine()
    if fact.state is not State.OK:
        raise EngineError(fact.value, cause=fact.cause, remedy=fact.remedy)
    return socket_of(fact.value)


def socket_of(fact: str) -> str:
    """The socket in what the doctor says of the engine: "Docker 28.2.2, /var/run/docker.sock"."""
    return fact.rpartition(", ")[2]


@contextlib.contextmanager
def engine_errors(doing: str) -> Iterator[None]:
    """What the engine, or the way to it, says against it, as an EngineError."""
    import requests
    from docker.errors import DockerException

    try:
        yield
    except (DockerException, requests.RequestException, OSError) as error:
        raise EngineError(f"the container engine did not {doing}", cause=str(error), remedy="vtk doctor") from error


def _root(program: Path) -> bytes:
    """A root file system of one program, as a tar archive."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        entry = tarfile.TarInfo(PROGRAM)
        data = program.read_bytes()
        entry.size, entry.mode = len(data), 0o755
        archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def _nothing() -> None:
    """What comes after a session whose engine stays."""
