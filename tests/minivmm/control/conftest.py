"""A machine that runs in this process and answers on a socket, and somebody who speaks QMP to it byte by byte."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minivmm import Machine
from minivmm.control.controlled import AnyMachine, Controlled
from minivmm.control.server import QmpServer
from minivmm.outcome import RunResult
from tests.minivmm.images import write_elf

PATIENCE = 30.0  # seconds for what comes at once on an idle host


class Served:
    """A machine and its QMP socket."""

    def __init__(self, machine: Controlled, path: Path) -> None:
        self.machine = machine
        self.path = path
        self.result: RunResult | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.result = self.machine.run()

    def wait(self) -> RunResult:
        """How it ended."""
        self._thread.join(PATIENCE)
        assert self.result is not None, "the machine still runs"
        return self.result

    def connect(self) -> Speaker:
        """A connection that has been greeted."""
        return Speaker(self.path)


class Speaker:
    """A client without any manners of its own."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))
        self._lines = self.socket.makefile("rb")
        self.greeting = self.read()

    def read(self) -> dict[str, Any]:
        """The next line; {} at the end of the stream."""
        line = self._lines.readline()
        assert line == b"" or line.endswith(b"\r\n")
        content: dict[str, Any] = json.loads(line) if line else {}
        return content

    def say(self, text: bytes) -> dict[str, Any]:
        """Sends `text` as it is, and returns what comes next."""
        self.socket.sendall(text)
        return self.read()

    def negotiate(self) -> Speaker:
        """Leaves capabilities negotiation."""
        assert self.say(b'{"execute": "qmp_capabilities"}') == {"return": {}}
        return self

    def ask(self, command: str, **arguments: Any) -> Any:
        """The value that the command returns, whatever events come before it."""
        answer = self.say(json.dumps({"execute": command, "arguments": arguments}).encode())
        while "event" in answer:
            answer = self.read()
        return answer["return"]

    def close(self) -> None:
        """Hangs up."""
        self._lines.close()
        self.socket.close()


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Runs a machine with `code` in it, or the one that `make` makes, and serves it until the test ends."""
    with contextlib.ExitStack() as held:

        def begin(
            code: bytes = b"", *, cpus: int = 1, paused: bool = False, make: Callable[[], AnyMachine] | None = None
        ) -> Served:
            image = write_elf(tmp_path, code)
            machine = held.enter_context(
                Controlled("m", make or (lambda: Machine(image, cpus=cpus, memory=16 << 20)), paused=paused)
            )
            listener = held.enter_context(socket.socket(socket.AF_UNIX))
            path = tmp_path / "qmp.sock"
            listener.bind(str(path))
            listener.listen()
            held.enter_context(QmpServer(listener, machine))
            served = Served(machine, path)
            held.callback(served.wait)
            held.callback(machine.quit, "host-signal", "the test is over")
            return served

        yield begin
