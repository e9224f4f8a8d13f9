"""The cpio archive the Linux kernel unpacks as its first root file system.

The format is "newc": Linux, Documentation/driver-api/early-userspace/buffer-format.rst. Every member is a
110-byte header of ASCII hexadecimal, its name with a final NUL, and its data, each padded to 4 bytes; the
archive ends with a member named TRAILER!!!.
"""

from __future__ import annotations

import stat
from typing import NamedTuple

MAGIC = b"070701"
TRAILER = "TRAILER!!!"
FIELD_MAX = 0xFFFF_FFFF  # a header field is eight hexadecimal digits


class Header(NamedTuple):
    """The fields of a newc header, in their order in the file."""

    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    mtime: int  # seconds since 1970; always 0 here, so that equal content makes equal archives
    filesize: int
    maj: int
    min: int
    rmaj: int
    rmin: int
    namesize: int  # with the final NUL
    chksum: int  # 0 in newc

    def encode(self) -> bytes:
        return MAGIC + b"".join(b"%08x" % field for field in self)


class Archive:
    """A newc archive in the making. Names are relative to the root; missing parent directories are added.

    Adding a name twice, an absolute name or one with `..` is a ValueError: the kernel would obey it silently.
    """

    def __init__(self) -> None:
        self._members: list[bytes] = []
        self._directories: set[str] = set()
        self._names: set[str] = set()

    def add_directory(self, name: str, permissions: int = 0o755) -> None:
        self._add(name, stat.S_IFDIR | permissions, nlink=2)
        self._directories.add(name)

    def add_file(self, name: str, data: bytes, permissions: int = 0o644) -> None:
        self._add(name, stat.S_IFREG | permissions, data)

    def add_symlink(self, name: str, target: str) -> None:
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def add_character_device(self, name: str, major: int, minor: int, permissions: int = 0o600) -> None:
        self._add(name, stat.S_IFCHR | permissions, device=(major, minor))

    def to_bytes(self) -> bytes:
        trailer = _member(TRAILER, ino=0, mode=0, nlink=1)
        return b"".join([*self._members, trailer])

    def _add(
        self, name: str, mode: int, data: bytes = b"", *, nlink: int = 1, device: tuple[int, int] = (0, 0)
    ) -> None:
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\0" in name or name == TRAILER:
            raise ValueError(f"not a plain relative name: {name!r}")
        if name in self._names:
            raise ValueError(f"{name!r} is in the archive already")
        if len(data) > FIELD_MAX:
            raise ValueError(f"{name!r} is too long for this format: {len(data)} bytes")
        parent = "/".join(parts[:-1])
        if parent and parent not in self._directories:
            self.add_directory(parent)
        self._names.add(name)
        self._members.append(
            _member(name, ino=len(self._members) + 1, mode=mode, nlink=nlink, data=data, device=device)
        )


def _member(
    name: str, *, ino: int, mode: int, nlink: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
) -> bytes:
    name_bytes = name.encode() + b"\0"
    header = Header(ino, mode, 0, 0, nlink, 0, len(data), 0, 0, *device, len(name_bytes), 0)
    return _padded(header.encode() + name_bytes) + _padded(data)


def _padded(part: bytes) -> bytes:
    return part + bytes(-len(part) % 4)
