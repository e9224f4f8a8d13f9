"""Paths and what is known of them, all below the program's root (files.Files)."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from minivmm.emulator.user.abi import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_REMOVEDIR,
    AT_SYMLINK_NOFOLLOW,
    DIRENT,
    NANOSECONDS,
    STAT,
    SystemCall,
)
from minivmm.emulator.user.calls.table import failure, signed, system_call

if TYPE_CHECKING:
    from minivmm.emulator.user.process import Process

CHUNK = 1 << 20  # bytes of directory entries at once
DT_DIR, DT_REG, DT_LNK = 4, 8, 10  # include/uapi/linux/fs.h


def _pack_stat(status: os.stat_result) -> bytes:
    times = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
    return STAT.pack(
        *(status.st_dev, status.st_ino, status.st_mode, status.st_nlink, status.st_uid, status.st_gid),
        *(status.st_rdev, 0, status.st_size, status.st_blksize, 0, status.st_blocks),
        *(part for time in times for part in divmod(time, NANOSECONDS)),
        *(0, 0),
    )


@system_call(SystemCall.FSTAT)
def _fstat(process: Process, fd: int, address: int) -> int:
    process.store(address, _pack_stat(os.fstat(process.files.host(signed(fd)))))
    return 0


@system_call(SystemCall.NEWFSTATAT)
def _newfstatat(process: Process, directory: int, path: int, address: int, flags: int) -> int:
    if flags & AT_EMPTY_PATH and not process.memory.string(path):
        return _fstat(process, directory, address)
    nofollow = os.O_NOFOLLOW if flags & AT_SYMLINK_NOFOLLOW else 0
    with process.opened(process.path(directory, path), os.O_PATH | nofollow) as fd:
        process.store(address, _pack_stat(os.fstat(fd)))
    return 0


@system_call(SystemCall.FACCESSAT, SystemCall.FACCESSAT2)
def _faccessat(process: Process, directory: int, path: int, mode: int) -> int:
    with process.opened(process.path(directory, path), os.O_PATH) as fd:
        if not os.access(f"/proc/self/fd/{fd}", mode & 7):
            raise failure(errno.EACCES)
    return 0


@system_call(SystemCall.READLINKAT)
def _readlinkat(process: Process, directory: int, path: int, buffer: int, size: int) -> int:
    name = process.path(directory, path)
    if name == "/proc/self/exe":
        target = os.fsencode(process.name)
    else:
        with process.files.parent(name) as (parent, last):
            target = os.fsencode(os.readlink(last, dir_fd=parent))
    if signed(size) <= 0:
        raise failure(errno.EINVAL)
    target = target[:size]
    process.store(buffer, target)
    return len(target)


@system_call(SystemCall.GETDENTS64)
def _getdents64(process: Process, fd: int, buffer: int, size: int) -> int:
    """struct linux_dirent64 (getdents(2)). Entries are read once an open file."""
    size = min(size, CHUNK)
    host, listings = process.files.host(signed(fd)), process.files.listings
    left = listings.get(host)
    if left is None:
        left = _entries(host)
    found = bytearray()
    while left and len(found) + len(left[-1]) <= size:
        found += left.pop()
    if left and not found:
        raise failure(errno.EINVAL)
    listings[host] = left
    if not found:
        del listings[host]
    process.store(buffer, bytes(found))
    return len(found)


def _entries(host: int) -> list[bytes]:
    """All of a directory, the last first."""
    found = []
    with os.scandir(host) as entries:
        for at, entry in enumerate(entries, 1):
            kind = DT_DIR if entry.is_dir(follow_symlinks=False) else DT_LNK if entry.is_symlink() else DT_REG
            name = os.fsencode(entry.name) + b"\0"
            length = DIRENT.size + len(name) + 7 & ~7
            found.append(DIRENT.pack(entry.inode(), at, length, kind) + name.ljust(length - DIRENT.size, b"\0"))
    return found[::-1]


@system_call(SystemCall.MKDIRAT)
def _mkdirat(process: Process, directory: int, path: int, mode: int) -> int:
    with process.files.parent(process.path(directory, path)) as (parent, last):
        process.files.spend_name()
        os.mkdir(last, mode & 0o777, dir_fd=parent)
    return 0


@system_call(SystemCall.UNLINKAT)
def _unlinkat(process: Process, directory: int, path: int, flags: int) -> int:
    with process.files.parent(process.path(directory, path)) as (parent, last):
        if flags & AT_REMOVEDIR:
            os.rmdir(last, dir_fd=parent)
        else:
            os.unlink(last, dir_fd=parent)
    return 0


@system_call(SystemCall.RENAMEAT2)
def _renameat2(process: Process, old_directory: int, old: int, new_directory: int, new: int, flags: int) -> int:
    if flags:
        raise failure(errno.EINVAL)
    parent = process.files.parent
    with (
        parent(process.path(old_directory, old)) as (source, source_name),
        parent(process.path(new_directory, new)) as (target, target_name),
    ):
        os.rename(source_name, target_name, src_dir_fd=source, dst_dir_fd=target)
    return 0


@system_call(SystemCall.FTRUNCATE)
def _ftruncate(process: Process, fd: int, length: int) -> int:
    os.ftruncate(process.files.host(signed(fd)), length)
    return 0


@system_call(SystemCall.FSYNC, SystemCall.FDATASYNC)
def _fsync(process: Process, fd: int) -> int:
    os.fsync(process.files.host(signed(fd)))
    return 0


@system_call(SystemCall.GETCWD)
def _getcwd(process: Process, buffer: int, size: int) -> int:
    path = os.fsencode(process.files.cwd) + b"\0"
    if len(path) > size:
        raise failure(errno.ERANGE)
    process.store(buffer, path)
    return len(path)


@system_call(SystemCall.CHDIR)
def _chdir(process: Process, path: int) -> int:
    name = os.path.normpath(process.path(AT_FDCWD, path))
    with process.opened(name, os.O_PATH | os.O_DIRECTORY):
        process.files.cwd = name
    return 0
