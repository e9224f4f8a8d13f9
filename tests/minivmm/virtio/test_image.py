"""Raw images: what is refused and how it is said, and that nobody shares a writable disk."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from minivmm.errors import ImageError
from minivmm.virtio import image as image_module
from minivmm.virtio.block import Block, Disk
from minivmm.virtio.image import SECTOR, RawImage


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 16)
    return path


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("read_only", [False, True])
def test_what_cannot_be_a_disk_is_refused_with_its_name_and_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "odd").write_bytes(b"x" * 700)
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket's name is at most 107 bytes
        server.bind("socket")
        before = open_fds()
        for name, reason in {
            "missing": "no such file",
            "directory": "is a directory",
            "empty": "is empty",
            "odd": "700 bytes is not a multiple of the sector size, 512",
            "fifo": "neither a regular file nor a block device",
            "socket": "neither a regular file nor a block device",
        }.items():
            with pytest.raises(ImageError, match=reason) as caught:
                RawImage(tmp_path / name, read_only=read_only)
            assert caught.value.path == tmp_path / name
        assert open_fds() == before
    for path in ("/dev/null", "name\0with nul"):
        with pytest.raises(ImageError):
            RawImage(path, read_only=read_only)


@pytest.mark.usefixtures("ordinary_user")
def test_a_disk_that_may_not_be_written_says_to_open_it_read_only(disk: Path) -> None:
    disk.chmod(0o444)
    with pytest.raises(ImageError, match="cannot be written") as caught:
        RawImage(disk)
    assert "read-only" in caught.value.remedy
    RawImage(disk, read_only=True).close()


def test_a_writable_image_has_one_user(disk: Path) -> None:
    first = Block(Disk(disk))
    for read_only in (False, True):
        with pytest.raises(ImageError, match="in use by another machine"):
            Block(Disk(disk, read_only))
    first.close()
    first.close()
    Block(Disk(disk)).close()


def test_a_read_only_image_is_shared(disk: Path) -> None:
    readers = [RawImage(disk, read_only=True) for _ in range(3)]
    with pytest.raises(ImageError, match="in use"):
        RawImage(disk)
    for reader in readers:
        reader.close()


def test_a_transfer_the_kernel_stops_half_way_is_finished(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """preadv and pwritev may do less than asked: at most 100 bytes here."""
    image = RawImage(disk)
    preadv, pwritev = os.preadv, os.pwritev

    def some(buffers: list[memoryview]) -> list[memoryview]:
        return [buffers[0][:100]]

    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, some(buffers), at))
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, at: pwritev(fd, some(buffers), at))

    first, second = bytearray(300), bytearray(724)
    assert image.read_into([memoryview(first), memoryview(second)], SECTOR, 1024) == 1024
    assert bytes(first + second) == disk.read_bytes()[SECTOR : SECTOR + 1024]

    data = os.urandom(1024)
    image.write_from([memoryview(bytearray(data[:7])), memoryview(bytearray(data[7:]))], 0, 1024)
    assert disk.read_bytes()[:1024] == data

    assert image.read_into([memoryview(bytearray(1024))], 4096 - 512, 1024) == 512, "the end of the file"
    image.close()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("unmap", [True, False])
def test_zeroes_are_written_where_the_host_knows_no_shorter_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool, unmap: bool
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\xff" * (3 << 20))
    image = RawImage(path)
    if not known:
        monkeypatch.setattr(image_module, "_try_fallocate", lambda *_: False)
    image.write_zeroes(512, (2 << 20) + 512, unmap=unmap)
    assert path.read_bytes() == b"\xff" * 512 + bytes((2 << 20) + 512) + b"\xff" * ((1 << 20) - 1024)
    image.close()
