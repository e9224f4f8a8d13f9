"""The archives we write are read back, by a reader of our own and by cpio, as what was put in."""

from __future__ import annotations

import shutil
import stat
import subprocess
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.images.cpio import MAGIC, TRAILER, Archive, Header

NAME_PART = st.text("abcxyz09.-_+", min_size=1, max_size=12).filter(lambda part: part not in (".", ".."))
NAMES = st.lists(NAME_PART, min_size=1, max_size=4).map("/".join)


class Member(NamedTuple):
    name: str
    header: Header
    data: bytes


def read(archive: bytes) -> list[Member]:
    """The members of a newc archive, up to its trailer."""
    members: list[Member] = []
    position = 0
    while True:
        assert archive[position : position + 6] == MAGIC
        digits = archive[position + 6 : position + 110]
        header = Header(*(int(digits[start : start + 8], 16) for start in range(0, 104, 8)))
        name_end = position + 110 + header.namesize
        assert archive[name_end - 1] == 0
        name = archive[position + 110 : name_end - 1].decode()
        data_start = (name_end + 3) & ~3
        if name == TRAILER:
            return members
        members.append(Member(name, header, archive[data_start : data_start + header.filesize]))
        position = (data_start + header.filesize + 3) & ~3


def without_conflicts(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files whose name is not also a directory of another one."""
    return {name: data for name, data in files.items() if not any(o.startswith(f"{name}/") for o in files)}


@given(st.dictionaries(NAMES, st.binary(max_size=200), max_size=8).map(without_conflicts))
def test_what_is_put_in_is_read_back(files: dict[str, bytes]) -> None:
    archive = Archive()
    for name, data in files.items():
        archive.add_file(name, data, 0o640)
    members = read(archive.to_bytes())
    found = {member.name: member.data for member in members if stat.S_ISREG(member.header.mode)}
    assert found == files
    assert all(member.header.mode == stat.S_IFREG | 0o640 for member in members if stat.S_ISREG(member.header.mode))


@given(NAMES)
def test_every_parent_comes_before_its_children(name: str) -> None:
    archive = Archive()
    archive.add_file(name, b"")
    names = [member.name for member in read(archive.to_bytes())]
    parts = name.split("/")
    assert names == ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def test_no_two_members_share_an_inode_number() -> None:
    archive = Archive()
    archive.add_file("a/b", b"1")
    archive.add_symlink("a/c", "b")
    archive.add_character_device("a/d", 5, 1)
    numbers = [member.header.ino for member in read(archive.to_bytes())]
    assert len(set(numbers)) == len(numbers) == 4


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../b", "a//b", "", ".", TRAILER, "a\0b"])
def test_a_name_the_kernel_would_misread_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        Archive().add_file(name, b"")


def test_a_name_added_twice_is_refused() -> None:
    archive = Archive()
    archive.add_file("init", b"")
    with pytest.raises(ValueError):
        archive.add_symlink("init", "bin/sh")


@pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio on this host (sudo apt-get install cpio)")
def test_cpio_lists_the_same_names() -> None:
    archive = Archive()
    archive.add_file("bin/busybox", b"x" * 4097, 0o755)
    archive.add_symlink("bin/sh", "busybox")
    archive.add_file("init", b"#!/bin/sh\n", 0o755)
    done = subprocess.run(
        ["cpio", "--list", "--quiet"], input=archive.to_bytes(), capture_output=True, check=True, timeout=30
    )
    assert done.stdout.decode().split() == ["bin", "bin/busybox", "bin/sh", "init"]
    assert done.stderr == b""
