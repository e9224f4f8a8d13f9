"""What a program changes about files: rights, times, names; and the file system they are in."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from minivmm.emulator.user.abi import (
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    NANOSECONDS,
    STATFS,
    TIMESPEC,
    UTIME_NOW,
    UTIME_OMIT,
    SystemCall,
)
from minivmm.emulator.user.calls.table import failure, signed, system_call

if TYPE_CHECKING:
    from minivmm.emulator.user.process import Process

RIGHTS = 0o777  # no set-user-ID: the files are the host's
UNCHANGED = 0xFFFF_FFFF  # chown(2): -1


def _itself(descriptor: int) -> str:
    """A path to what is open, O_PATH or not: what it names is below the root, where it was opened."""
    return f"/proc/self/fd/{descriptor}"


@system_call(SystemCall.FCHMOD)
def _fchmod(process: Process, fd: int, mode: int) -> int:
    os.chmod(_itself(process.files.own(signed(fd))), mode & RIGHTS)
    return 0


@system_call(SystemCall.FCHMODAT)
def _fchmodat(process: Process, directory: int, path: int, mode: int) -> int:
    with process.opened(process.path(directory, path), os.O_PATH) as fd:
        os.chmod(_itself(fd), mode & RIGHTS)
    return 0


@system_call(SystemCall.FCHOWN)
def _fchown(process: Process, fd: int, user: int, group: int) -> int:
    process.files.host(signed(fd))
    if (user & UNCHANGED, group & UNCHANGED) != (UNCHANGED, UNCHANGED):
        raise failure(errno.EPERM)  # as for every user but root
    return 0


@system_call(SystemCall.FCHOWNAT)
def _fchownat(process: Process, directory: int, path: int, user: int, group: int, flags: int) -> int:
    nofollow = os.O_NOFOLLOW if flags & AT_SYMLINK_NOFOLLOW else 0
    with process.opened(process.path(directory, path), os.O_PATH | nofollow):
        if (user & UNCHANGED, group & UNCHANGED) != (UNCHANGED, UNCHANGED):
            raise failure(errno.EPERM)
    return 0


@system_call(SystemCall.UTIMENSAT)
def _utimensat(process: Process, directory: int, path: int, times: int, flags: int) -> int:
    if not path:
        _set_times(process, process.files.own(signed(directory)), times)
        return 0
    nofollow = os.O_NOFOLLOW if flags & AT_SYMLINK_NOFOLLOW else 0
    with process.opened(process.path(directory, path), os.O_PATH | nofollow) as fd:
        _set_times(process, fd, times)
    return 0


def _set_times(process: Process, host: int, address: int) -> None:
    now, wanted = time.time_ns(), [(0, UTIME_NOW)] * 2
    if address:
        wanted = list(TIMESPEC.iter_unpack(process.memory.read(address, 2 * TIMESPEC.size)))
    status = os.fstat(host)
    times = []
    for (seconds, nanoseconds), old in zip(wanted, (status.st_atime_ns, status.st_mtime_ns), strict=True):
        if nanoseconds not in (UTIME_NOW, UTIME_OMIT) and not 0 <= nanoseconds < NANOSECONDS:
            raise failure(errno.EINVAL)
        fixed = {UTIME_NOW: now, UTIME_OMIT: old}
        times.append(fixed.get(nanoseconds, seconds * NANOSECONDS + nanoseconds))
    os.utime(_itself(host), ns=(times[0], times[1]))


@system_call(SystemCall.SYMLINKAT)
def _symlinkat(process: Process, target: int, directory: int, path: int) -> int:
    text = process.memory.string(target)
    with process.files.parent(process.path(directory, path)) as (parent, last):
        process.files.spend_name()
        os.symlink(text, os.fsencode(last), dir_fd=parent)
    return 0


@system_call(SystemCall.LINKAT)
def _linkat(process: Process, old_directory: int, old: int, new_directory: int, new: int, flags: int) -> int:
    if flags:
        raise failure(errno.EINVAL)
    parent = process.files.parent
    with (
        parent(process.path(old_directory, old)) as (source, source_name),
        parent(process.path(new_directory, new)) as (target, target_name),
    ):
        process.files.spend_name()
        os.link(source_name, target_name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    return 0


@system_call(SystemCall.FSTATFS)
def _fstatfs(process: Process, fd: int, address: int) -> int:
    _tell_file_system(process, process.files.host(signed(fd)), address)
    return 0


@system_call(SystemCall.STATFS)
def _statfs(process: Process, path: int, address: int) -> int:
    with process.opened(process.path(AT_FDCWD, path), os.O_PATH) as fd:
        _tell_file_system(process, fd, address)
    return 0


def _tell_file_system(process: Process, host: int, address: int) -> None:
    found = os.fstatvfs(host)
    sizes = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)
    process.store(address, STATFS.pack(0, found.f_bsize, *sizes, 0, 0, found.f_namemax, found.f_frsize, 0))
