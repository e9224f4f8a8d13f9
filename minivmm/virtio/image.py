"""A raw disk image: a file or block device, opened, checked and locked for one machine.

A writable image has one user at a time, a read-only one has any number of readers: flock(2), held until `close`. Two
writers would corrupt each other's file systems without either of them seeing an error.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from pathlib import Path

from minivmm.errors import ImageError

SECTOR = 512

FALLOC_FL_KEEP_SIZE = 0x01  # linux/falloc.h
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate  # off_t is 64 bits wide on x86-64
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

_ZEROES = bytes(1 << 20)


class RawImage:
    """An open raw image of `size` bytes. Raises ImageError for a file that is no disk, or is in use.

    Offsets and lengths below are in bytes and inside the image: the device checks them. OSError is the device's to
    answer.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self.path = Path(path)
        self.read_only = read_only
        # O_NONBLOCK: opening a FIFO must not wait for its other end. It means nothing to files and disks.
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self.fd = os.open(self.path, flags)
        except OSError as error:
            raise _why_not_opened(error, path, read_only) from error
        except ValueError as error:  # a NUL in the name
            raise ImageError(path, f"not a file name: {error}") from error
        try:
            self.size = self._measure()
            self._lock()
        except BaseException:
            self.close()
            raise

    def _measure(self) -> int:
        """The size in bytes, of a regular file or a block device that can be a disk."""
        status = os.fstat(self.fd)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(self.path, "is a directory, not a disk image")
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
            raise ImageError(self.path, "is neither a regular file nor a block device")
        size = os.lseek(self.fd, 0, os.SEEK_END)
        if not size:
            raise ImageError(self.path, "is empty", remedy=f"truncate -s 64M {self.path}")
        if size % SECTOR:
            raise ImageError(
                self.path,
                f"{size} bytes is not a multiple of the sector size, {SECTOR}",
                cause="a raw image is whole sectors; this file is cut short, or is not a raw image",
                remedy=f"truncate -s %{SECTOR} {self.path}   (pads it with zeroes)",
            )
        return size

    def _lock(self) -> None:
        wish = fcntl.LOCK_SH if self.read_only else fcntl.LOCK_EX
        try:
            fcntl.flock(self.fd, wish | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise ImageError(self.path, f"cannot be locked: {error.strerror}") from error
            raise ImageError(
                self.path,
                "is in use by another machine",
                cause="it is locked (flock): a writable disk has one user at a time",
                remedy="stop the other machine, or give this one a copy; any number may share it read-only",
            ) from error

    @property
    def block_size(self) -> int:
        """Bytes of the file system's block: what writes should be aligned to."""
        return os.fstat(self.fd).st_blksize

    # Both: one system call for a whole request, whatever the number of buffers (the queue keeps them below IOV_MAX,
    # 1024), and more only when the kernel stops half-way.
    def read_into(self, buffers: list[memoryview], offset: int, length: int) -> int:
        """Reads into the buffers, `length` bytes in all. Returns the bytes read: fewer at the end of the file."""
        done = os.preadv(self.fd, buffers, offset)
        while done < length:
            count = os.preadv(self.fd, _beyond(buffers, done), offset + done)
            if not count:
                break
            done += count
        return done

    def write_from(self, buffers: list[memoryview], offset: int, length: int) -> None:
        """Writes the buffers, `length` bytes in all."""
        done = os.pwritev(self.fd, buffers, offset)
        while done < length:
            count = os.pwritev(self.fd, _beyond(buffers, done), offset + done)
            if not count:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done += count

    def flush(self) -> None:
        """Returns when everything written is on the medium."""
        os.fdatasync(self.fd)

    def discard(self, offset: int, length: int) -> None:
        """Gives the range back to the host; it reads as zeroes. Where the host cannot, nothing happens."""
        _try_fallocate(self.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """The range reads as zeroes afterwards; `unmap` allows giving it back to the host."""
        how = FALLOC_FL_PUNCH_HOLE if unmap else FALLOC_FL_ZERO_RANGE
        if _try_fallocate(self.fd, how | FALLOC_FL_KEEP_SIZE, offset, length):
            return
        while length:
            written = os.pwrite(self.fd, memoryview(_ZEROES)[:length], offset)
            offset += written
            length -= written

    def close(self) -> None:
        """Closes and unlocks. May be called again."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _beyond(buffers: list[memoryview], count: int) -> list[memoryview]:
    """What is left of the buffers after their first `count` bytes."""
    rest: list[memoryview] = []
    for buffer in buffers:
        if count < len(buffer):
            rest.append(buffer[count:])
        count = max(count - len(buffer), 0)
    return rest


def _try_fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
    """fallocate(2), which Python has without its modes. Returns False when the file system does not know the mode."""
    while _fallocate(fd, mode, offset, length):
        error = ctypes.get_errno()
        if error in (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV):
            return False
        if error != errno.EINTR:
            raise OSError(error, os.strerror(error))
    return True


def _why_not_opened(error: OSError, path: str | Path, read_only: bool) -> ImageError:
    """The error a person can act on."""
    match error.errno:
        case errno.ENOENT:
            return ImageError(path, "no such file", remedy=f"truncate -s 64M {path}   (makes an empty disk)")
        case errno.EISDIR:
            return ImageError(path, "is a directory, not a disk image")
        case errno.ENXIO:
            return ImageError(path, "is neither a regular file nor a block device")
        case errno.EACCES | errno.EPERM | errno.EROFS if not read_only:
            return ImageError(path, "cannot be written", cause=str(error.strerror), remedy="give it read-only")
        case _:
            return ImageError(path, f"cannot be opened: {error.strerror}")
