"""One of the two that are compared: its hart, what it put out, its memory."""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Mapping
from hashlib import blake2b
from typing import NamedTuple, Protocol

from minivmm.emulator.hart import Hart
from minivmm.emulator.physical import Ram
from minivmm.memory import PAGE_SIZE

CHUNK = 1 << 20  # bytes of RAM compared at once
MAX_PLACES = 16  # places that are told when memory differs
_WORD = 8
_PAGEMAP_ENTRY = 8  # bytes: Documentation/admin-guide/mm/pagemap.rst
_libc = ctypes.CDLL(None)
_libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_ZERO = ctypes.create_string_buffer(CHUNK)  # what memory that was never touched holds


class Piece(NamedTuple):
    """Memory of a guest in one piece: where it is in the host, and bytes."""

    host: int
    size: int


class Side(Protocol):
    """A guest under one engine."""

    name: str
    hart: Hart

    def look(self) -> bool:
        """Takes a pending interrupt. False while the hart waits for one."""

    def idle(self, longest: float) -> None:
        """Waits for one. Raises EndOfRun when none can come."""

    def output(self) -> tuple[int, bytes]:
        """How many bytes it put out so far, and their hash."""

    def memory(self) -> Mapping[int, Piece]:
        """Its memory by guest address; what was never touched may be left out."""

    def read(self, address: int, size: int) -> bytes:
        """Bytes of memory at an address as `memory` has it; zeros where is none."""

    def fetch(self, address: int, mode: int) -> int:
        """The four bytes of an instruction, by the guest's own address, in a privilege mode; 0 where is none."""

    def send(self, data: bytes) -> None:
        """Input for the guest."""

    def close(self) -> None:
        """Gives everything back."""


class Digest:
    """What was put out, in a few bytes."""

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=16)
        self._count = 0

    def add(self, data: bytes) -> None:
        """More of it."""
        self._hash.update(data)
        self._count += len(data)

    def value(self) -> tuple[int, bytes]:
        """Bytes so far, and their hash."""
        return self._count, self._hash.digest()


def ram_pieces(ram: Ram) -> dict[int, Piece]:
    """The chunks of RAM of which the host's kernel has given a page."""
    region = ram.regions[0]
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pages = region.size // PAGE_SIZE
        entries = array("Q", os.pread(pagemap.fileno(), pages * _PAGEMAP_ENTRY, region.host_address // PAGE_SIZE * 8))
    found = {}
    step = CHUNK // PAGE_SIZE
    for first in range(0, pages, step):
        if any(entries[first : first + step]):
            at = first * PAGE_SIZE
            size = min(CHUNK, region.size - at)
            found[region.guest_address + at] = Piece(region.host_address + at, size)
    return found


def differing_words(first: Mapping[int, Piece], second: Mapping[int, Piece]) -> list[int]:
    """Addresses of aligned words that are not the same, the lowest MAX_PLACES of them."""
    found: list[int] = []
    for address in sorted(first.keys() | second.keys()):
        size = (first.get(address) or second[address]).size
        hosts = [side[address].host if address in side else ctypes.addressof(_ZERO) for side in (first, second)]
        if not _libc.memcmp(*hosts, size):
            continue
        for at in range(0, size, PAGE_SIZE):
            left, right = (ctypes.string_at(host + at, PAGE_SIZE) for host in hosts)
            if left != right:
                words = range(0, PAGE_SIZE, _WORD)
                found += [address + at + word for word in words if left[word : word + 8] != right[word : word + 8]]
                if len(found) >= MAX_PLACES:
                    return found[:MAX_PLACES]
    return found
