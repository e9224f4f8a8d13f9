"""Descriptors: opened, read, written, duplicated, waited for."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import select
import stat
import struct
import termios
from typing import TYPE_CHECKING

from minivmm.emulator.traps import Access
from minivmm.emulator.user.abi import IOVEC, NANOSECONDS, POLLFD, TCGETS, TIMESPEC, TIOCGWINSZ, WINSIZE, SystemCall
from minivmm.emulator.user.calls.table import failure, signed, system_call
from minivmm.emulator.user.files import MAX_FILES

if TYPE_CHECKING:
    from minivmm.emulator.user.process import Process

CHUNK = 1 << 20  # bytes moved at once by read and write
MAX_IOVECS = 1024


@system_call(SystemCall.READ)
def _read(process: Process, fd: int, buffer: int, count: int) -> int:
    host = process.files.host(signed(fd))
    process.wait_for(host, select.POLLIN)
    data = os.read(host, min(count, CHUNK))
    process.store(buffer, data)
    return len(data)


@system_call(SystemCall.WRITE)
def _write(process: Process, fd: int, buffer: int, count: int) -> int:
    host = process.files.host(signed(fd))
    count = process.files.spend(host, min(count, CHUNK))
    if process.wait_for(host, select.POLLOUT):
        count = min(count, select.PIPE_BUF)  # so much can be written without waiting (poll(2))
    pieces = process.memory.views(buffer, count, Access.LOAD)
    return os.writev(host, pieces or [b""])


def _vector(process: Process, address: int, count: int) -> list[tuple[int, int]]:
    if signed(count) < 0 or count > MAX_IOVECS:
        raise failure(errno.EINVAL)
    return list(IOVEC.iter_unpack(process.memory.read(address, IOVEC.size * count)))


@system_call(SystemCall.READV)
def _readv(process: Process, fd: int, address: int, count: int) -> int:
    total = 0
    for base, length in _vector(process, address, count):
        done = _read(process, fd, base, length) if length else 0
        total += done
        if done < length:
            break
    return total


@system_call(SystemCall.WRITEV)
def _writev(process: Process, fd: int, address: int, count: int) -> int:
    total = 0
    for base, length in _vector(process, address, count):
        done = _write(process, fd, base, length) if length else 0
        total += done
        if done < length:
            break
    return total


@system_call(SystemCall.PREAD64)
def _pread(process: Process, fd: int, buffer: int, count: int, offset: int) -> int:
    data = os.pread(process.files.host(signed(fd)), min(count, CHUNK), offset)
    process.store(buffer, data)
    return len(data)


@system_call(SystemCall.PWRITE64)
def _pwrite(process: Process, fd: int, buffer: int, count: int, offset: int) -> int:
    host = process.files.host(signed(fd))
    count = process.files.spend(host, min(count, CHUNK))
    return os.pwrite(host, process.memory.read(buffer, count), offset)


@system_call(SystemCall.SENDFILE)
def _sendfile(process: Process, to: int, source: int, offset_at: int, count: int) -> int:
    reader, writer = process.files.host(signed(source)), process.files.host(signed(to))
    if not stat.S_ISREG(os.fstat(reader).st_mode):
        raise failure(errno.EINVAL)  # programs read and write then
    count = process.files.spend(writer, min(count, CHUNK))
    if process.wait_for(writer, select.POLLOUT):
        count = min(count, select.PIPE_BUF)
    if not offset_at:
        return os.write(writer, os.read(reader, count))
    offset = int.from_bytes(process.memory.read(offset_at, 8), "little", signed=True)
    done = os.write(writer, os.pread(reader, count, offset))
    process.store(offset_at, (offset + done).to_bytes(8, "little"))
    return done


@system_call(SystemCall.FADVISE64)
def _fadvise64(_process: Process) -> int:
    return 0


@system_call(SystemCall.OPENAT)
def _openat(process: Process, directory: int, path: int, flags: int, mode: int) -> int:
    name = process.path(directory, path)
    return process.files.add(process.files.open(name, flags, mode), below=True)


@system_call(SystemCall.CLOSE)
def _close(process: Process, fd: int) -> int:
    process.files.close(signed(fd))
    return 0


@system_call(SystemCall.LSEEK)
def _lseek(process: Process, fd: int, offset: int, whence: int) -> int:
    return os.lseek(process.files.host(signed(fd)), (offset ^ 1 << 63) - (1 << 63), signed(whence))


@system_call(SystemCall.DUP)
def _dup(process: Process, fd: int) -> int:
    return process.files.duplicate(signed(fd))


@system_call(SystemCall.DUP3)
def _dup3(process: Process, old: int, new: int, _flags: int) -> int:
    if old == new or not 0 <= signed(new) < MAX_FILES:
        raise failure(errno.EINVAL)
    process.files.duplicate_as(signed(old), signed(new))
    return new


@system_call(SystemCall.PIPE2)
def _pipe2(process: Process, address: int, _flags: int) -> int:
    numbers = [process.files.add(end) for end in os.pipe()]
    process.store(address, struct.pack("<ii", *numbers))
    return 0


@system_call(SystemCall.FCNTL)
def _fcntl(process: Process, fd: int, command: int, argument: int) -> int:
    host = process.files.host(signed(fd))
    match signed(command):
        case fcntl.F_DUPFD | fcntl.F_DUPFD_CLOEXEC:
            return process.files.duplicate(signed(fd), signed(argument))
        case fcntl.F_GETFD | fcntl.F_SETFD:
            return 0  # there is no exec that would close it
        case fcntl.F_GETFL:
            return fcntl.fcntl(host, fcntl.F_GETFL)
        case fcntl.F_SETFL:
            return 0
    raise failure(errno.EINVAL)


@system_call(SystemCall.IOCTL)
def _ioctl(process: Process, fd: int, request: int, address: int) -> int:
    host = process.files.host(signed(fd))
    if not os.isatty(host) or request not in (TCGETS, TIOCGWINSZ):
        raise failure(errno.ENOTTY)
    if request == TIOCGWINSZ:
        process.store(address, fcntl.ioctl(host, termios.TIOCGWINSZ, bytes(WINSIZE.size)))
    else:
        process.store(address, fcntl.ioctl(host, termios.TCGETS, bytes(36)))
    return 0


@system_call(SystemCall.PPOLL)
def _ppoll(process: Process, address: int, count: int, timeout: int) -> int:
    if count > MAX_FILES:
        raise failure(errno.EINVAL)
    wanted = list(POLLFD.iter_unpack(process.memory.read(address, POLLFD.size * count)))
    poller = select.poll()
    for fd, events, _ in wanted:
        if fd >= 0:
            poller.register(process.files.host(fd), events)
    pause = math.inf
    if timeout:
        seconds, nanoseconds = TIMESPEC.unpack(process.memory.read(timeout, TIMESPEC.size))
        pause = seconds + nanoseconds / NANOSECONDS
    ready = dict(process.poll(poller, pause))
    found = [(fd, events, ready.get(process.files.host(fd), 0) if fd >= 0 else 0) for fd, events, _ in wanted]
    process.store(address, b"".join(POLLFD.pack(*entry) for entry in found))
    return sum(1 for _, _, revents in found if revents)
