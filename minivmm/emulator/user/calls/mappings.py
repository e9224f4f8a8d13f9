"""Memory: brk and mmap."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from minivmm.emulator.user.abi import Map, Prot, SystemCall
from minivmm.emulator.user.calls.table import failure, signed, system_call
from minivmm.emulator.user.memory import USER_END, NoMemory
from minivmm.memory import PAGE_SIZE

if TYPE_CHECKING:
    from minivmm.emulator.user.process import Process


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
    data = b""
    if not flags & Map.ANONYMOUS:
        if flags & Map.SHARED and prot & Prot.WRITE:
            raise failure(errno.ENODEV)  # what is written would have to reach the file
        data = os.pread(process.files.host(signed(fd)), length, offset)
    process.map(address, size, Prot(prot))
    try:
        process.fill(address, data)
    except NoMemory:
        process.unmap(address, size)
        raise failure(errno.ENOMEM) from None
    return address


@system_call(SystemCall.MUNMAP)
def _munmap(process: Process, address: int, length: int) -> int:
    size = length + PAGE_SIZE - 1 & ~(PAGE_SIZE - 1)
    if address % PAGE_SIZE or length == 0 or address + size > USER_END:
        raise failure(errno.EINVAL)
    process.unmap(address, size)
    return 0


@system_call(SystemCall.MPROTECT)
def _mprotect(process: Process, address: int, length: int, prot: int) -> int:
    size = length + PAGE_SIZE - 1 & ~(PAGE_SIZE - 1)
    if address % PAGE_SIZE or prot & ~7 or address + size > USER_END:
        raise failure(errno.EINVAL)
    if size and not process.protect(address, size, Prot(prot)):
        raise failure(errno.ENOMEM)
    return 0


@system_call(SystemCall.MADVISE)
def _madvise(_process: Process) -> int:
    return 0
