"""The files a program sees: below one directory, by openat2(2) with RESOLVE_IN_ROOT, so that the kernel itself keeps
every path, symbolic link and `..` in it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterator

_OPENAT2 = 437  # include/uapi/asm-generic/unistd.h: the same on every architecture
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10
_OPEN_HOW = struct.Struct("<QQQ")  # struct open_how: flags, mode, resolve

# Flags of open(2) that a program may use; riscv64 has the generic numbers, as x86-64 has.
_ALLOWED = (
    *("O_ACCMODE", "O_CREAT", "O_EXCL", "O_TRUNC", "O_APPEND", "O_NONBLOCK", "O_DSYNC", "O_SYNC"),
    *("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_NOATIME", "O_NOCTTY", "O_PATH"),
)
_FLAGS = sum({getattr(os, name) for name in _ALLOWED}) | os.O_SYNC
_libc = ctypes.CDLL(None, use_errno=True)
MAX_FILES = 256
NAME_COST = 4096  # bytes off the quota for a file or directory that is made


class Files:
    """The open files of a program by its own numbers: 0 to 2 are those of this process.

    root: its directory; None: it has none. quota: bytes it may write to the files there, then ENOSPC.
    """

    def __init__(self, root: str | None, quota: int) -> None:
        self._root = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if root is not None else -1
        self._open: dict[int, int] = {number: number for number in range(3)}
        self._below: set[int] = set()  # descriptors of this process that were opened below the root
        self.listings: dict[int, list[bytes]] = {}
        """What getdents64(2) has not told yet of a directory, by this process' descriptor."""
        self.cwd = "/"
        self.quota = quota

    def host(self, number: int) -> int:
        """This process' descriptor. Raises OSError (EBADF)."""
        try:
            return self._open[number]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def own(self, number: int) -> int:
        """This process' descriptor of a file below the root, whose attributes are the program's to change: those of the
        files it was started with are not. Raises OSError (EBADF, EPERM)."""
        descriptor = self.host(number)
        if descriptor not in self._below:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return descriptor

    def add(self, descriptor: int, lowest: int = 0, *, below: bool = False) -> int:
        """Gives a descriptor the lowest free number; below: it was opened below the root. Raises OSError (EMFILE),
        having closed it."""
        for number in range(lowest, MAX_FILES):
            if number not in self._open:
                self._enter(number, descriptor, below)
                return number
        os.close(descriptor)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def duplicate(self, number: int, lowest: int = 0) -> int:
        """dup(2): another number for the same. Raises OSError (EBADF, EMFILE)."""
        host = self.host(number)
        return self.add(os.dup(host), lowest, below=host in self._below)

    def duplicate_as(self, old: int, new: int) -> None:
        """dup2(2): `new` means what `old` means from now on. Raises OSError (EBADF)."""
        host = self.host(old)
        self.replace(new, os.dup(host), below=host in self._below)

    def replace(self, number: int, descriptor: int, *, below: bool = False) -> None:
        """The number means another descriptor from now on."""
        if number in self._open:
            self.close(number)
        self._enter(number, descriptor, below)

    def _enter(self, number: int, descriptor: int, below: bool) -> None:
        self._open[number] = descriptor
        if below:
            self._below.add(descriptor)

    def close(self, number: int) -> None:
        """Raises OSError (EBADF)."""
        descriptor = self.host(number)
        del self._open[number]
        self.listings.pop(descriptor, None)
        self._below.discard(descriptor)
        if descriptor > 2:
            os.close(descriptor)

    def spend(self, host: int, count: int) -> int:
        """How many of `count` bytes may be written to a descriptor of this process; a regular file's come off the
        quota. Raises OSError (ENOSPC)."""
        if host <= 2 or not stat.S_ISREG(os.fstat(host).st_mode):
            return count
        return self._take(count, 1)

    def spend_name(self) -> None:
        """A file or a directory is about to be made. Raises OSError (ENOSPC)."""
        self._take(NAME_COST, NAME_COST)

    def _take(self, count: int, least: int) -> int:
        granted = min(count, self.quota)
        if granted < min(count, least):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.quota -= granted
        return granted

    def path(self, directory: int, name: str, at_cwd: int) -> str:
        """A path as seen from the program's root. Raises OSError (EBADF, ENOTDIR)."""
        if name.startswith("/"):
            return name
        if directory == at_cwd:
            return os.path.join(self.cwd, name)
        # The descriptor's own path, which is below the root's, where it was opened.
        there = os.readlink(f"/proc/self/fd/{self.host(directory)}")
        root = os.readlink(f"/proc/self/fd/{self._root}")
        return os.path.join("/", os.path.relpath(there, root), name)

    def open(self, path: str, flags: int, mode: int = 0) -> int:
        """A descriptor of this process. Raises OSError."""
        if self._root < 0:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        flags = flags & _FLAGS | os.O_CLOEXEC
        waits = not flags & (os.O_PATH | os.O_NONBLOCK)
        if waits:
            flags |= os.O_NONBLOCK  # or a FIFO without another end would keep us beyond the deadline
        wants_mode = bool(flags & os.O_CREAT)
        if wants_mode:
            self.spend_name()
        how = _OPEN_HOW.pack(flags, mode & 0o7777 if wants_mode else 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
        descriptor = int(_libc.syscall(_OPENAT2, self._root, os.fsencode(path), how, len(how)))
        if descriptor < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        if waits:
            os.set_blocking(descriptor, True)
        return descriptor

    @contextlib.contextmanager
    def parent(self, path: str) -> Iterator[tuple[int, str]]:
        """The directory that a path's last name is in, as a descriptor for the block, and that name. Raises OSError."""
        head, name = os.path.split(path.rstrip("/") or "/")
        if name in ("", ".", ".."):  # the root is there, and is not taken away
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        descriptor = self.open(head or "/", os.O_PATH | os.O_DIRECTORY)
        try:
            yield descriptor, name
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Closes everything the program opened."""
        for number in list(self._open):
            self.close(number)
        if self._root >= 0:
            os.close(self._root)
            self._root = -1
