"""Guest-physical memory: what the guest calls RAM, bounds-checked for everyone who touches it.

RAM starts at 0. Like a PC, what does not fit below the device hole (3 GiB to 4 GiB) continues at 4 GiB. Nothing outside
these regions can be reached through this class: every access names an address and a length, and both are checked
before a byte moves.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import struct
from typing import NamedTuple

from minivmm.errors import ConfigError, GuestMemoryError

PAGE_SIZE = 4096
HUGE_PAGE = 2 << 20
HOLE_START = 3 << 30  # devices live between 3 and 4 GiB (QEMU microvm's layout)
HOLE_END = 4 << 30

MIN_SIZE = 1 << 20  # real-mode trampolines and boot structures need the first MiB
MAX_SIZE = 1 << 40

MAP_NORESERVE = 0x4000  # asm-generic/mman.h; Python's mmap module names it from 3.13 on

_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class MemoryRegion(NamedTuple):
    """One run of RAM: what KVM calls a user memory region. Addresses and size in bytes."""

    guest_address: int
    size: int
    host_address: int


class GuestMemory:
    """`size` bytes of guest RAM backed by one anonymous private mapping, allocated by the kernel as it is touched.

    Raises ConfigError for a size that is not whole pages or out of range, or when the host refuses the mapping.
    """

    def __init__(self, size: int) -> None:
        if size % PAGE_SIZE or not MIN_SIZE <= size <= MAX_SIZE:
            raise ConfigError(
                f"guest memory of {size} bytes cannot be made",
                cause=f"it must be whole {PAGE_SIZE}-byte pages, from {MIN_SIZE >> 20} MiB to {MAX_SIZE >> 30} GiB",
                remedy="--mem 64M",
            )
        self.size = size
        try:
            self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"the host has no room for {size >> 20} MiB of guest memory",
                cause=str(error),
                remedy="ask for less with --mem",
            ) from error
        # Huge pages make a first touch 200 times cheaper where the guest maps 2 MiB pages (docs/backends.md). Not the
        # first: to clear all of it takes longer than a small guest needs to boot from a few pages in it.
        if size > HUGE_PAGE:
            self._map.madvise(mmap.MADV_HUGEPAGE, HUGE_PAGE, size - HUGE_PAGE)
        self._view = memoryview(self._map)
        anchor = ctypes.c_char.from_buffer(self._map)
        self.host_address = ctypes.addressof(anchor)
        del anchor  # or the mapping could never be closed
        self.low_size = min(size, HOLE_START)
        self.high_size = size - self.low_size

    @property
    def regions(self) -> tuple[MemoryRegion, ...]:
        """The RAM as KVM is told of it, lowest address first."""
        low = MemoryRegion(0, self.low_size, self.host_address)
        if not self.high_size:
            return (low,)
        return (low, MemoryRegion(HOLE_END, self.high_size, self.host_address + self.low_size))

    def _offset(self, address: int, length: int) -> int:
        """The offset in the mapping of `length` bytes at guest-physical `address`. Raises GuestMemoryError."""
        if length >= 0 and address >= 0:
            if address + length <= self.low_size:
                return address
            if address >= HOLE_END and address + length <= HOLE_END + self.high_size:
                return address - HOLE_END + self.low_size
        raise GuestMemoryError(address, length)

    def view(self, address: int, length: int) -> memoryview:
        """The guest's own bytes, writable, no copy: for preadv and pwritev. The guest may change them at any time."""
        offset = self._offset(address, length)
        return self._view[offset : offset + length]

    def read(self, address: int, length: int) -> bytes:
        """A copy, which the guest cannot change afterwards."""
        offset = self._offset(address, length)
        return self._map[offset : offset + length]

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copies `data` into the guest."""
        length = len(data)
        offset = self._offset(address, length)
        self._view[offset : offset + length] = data

    def read_u16(self, address: int) -> int:
        """The little-endian 16-bit word at `address`."""
        return int(_U16.unpack_from(self._map, self._offset(address, 2))[0])

    def read_u32(self, address: int) -> int:
        """The little-endian 32-bit word at `address`."""
        return int(_U32.unpack_from(self._map, self._offset(address, 4))[0])

    def read_u64(self, address: int) -> int:
        """The little-endian 64-bit word at `address`."""
        return int(_U64.unpack_from(self._map, self._offset(address, 8))[0])

    def write_u16(self, address: int, value: int) -> None:
        """Stores a little-endian 16-bit word."""
        _U16.pack_into(self._map, self._offset(address, 2), value)

    def write_u32(self, address: int, value: int) -> None:
        """Stores a little-endian 32-bit word."""
        _U32.pack_into(self._map, self._offset(address, 4), value)

    def write_u64(self, address: int, value: int) -> None:
        """Stores a little-endian 64-bit word."""
        _U64.pack_into(self._map, self._offset(address, 8), value)

    def discard(self, address: int, length: int) -> None:
        """Whole pages become zeros, and the host has their memory back. Raises GuestMemoryError."""
        self._map.madvise(mmap.MADV_DONTNEED, self._offset(address, length), length)

    def close(self) -> None:
        """Gives the memory back to the host, the last of it when the views handed out are gone."""
        self._view.release()
        # A device's view may still be alive (a request in flight): then the mapping goes with the last of them.
        with contextlib.suppress(BufferError):
            self._map.close()
