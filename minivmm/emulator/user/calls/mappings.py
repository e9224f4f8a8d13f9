"""Memory: brk and mmap."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from minivmm.emulator.user.abi import Map, Prot, SystemCall
from minivmm.emulator.user.calls.table import failure, signed, system_call
from minivmm.emulator.user.memory import STACK_TOP, USER_END, NoMemory
from minivmm.memory import PAGE_SIZE

if TYPE_CHECKING:
    from minivmm.emulator.user.process import Process

CHUNK = 1 << 20  # bytes of a file read at once
MREMAP_MAYMOVE = 1


@system_call(SystemCall.BRK)
def _brk(process: Process, wanted: int) -> int:
    return process.set_break(wanted)


@system_call(SystemCall.MMAP)
def _mmap(process: Process, address: int, length: int, prot: int, flags: int, fd: int, offset: int) -> int:
    size = length + PAGE_SIZE - 1 & ~(PAGE_SIZE - 1)
    if length == 0 or size > USER_END or offset % PAGE_SIZE or prot & ~7:
        raise failure(errno.EINVAL if size <= USER_END else errno.ENOMEM)
    memory = process.memory
    if flags & (Map.FIXED | Map.FIXED_NOREPLACE):
        if address % PAGE_SIZE or address + size > USER_END:
            raise failure(errno.EINVAL)
        if flags & Map.FIXED_NOREPLACE and not memory.is_free(address, size):
            raise failure(errno.EEXIST)
    else:
        try:
            address = memory.find_room(size, address)
        except NoMemory:
            raise failure(errno.ENOMEM) from None
    host = -1
    if not flags & Map.ANONYMOUS:
        if flags & Map.SHARED and prot & Prot.WRITE:
            raise failure(errno.ENODEV)  # what is written would have to reach the file
        host = process.files.host(signed(fd))
        if not stat.S_ISREG(os.fstat(host).st_mode):
            raise failure(errno.ENODEV)
    try:
        process.map(address, size, Prot(prot))
        at = 0
        while host >= 0 and at < length and (data := os.pread(host, min(CHUNK, length - at), offset + at)):
            process.fill(address + at, data)
            at += len(data)
    except NoMemory:
        process.unmap(address, size)
        raise failure(errno.ENOMEM) from None
    return address


@system_call(SystemCall.MREMAP)
def _mremap(process: Process, old: int, old_length: int, new_length: int, flags: int) -> int:
    memory = process.memory
    old_size, size = (length + PAGE_SIZE - 1 & ~(PAGE_SIZE - 1) for length in (old_length, new_length))
    if old % PAGE_SIZE or not old_size or not 0 < size <= USER_END or flags & ~MREMAP_MAYMOVE:
        raise failure(errno.EINVAL)
    segment = memory.segment(old)
    if segment is None or segment.end < old + old_size:
        raise failure(errno.EFAULT)
    try:
        if size <= old_size:
            process.unmap(old + size, old_size - size)
            return old
        if old + size <= STACK_TOP and memory.is_free(old + old_size, size - old_size):
            process.map(old + old_size, size - old_size, segment.prot)
            return old
        if not flags & MREMAP_MAYMOVE:
            raise NoMemory
        address = memory.find_room(size)
        process.move(old, old_size, address)
        process.map(address + old_size, size - old_size, segment.prot)
    except NoMemory:
        raise failure(errno.ENOMEM) from None
    return address


@system_call(SystemCall.MUNMAP)
def _munmap(process: Process, address: int, length: int) -> int:
    size = length + PAGE_SIZE - 1 & ~(PAGE_SIZE - 1)
    if address % PAGE_SIZE or length == 0 or address + size > USER_END:
        raise failure(errno.EINVAL)
    try:
        process.unmap(address, size)
    except NoMemory:
        raise failure(errno.ENOMEM) from None
    return 0


@system_call(SystemCall.MPROTECT)
def _mprotect(process: Process, address: int, length: int, prot: int) -> int:
    size = length + PAGE_SIZE - 1 & ~(PAGE_SIZE - 1)
    if address % PAGE_SIZE or prot & ~7 or address + size > USER_END:
        raise failure(errno.EINVAL)
    try:
        mapped = not size or process.protect(address, size, Prot(prot))
    except NoMemory:
        mapped = False
    if not mapped:
        raise failure(errno.ENOMEM)
    return 0


@system_call(SystemCall.MADVISE)
def _madvise(_process: Process) -> int:
    return 0
