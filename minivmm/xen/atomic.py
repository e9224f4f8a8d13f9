"""Locked instructions on guest memory: what a domain's own CPUs change at the same time, changed without losing theirs.

Event bits and grant flags are words that guest and hypervisor both write, each with locked instructions
(xen/grant_table.h: "SMP-safe CMPXCHG"; event bits: `lock btr`). Python has no such store and a vCPU thread runs outside
its lock, so the three instructions needed are here as x86-64 code, called in place: about 1 µs each.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
from collections.abc import Callable
from typing import NamedTuple

from minivmm.errors import ConfigError, GuestMemoryError
from minivmm.memory import GuestMemory

# System V calling convention: rdi = address, rsi and rdx = operands, eax = result.
BIT_TEST_AND_SET = bytes.fromhex(
    "f0480fab37"  # lock bts [rdi], rsi   CF = the bit as it was
    "0f92c0"  # setc al
    "0fb6c0"  # movzx eax, al
    "c3"  # ret
)
BIT_TEST_AND_RESET = bytes.fromhex("f0480fb337 0f92c0 0fb6c0 c3")  # the same with btr
COMPARE_EXCHANGE_32 = bytes.fromhex(
    "89f0"  # mov eax, esi              what is expected there
    "f00fb117"  # lock cmpxchg [rdi], edx   eax = what was there
    "c3"  # ret
)
SLOT = 16  # bytes a routine, more than the longest


class Routines(NamedTuple):
    """The three routines, callable with a host address."""

    test_and_set_bit: Callable[[int, int], int]
    test_and_clear_bit: Callable[[int, int], int]
    compare_exchange: Callable[[int, int, int], int]


@functools.cache
def _routines() -> Routines:
    """The code in a page that is never writable and executable at once. Raises ConfigError where the host forbids
    executable mappings."""
    code = b"".join(part.ljust(SLOT, b"\xcc") for part in (BIT_TEST_AND_SET, BIT_TEST_AND_RESET, COMPARE_EXCHANGE_32))
    descriptor = os.memfd_create("locked instructions")
    try:
        os.write(descriptor, code.ljust(mmap.PAGESIZE, b"\xcc"))
        # libc's mmap, since Python's own gives the address of a writable mapping only.
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        page = libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, descriptor, 0)
    finally:
        os.close(descriptor)
    if page is None or page == ctypes.c_void_p(-1).value:
        raise ConfigError(
            "domains need a page of executable code and the host refuses it",
            cause=os.strerror(ctypes.get_errno()),
            remedy="allow executable mappings for this process (SELinux: execmem)",
        )
    # PYFUNCTYPE keeps Python's lock: to give it up and take it back would cost more than the instruction.
    bit = ctypes.PYFUNCTYPE(ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint64)
    exchange = ctypes.PYFUNCTYPE(ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32)
    return Routines(bit(page), bit(page + SLOT), exchange(page + 2 * SLOT))


class AtomicMemory:
    """Guest memory seen through locked instructions. Addresses are machine addresses, naturally aligned.

    Every method raises GuestMemoryError for an address outside memory or not aligned.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._regions = memory.regions
        # Host addresses are used below: as long as this view lives, the mapping does too, closed or not.
        self._hold = memory.view(0, 1)
        self._set, self._clear, self._exchange = _routines()

    def _host_address(self, address: int, size: int) -> int:
        if not address % size:
            for region in self._regions:
                if region.guest_address <= address <= region.guest_address + region.size - size:
                    return region.host_address + address - region.guest_address
        raise GuestMemoryError(address, size)

    def test_and_set_bit(self, address: int, bit: int) -> bool:
        """Sets bit 0..63 of the 64-bit word; returns what it was."""
        return bool(self._set(self._host_address(address, 8), bit & 63))

    def test_and_clear_bit(self, address: int, bit: int) -> bool:
        """Clears bit 0..63 of the 64-bit word; returns what it was."""
        return bool(self._clear(self._host_address(address, 8), bit & 63))

    def test_bit(self, address: int, bit: int) -> bool:
        """Bit 0..63 of the 64-bit word, read once."""
        return bool(self._memory.read_u64(address) >> (bit & 63) & 1)

    def compare_exchange(self, address: int, expected: int, new: int) -> int:
        """Stores `new` in the 32-bit word if it holds `expected`; returns what it held."""
        return self._exchange(self._host_address(address, 4), expected & 0xFFFFFFFF, new & 0xFFFFFFFF)
