"""A download goes on where it broke off, and is not used unless it is what was asked for."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minivmm.errors import ConfigError
from toolkit.images.download import downloaded
from toolkit.images.errors import ChecksumMismatch, DownloadFailed

CONTENT = bytes(index * 7 % 251 for index in range(300_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT at every path; `cuts` are after how many bytes the connections to come break, one each."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.ranges = True
        self.asked: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/disk.qcow2"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if self.server.statuses and (status := self.server.statuses.pop(0)) != 200:
            self.send_error(status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = start + self.server.cuts.pop(0) if self.server.cuts else len(CONTENT)
        self.wfile.write(CONTENT[start:end])

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(server: Server, directory: Path, sha256: str = SHA256) -> bytes:
    with downloaded(server.url, sha256, directory=directory, pause=0.0) as file:
        return file.read_bytes()


def test_a_download_is_the_file(server: Server, tmp_path: Path) -> None:
    steps: list[tuple[int, int | None]] = []
    with downloaded(server.url, SHA256.upper(), lambda *step: steps.append(step), directory=tmp_path) as file:
        assert file.read_bytes() == CONTENT
    assert steps[0] == (0, len(CONTENT))
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    assert list(tmp_path.iterdir()) == []


def test_connections_that_break_are_continued(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000, 1, 50_000]
    assert fetch(server, tmp_path) == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=100001-", "bytes=150001-"]


def test_another_call_goes_on_where_one_gave_up(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000]
    server.statuses = [200, 503, 503, 503, 503, 503]
    with pytest.raises(DownloadFailed, match="100000 bytes are kept"):
        fetch(server, tmp_path)
    server.asked.clear()
    assert fetch(server, tmp_path) == CONTENT
    assert server.asked == ["bytes=100000-"]


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000]
    server.ranges = False
    assert fetch(server, tmp_path) == CONTENT


def test_another_file_than_expected_is_not_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ChecksumMismatch, match=SHA256):
        fetch(server, tmp_path, "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_part_longer_than_the_file_is_not_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{SHA256}.part").write_bytes(CONTENT + b"more")
    with pytest.raises(ChecksumMismatch):
        fetch(server, tmp_path)
    assert fetch(server, tmp_path) == CONTENT


def test_what_is_whole_already_is_not_asked_for(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{SHA256}.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path) == CONTENT
    assert server.asked == []


def test_a_file_that_is_not_there_is_not_tried_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(DownloadFailed, match="404"):
        fetch(server, tmp_path)
    assert len(server.asked) == 1


def test_two_downloads_of_one_file_do_not_mix(server: Server, tmp_path: Path) -> None:
    with (
        downloaded(server.url, SHA256, directory=tmp_path),
        pytest.raises(DownloadFailed, match="another vtk"),
        downloaded(server.url, SHA256, directory=tmp_path),
    ):
        pass


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "disk.qcow2", "http://"])
def test_only_http_is_downloaded(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be downloaded"), downloaded(url, SHA256, directory=tmp_path):
        pass


def test_a_checksum_that_is_none_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        fetch(server, tmp_path, "abc")
