"""A build that is killed or interrupted, wherever it is: no half image, the one before is whole, nothing goes on."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.toolkit.vm.kill_points import killed_before
from toolkit.cli import ExitStatus
from toolkit.images import tiny
from toolkit.images.debian_package import PackageMissing
from toolkit.images.errors import ImageNotFound
from toolkit.images.store import ImageStore

END_TIMEOUT = 120.0  # seconds for the programs of an interrupted build to clean up and end


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images", tmp_path / "machines")


def make(store: ImageStore, content: bytes) -> None:
    with store.build("one") as staging:
        (staging.directory / "vmlinuz").write_bytes(content)
        staging.publish("tiny", kernel="vmlinuz", inputs={"content": content.hex()}, replace=True)


def content_of(store: ImageStore) -> bytes:
    kernel = store.get("one").kernel
    assert kernel is not None
    return kernel.read_bytes()


def test_a_build_killed_at_any_step_makes_a_whole_image_or_none(store: ImageStore) -> None:
    for step in itertools.count():
        killed = killed_before(step, lambda: make(store, b"new"))
        assert store.unreadable() == {}, f"step {step}"
        assert [image.name for image in store.list()] in ([], ["one"])
        make(store, b"again")
        assert content_of(store) == b"again"
        assert [path.name for path in (store.path / ".building").iterdir()] == ["one.lock"], f"step {step}"
        store.delete("one")
        if not killed:
            break
    assert step > 5


def test_a_replacement_killed_at_any_step_leaves_the_old_image_or_the_new(store: ImageStore) -> None:
    for step in itertools.count():
        make(store, b"old")
        killed = killed_before(step, lambda: make(store, b"new"))
        assert content_of(store) in (b"old", b"new"), f"step {step}"
        assert [image.name for image in store.list()] == ["one"]
        if not killed:
            break
    assert content_of(store) == b"new"


def test_a_deletion_killed_at_any_step_leaves_a_whole_image_or_none(store: ImageStore) -> None:
    for step in itertools.count():
        make(store, b"one")
        killed = killed_before(step, lambda: store.delete("one"))
        assert store.unreadable() == {}, f"step {step}"
        try:
            assert content_of(store) == b"one"
            store.delete("one")
        except ImageNotFound:
            pass
        if not killed:
            break
    assert store.list() == []


@pytest.mark.slow
def test_a_tiny_image_killed_while_it_is_built_is_built_the_next_time(store: ImageStore) -> None:
    try:
        tiny.build(store, "first")
    except PackageMissing as error:
        pytest.skip(str(error))
    for step in itertools.count(0, 4):
        killed = killed_before(step, lambda: tiny.build(store, "one"))
        assert store.unreadable() == {}, f"step {step}"
        if not killed:
            break
    assert tiny.build(store, "one").kernel is not None


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("mmdebstrap"), reason="no mmdebstrap (try: apt install mmdebstrap)")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_debian_leaves_no_image_no_process_and_nothing_mounted(
    tmp_path: Path, number: signal.Signals
) -> None:
    environment = os.environ | {"XDG_DATA_HOME": str(tmp_path)}
    line = [sys.executable, "-m", "toolkit.cli", "image", "build", "debian"]
    with subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True) as vtk:
        assert vtk.stderr is not None
        for told in vtk.stderr:
            if told.startswith("installing essential"):  # dpkg is at work in the root
                break
        else:
            pytest.fail("the build ended by itself")
        vtk.send_signal(number)
        vtk.stderr.read()
        status = vtk.wait(END_TIMEOUT)
    assert status == (ExitStatus.INTERRUPTED if number == signal.SIGINT else -number)
    deadline = time.monotonic() + END_TIMEOUT
    while (left := processes_below(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    store = ImageStore(tmp_path / "vtk/images")
    assert store.list() == []
    with store.build("debian") as staging:
        assert list(staging.directory.iterdir()) == []


def processes_below(place: Path) -> list[str]:
    """The command lines of what has its temporary files, or its root, in `place`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            root = os.readlink(process / "root")
        except OSError:  # ended meanwhile
            continue
        if process.name != str(os.getpid()) and (str(place).encode() in words or root.startswith(str(place))):
            found.append((process / "cmdline").read_text().replace("\0", " "))
    return found
