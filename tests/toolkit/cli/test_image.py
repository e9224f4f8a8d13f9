"""`vtk image`: what is printed, in words and in JSON, and the exit statuses."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from toolkit.cli import ExitStatus, invoke
from toolkit.images.store import ImageStore


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    for kind in ("DATA", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind))
    return ImageStore()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A directory and the URL it is served at."""
    directory = tmp_path / "served"
    directory.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield directory, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def make(store: ImageStore, name: str) -> None:
    with store.build(name) as staging:
        (staging.directory / "vmlinuz").write_bytes(b"kernel")
        staging.publish("tiny", kernel="vmlinuz", cmdline="quiet", inputs={"kernel": "6.1"})


def test_no_images_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["image", "list"]) == ExitStatus.OK
    assert "vtk image build tiny" in capsys.readouterr().err
    assert invoke(["image", "list", "--json"]) == ExitStatus.OK
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "images": [], "unreadable": {}}


def test_list_shows_each_image_and_those_that_cannot_be_read(
    store: ImageStore, capsys: pytest.CaptureFixture[str]
) -> None:
    make(store, "one")
    make(store, "torn")
    (store.path / "torn" / "image.json").write_text("{")
    assert invoke(["image", "list"]) == ExitStatus.OK
    output = capsys.readouterr()
    assert [line.split()[:2] for line in output.out.splitlines()] == [["one", "tiny"]]
    assert "vtk image delete torn" in output.err


def test_inspect_says_where_an_image_is_and_who_is_on_it(store: ImageStore, capsys: pytest.CaptureFixture[str]) -> None:
    make(store, "one")
    (store.machines / "web").mkdir(parents=True)
    (store.machines / "web" / "image").write_text("one\n")
    assert invoke(["image", "inspect", "one", "--json"]) == ExitStatus.OK
    image = json.loads(capsys.readouterr().out)["image"]
    assert image["kernel"] == str(store.path / "one" / "vmlinuz")
    assert image["machines"] == ["web"]
    assert image["cmdline"] == "quiet"
    assert invoke(["image", "inspect", "one"]) == ExitStatus.OK
    assert "from kernel    6.1" in capsys.readouterr().out


def test_delete_removes_an_image_unless_a_machine_is_on_it(
    store: ImageStore, capsys: pytest.CaptureFixture[str]
) -> None:
    make(store, "one")
    (store.machines / "web").mkdir(parents=True)
    (store.machines / "web" / "image").write_text("one")
    assert invoke(["image", "delete", "one"]) == ExitStatus.USAGE
    assert "vtk vm delete web" in capsys.readouterr().err
    (store.machines / "web" / "image").unlink()
    assert invoke(["image", "delete", "one"]) == ExitStatus.OK
    assert store.list() == []
    assert invoke(["image", "delete", "one"]) == ExitStatus.USAGE


@pytest.mark.parametrize("name", ["a/b", "a b", "..", "café"])
def test_a_name_that_cannot_be_is_wrong_usage(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["image", "inspect", name]) == ExitStatus.USAGE
    assert "cannot be the name of an image" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["2X", "-1G", "G", "1e9"])
def test_a_size_that_is_none_is_wrong_usage(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["image", "build", "debian", "--size", size]) == ExitStatus.USAGE
    assert "size" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="no qemu-img (try: apt install qemu-utils)")
def test_pull_makes_an_image_of_the_file_with_the_checksum(
    served: tuple[Path, str], store: ImageStore, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, url = served
    content = bytes(1 << 20)
    (directory / "cloud-1.raw").write_bytes(content)
    checksum = hashlib.sha256(content).hexdigest()
    assert invoke(["image", "pull", f"{url}/cloud-1.raw", "--sha256", checksum, "--json"]) == ExitStatus.OK
    image = json.loads(capsys.readouterr().out)["image"]
    assert (image["name"], image["kind"], image["user"]) == ("cloud-1", "cloud", "debian")
    assert store.get("cloud-1").disk is not None
    (directory / "cloud-1.raw").unlink()
    assert invoke(["image", "pull", f"{url}/cloud-1.raw", "--sha256", checksum]) == ExitStatus.OK  # it is there


def test_pull_of_another_file_makes_no_image(
    served: tuple[Path, str], store: ImageStore, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, url = served
    (directory / "disk.raw").write_bytes(b"something else")
    assert invoke(["image", "pull", f"{url}/disk.raw", "--sha256", "0" * 64]) == ExitStatus.USAGE
    assert "SHA256SUMS" in capsys.readouterr().err
    assert invoke(["image", "pull", f"{url}/absent.raw", "--sha256", "0" * 64]) == ExitStatus.HOST
    assert "404" in capsys.readouterr().err
    assert store.list() == []
