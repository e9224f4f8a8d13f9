"""An image is whole or not there; one that machines are on stays; two processes do not get in each other's way."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from toolkit.images.errors import ImageExists, ImageInUse, ImageNameError, ImageNotFound, StoreBroken
from toolkit.images.store import Image, ImageStore


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images", tmp_path / "machines")


def make(store: ImageStore, name: str, content: bytes = b"kernel", replace: bool = False) -> Image:
    with store.build(name) as staging:
        (staging.directory / "vmlinuz").write_bytes(content)
        return staging.publish("tiny", kernel="vmlinuz", inputs={"content": content.hex()}, replace=replace)


def put_on(store: ImageStore, machine: str, image: str) -> None:
    (store.machines / machine).mkdir(parents=True)
    (store.machines / machine / "image").write_text(f"{image}\n")


def test_a_published_image_is_found_with_what_it_was_made_of(store: ImageStore) -> None:
    made = make(store, "one")
    assert store.get("one") == made
    assert made.kernel is not None
    assert made.kernel.read_bytes() == b"kernel"
    assert [image.name for image in store.list()] == ["one"]
    assert store.find("one", {"content": b"kernel".hex()}) == made


def test_an_empty_store_has_no_images(store: ImageStore) -> None:
    assert store.list() == []
    with pytest.raises(ImageNotFound, match="no image 'one'"):
        store.get("one")
    with pytest.raises(ImageNotFound):
        store.delete("one")


@pytest.mark.parametrize("name", ["", "a/b", "a b", "..", ".lock", "-x", "café", "a\n", "a" * 64, "a\0b"])
def test_a_name_that_cannot_be_a_directory_is_refused(store: ImageStore, name: str) -> None:
    with pytest.raises(ImageNameError, match="cannot be the name"):
        make(store, name)
    with pytest.raises(ImageNameError):
        store.get(name)
    with pytest.raises(ImageNameError):
        store.delete(name)


def test_a_build_that_fails_leaves_nothing(store: ImageStore) -> None:
    def failing() -> None:
        with store.build("one") as staging:
            (staging.directory / "vmlinuz").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()
    assert store.list() == []
    assert [path.name for path in (store.path / ".building").iterdir()] == ["one.lock"]


def test_an_image_of_other_inputs_is_not_taken_for_the_one_asked_for(store: ImageStore) -> None:
    make(store, "one")
    with pytest.raises(ImageExists, match="content"):
        store.find("one", {"content": "00"})
    with pytest.raises(ImageExists):
        make(store, "one", b"other")
    assert store.get("one").inputs == {"content": b"kernel".hex()}
    make(store, "one", b"other", replace=True)
    assert store.get("one").inputs == {"content": b"other".hex()}


def test_an_image_in_use_is_neither_deleted_nor_replaced(store: ImageStore) -> None:
    make(store, "one")
    put_on(store, "web", "one")
    put_on(store, "other", "two")
    with pytest.raises(ImageInUse, match="web") as refusal:
        store.delete("one")
    assert refusal.value.remedy == "vtk vm delete web"
    with pytest.raises(ImageInUse):
        make(store, "one", b"other", replace=True)
    assert store.users("one") == ["web"]
    assert store.get("one").inputs == {"content": b"kernel".hex()}


def test_a_deletion_waits_for_a_machine_that_is_being_made(store: ImageStore) -> None:
    make(store, "one")
    failures: list[Exception] = []

    def delete() -> None:
        try:
            store.delete("one")
        except ImageInUse as error:
            failures.append(error)

    with store.in_use("one"):
        thread = threading.Thread(target=delete)
        thread.start()
        put_on(store, "web", "one")
    thread.join(10)
    assert len(failures) == 1
    assert store.get("one")


def test_an_image_whose_successor_never_arrived_gets_its_name_back(store: ImageStore) -> None:
    make(store, "one")
    (store.path / ".replaced").mkdir()
    (store.path / "one").rename(store.path / ".replaced" / "one")  # where a kill between two renames leaves it
    assert store.get("one").inputs == {"content": b"kernel".hex()}


def test_an_image_whose_successor_never_arrived_is_listed(store: ImageStore) -> None:
    make(store, "one")
    (store.path / ".replaced").mkdir()
    (store.path / "one").rename(store.path / ".replaced" / "one")
    assert [image.name for image in store.list()] == ["one"]


def test_a_damaged_image_is_named_and_can_be_deleted(store: ImageStore) -> None:
    make(store, "whole")
    make(store, "torn")
    (store.path / "torn" / "image.json").write_text("{")
    make(store, "lacking")
    (store.path / "lacking" / "vmlinuz").unlink()
    assert [image.name for image in store.list()] == ["whole"]
    assert set(store.unreadable()) == {"torn", "lacking"}
    with pytest.raises(StoreBroken, match="torn"):
        store.get("torn")
    store.delete("torn")
    assert set(store.unreadable()) == {"lacking"}


def test_a_full_disk_is_reported_with_what_to_do(store: ImageStore) -> None:
    def filling() -> None:
        with store.build("one"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StoreBroken, match="No space left") as refusal:
        filling()
    assert "make room" in refusal.value.remedy
    assert store.list() == []


HALF = """
import os, signal, sys
from pathlib import Path
from toolkit.images.store import ImageStore
with ImageStore(Path(sys.argv[1])).build("one") as staging:
    (staging.directory / "vmlinuz").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_build_leaves_no_image_and_the_next_one_starts_afresh(store: ImageStore) -> None:
    killed = subprocess.run([sys.executable, "-c", HALF, store.path], timeout=30, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert store.list() == []
    with store.build("one") as staging:
        assert list(staging.directory.iterdir()) == []


def test_two_builds_of_a_name_take_turns(store: ImageStore) -> None:
    waiting = threading.Event()
    order: list[str] = []

    def second() -> None:
        with store.build("one", waiting=lambda _: waiting.set()):
            order.append("second")

    with store.build("one"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
