"""An engine that answers and then refuses is a failed cell with its reason, and of no other technique."""

from __future__ import annotations

import socketserver
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from toolkit.cli import invoke
from toolkit.compare.containers import EngineError, find_engine, socket_of
from toolkit.compare.results import Status, load

VERSION = b'{"Version":"1.0","ApiVersion":"1.41"}'


class Refusing(BaseHTTPRequestHandler):
    """Docker's API as far as `GET /version`; an error for all else."""

    def do_GET(self) -> None:
        self._answer(200, VERSION) if self.path.endswith("/version") else self._answer(500, b'{"message":"no space"}')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer(500, b'{"message":"no space"}')

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The socket of an engine that has a version and nothing more."""
    with tempfile.TemporaryDirectory(prefix="vtk-") as directory:  # short: a socket's path has 108 bytes
        path = str(Path(directory, "engine.sock"))
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        with socketserver.ThreadingUnixStreamServer(path, Refusing) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            yield path
            server.shutdown()
            thread.join()


def test_an_engine_that_answers_is_found_by_its_socket(engine: str) -> None:
    assert find_engine() == engine
    assert socket_of("Docker 28.2.2, /var/run/docker.sock") == "/var/run/docker.sock"


@pytest.mark.usefixtures("engine")
def test_an_engine_that_refuses_fails_its_own_cells(tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    chosen = ("--technique", "native", "--technique", "container", "--workload", "call")

    assert invoke(["compare", "--quick", "--samples", "1", *chosen, "--json", str(output)]) == 1

    native, container = load(output).results
    assert native.status is Status.OK
    assert container.status is Status.FAILED
    assert container.reason.startswith("the container engine did not take our image: ")
    assert "no space" in container.reason


def test_no_engine_is_an_error_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("toolkit.host.CONTAINER_SOCKETS", ())
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none")

    with pytest.raises(EngineError, match="no engine answers") as caught:
        find_engine()

    assert caught.value.remedy
