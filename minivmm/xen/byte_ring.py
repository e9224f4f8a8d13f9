"""One direction of a byte stream between a domain and the hypervisor (io/console.h, docs/misc/xenstore-ring.txt).

A power of two of bytes and two indices that run freely modulo 2^32: the producer's counts bytes written, the consumer's
bytes read. The index that is ours is kept here and stored in the page by every call, over whatever the domain may have
put there; the domain's is read once a call and judged before it is used. Bytes are stored before the index that
announces them, and x86 keeps that order.
"""

from __future__ import annotations

from minivmm.errors import GuestError
from minivmm.memory import GuestMemory

INDEX_MASK = 0xFFFFFFFF


class RingIndexError(GuestError):
    """The domain's index cannot be: more bytes would be in the ring than it has room for."""


class ByteRing:
    """What both ends share. `data`, `ours` and `theirs` are machine addresses: the bytes, and the two indices."""

    def __init__(self, memory: GuestMemory, data: int, size: int, ours: int, theirs: int) -> None:
        self._memory = memory
        self._data = data
        self.size = size
        self._ours = ours
        self._theirs = theirs
        self._index = memory.read_u32(ours)

    def _publish(self, index: int) -> None:
        self._index = index & INDEX_MASK
        self._memory.write_u32(self._ours, self._index)

    def _pieces(self, length: int) -> list[tuple[int, int]]:
        """Address and length of the next `length` bytes, in two pieces when they go round the end."""
        start = self._index % self.size
        first = min(length, self.size - start)
        return [(self._data + start, first), (self._data, length - first)]

    def restart(self) -> None:
        """Agrees with the domain's index, whatever it is: the ring is empty."""
        self._publish(self._memory.read_u32(self._theirs))


class RingReader(ByteRing):
    """The domain produces, we consume: ours is the consumer's index."""

    def used(self) -> int:
        """Bytes to be read. Raises RingIndexError."""
        used = (self._memory.read_u32(self._theirs) - self._index) & INDEX_MASK
        if used > self.size:
            raise RingIndexError(f"{used} bytes cannot be in a ring of {self.size}")
        return used

    def take(self) -> bytes:
        """Everything that is there now, at most the ring's size. Raises RingIndexError."""
        used = self.used()
        data = b"".join(self._memory.read(address, length) for address, length in self._pieces(used))
        self._publish(self._index + used)
        return data


class RingWriter(ByteRing):
    """We produce, the domain consumes: ours is the producer's index."""

    def room(self) -> int:
        """Bytes that fit. Raises RingIndexError."""
        used = (self._index - self._memory.read_u32(self._theirs)) & INDEX_MASK
        if used > self.size:
            raise RingIndexError(f"{used} bytes cannot be in a ring of {self.size}")
        return self.size - used

    def put(self, data: bytes | bytearray) -> int:
        """As much of the start of `data` as fits; returns how many bytes that was. Raises RingIndexError."""
        length = min(self.room(), len(data))
        done = 0
        for address, piece in self._pieces(length):
            self._memory.write(address, data[done : done + piece])
            done += piece
        self._publish(self._index + length)
        return length
