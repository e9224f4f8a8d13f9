"""Two places files are copied between, behind one interface: this host here, a guest in ssh_sftp.

Paths are text as os.fsdecode(3) makes it: any bytes a file name may have survive the way. A file appears under its name
when it is whole: until then it is a part beside it, with a name of its own.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Generator, Iterable
from enum import Enum
from typing import NamedTuple, Protocol

BLOCK = 256 << 10  # bytes read from a local file at a time
MAX_LINKS = 40  # followed one after the other: the kernel's MAXSYMLINKS


class Kind(Enum):
    """What is there under a name."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "symbolic link"
    OTHER = "device, socket or pipe"


class Facts(NamedTuple):
    """What lstat(2) or stat(2) tells."""

    kind: Kind
    mode: int  # permissions, 12 bits
    size: int  # bytes
    mtime: int  # seconds since 1970

    @classmethod
    def of(cls, mode: int, size: int, mtime: int) -> Facts:
        """From st_mode, st_size and st_mtime."""
        kinds = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.LINK}
        return cls(kinds.get(stat.S_IFMT(mode), Kind.OTHER), stat.S_IMODE(mode), size, mtime)


class Files(Protocol):
    """A tree of files. Methods raise OSError for what is the file's, and Unreachable for a guest that is gone."""

    def shown(self, path: str) -> str:
        """As a person would name it."""

    def facts(self, path: str, *, follow: bool) -> Facts | None:
        """None when there is nothing. With `follow` of what a symbolic link leads to."""

    def entries(self, path: str) -> list[tuple[str, Facts]]:
        """Of a directory, without `.` and `..`; links not followed."""

    def link_target(self, path: str) -> str:
        """The text of a symbolic link."""

    def read(self, path: str) -> Generator[bytes, None, None]:
        """To the end of the file, whatever size it was said to have."""

    def write(self, path: str, chunks: Iterable[bytes], facts: Facts | None, *, preserve: bool) -> None:
        """A new file with the permissions of `facts` as the umask leaves them, one that replaces another with that
        one's; with `preserve` with those and the time of `facts`. A device or pipe is written into."""

    def make_directory(self, path: str, mode: int) -> None:
        """As the umask leaves it, and writable by the owner."""

    def make_link(self, path: str, target: str) -> None:
        """Replaces what is no directory."""

    def settle(self, path: str, facts: Facts, *, preserve: bool) -> None:
        """What `make_directory` made gets the permissions, now that all is in it; with `preserve` the time too."""


def led_to(files: Files, path: str) -> str:
    """Past symbolic links: who names one means the file, which is replaced, and not the link. Raises OSError."""
    for _ in range(MAX_LINKS):
        there = files.facts(path, follow=False)
        if there is None or there.kind is not Kind.LINK:
            return path
        path = os.path.join(os.path.dirname(path), files.link_target(path))
    raise OSError("too many symbolic links")


def part_of(path: str) -> str:
    """A new name beside `path`, for what is not whole yet."""
    return os.path.join(os.path.dirname(path), f".{secrets.token_hex(6)}.vtk-part")


class LocalFiles:
    """Those of this host."""

    def shown(self, path: str) -> str:
        return path

    def facts(self, path: str, *, follow: bool) -> Facts | None:
        try:
            found = os.stat(path, follow_symlinks=follow)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Facts.of(found.st_mode, found.st_size, int(found.st_mtime))

    def entries(self, path: str) -> list[tuple[str, Facts]]:
        found = []
        with os.scandir(path) as entries:
            for entry in entries:
                known = entry.stat(follow_symlinks=False)
                found.append((entry.name, Facts.of(known.st_mode, known.st_size, int(known.st_mtime))))
        return found

    def link_target(self, path: str) -> str:
        return os.readlink(path)

    def read(self, path: str) -> Generator[bytes, None, None]:
        with open(path, "rb", buffering=0) as file:
            while data := file.read(BLOCK):
                yield data

    def write(self, path: str, chunks: Iterable[bytes], facts: Facts | None, *, preserve: bool) -> None:
        there = self.facts(path, follow=False)
        if there is not None and there.kind is Kind.OTHER:
            with open(path, "wb", buffering=0) as file:
                for chunk in chunks:
                    write_all(file.fileno(), chunk)
            return
        mode = 0o666 if facts is None else facts.mode
        part = part_of(path)
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode & 0o777)
        try:
            try:
                for chunk in chunks:
                    write_all(fd, chunk)
                if facts is not None and preserve:
                    os.fchmod(fd, facts.mode)
                    os.utime(fd, (facts.mtime, facts.mtime))
                elif there is not None and there.kind is Kind.FILE:
                    os.fchmod(fd, there.mode)
            finally:
                os.close(fd)
            os.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise

    def make_directory(self, path: str, mode: int) -> None:
        os.mkdir(path, mode & 0o777 | stat.S_IRWXU)

    def make_link(self, path: str, target: str) -> None:
        part = part_of(path)
        os.symlink(target, part)
        try:
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise

    def settle(self, path: str, facts: Facts, *, preserve: bool) -> None:
        if preserve:
            os.chmod(path, facts.mode)
            os.utime(path, (facts.mtime, facts.mtime))
        elif ~facts.mode & stat.S_IRWXU:
            os.chmod(path, os.stat(path).st_mode & (facts.mode | 0o7077))


def write_all(fd: int, data: bytes) -> None:
    """write(2) takes what it can. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
