"""The split virtqueue, seen from the device (virtio 1.2, 2.7).

A queue is three areas of guest memory: the descriptor table, the available ring (the driver writes, we read) and the
used ring (we write, the driver reads). The guest can change all of it at any moment, so every descriptor is copied
once, the copy is checked, and only the copy is used.

The order of our loads and stores is what x86 gives: loads in order, stores in order, and a store may pass a later
load. The only place where that last matters is "tell the driver, then look again", and `_fence` stands there.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from enum import IntFlag
from time import monotonic
from typing import NamedTuple

from minivmm.errors import DriverError, GuestMemoryError
from minivmm.layout import Layout
from minivmm.memory import GuestMemory
from minivmm.virtio.device import Chain, Handler

MAX_QUEUE_SIZE = 32768  # 2.7: the largest Queue Size
MAX_CHAIN_BYTES = 1 << 32  # 2.7.5.2: a chain is at most 2^32 bytes long in total

DRAIN_ROUNDS = 4  # chains served in one call: at most this many times the queue's size
DRAIN_SECONDS = 0.05  # and no further chain is begun after this time


class Descriptor(NamedTuple):
    """struct virtq_desc (2.7.5): one guest buffer."""

    addr: int  # guest-physical
    len: int  # bytes
    flags: int  # DescriptorFlag
    next: int  # index of the next descriptor, when flags & NEXT


DESCRIPTOR = Layout("<QIHH", Descriptor)


class DescriptorFlag(IntFlag):
    """virtq_desc.flags (2.7.5)."""

    NEXT = 1  # the chain goes on at `next`
    WRITE = 2  # device-writable; otherwise device-readable
    INDIRECT = 4  # the buffer is itself a table of descriptors


class AvailableRing(NamedTuple):
    """struct virtq_avail (2.7.6): the fields before the ring, each 16 bits. ring[] and used_event follow."""

    flags: int
    idx: int


class UsedElement(NamedTuple):
    """struct virtq_used_elem (2.7.8)."""

    id: int  # index of the chain's first descriptor
    len: int  # bytes the device wrote


USED_ELEMENT = Layout("<II", UsedElement)

AVAIL_NO_INTERRUPT = 1  # virtq_avail.flags (2.7.7)
USED_NO_NOTIFY = 1  # virtq_used.flags (2.7.10)

# The same flags as plain numbers: an IntFlag costs the hot path a microsecond a test.
_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_unpack_descriptor = struct.Struct("<QIHH").unpack_from
_FLAGS, _IDX, _RING = 0, 1, 2  # of both rings, in 16-bit words


class QueueAddresses(NamedTuple):
    """Where the driver put the three areas (guest-physical), with the names of virtio 1.2 and in the old ones."""

    descriptor: int  # descriptor table: 16 bytes an entry, aligned to 16
    driver: int  # available ring: 6 + 2 bytes an entry, aligned to 2
    device: int  # used ring: 6 + 8 bytes an entry, aligned to 4


def need_event(event: int, new: int, old: int) -> bool:
    """vring_need_event (2.7.10): whether an index that went from `old` to `new` passed `event`; all modulo 2^16."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


class Virtqueue:
    """One enabled queue: `pop` takes a chain from the driver, `push` gives it back, `drain` does both to the end.

    Made when the driver sets QueueReady; raises DriverError for a size or an address no queue can have. All other
    methods raise DriverError or GuestMemoryError for what the driver did wrong; after that the queue is not used again.
    """

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        addresses: QueueAddresses,
        *,
        max_size: int,
        indirect: bool,
        event_idx: bool,
    ) -> None:
        if not 0 < size <= min(max_size, MAX_QUEUE_SIZE) or size & (size - 1):
            raise DriverError(f"queue size {size}: not a power of 2 up to {max_size} (virtio 1.2, 2.7)")
        for area, address, alignment in zip(QueueAddresses._fields, addresses, (16, 2, 4), strict=True):
            if address % alignment:
                raise DriverError(f"{area} area at {address:#x} is not aligned to {alignment} (virtio 1.2, 2.7)")
        self.size = size
        self._mask = size - 1
        self._indirect = indirect
        self._max_indirect = max_size
        self._view = memory.view
        # Bounds are checked here, once: a view cannot reach beyond its area. The rings are read as native 16- and
        # 32-bit words (x86 is little-endian as the rings are) because an index must be loaded and stored whole:
        # struct's "<H" moves one byte at a time, and the other side could see half of an update.
        try:
            self._table = memory.view(addresses.descriptor, 16 * size)
            self._avail = memory.view(addresses.driver, 6 + 2 * size).cast("H")
            self._used = memory.view(addresses.device, 6 + 8 * size).cast("H")
            self._used_elements = memory.view(addresses.device, 4 + 8 * size).cast("I")
        except GuestMemoryError as error:
            raise DriverError(f"a queue of {size} lies outside guest memory: {error}") from error
        self._event_idx = event_idx
        self._used_event = _RING + size  # word of virtq_avail.used_event (2.7.6)
        self._avail_event = _RING + 4 * size  # word of virtq_used.avail_event (2.7.8)
        self._next_avail = 0
        self._next_used = 0
        self._signalled = 0  # the used index at the last decision whether to interrupt
        # No later load passes an earlier store across it: taking a lock is a locked instruction, a full barrier on x86.
        self._fence = threading.Lock()

    # Cost: 2.2 us for a chain of three buffers (header, data, status), 0.3 us of it for each view; push 0.3 us.
    # Guarded by benchmarks/virtio.py. Nothing is allocated but the chain.
    def pop(self) -> Chain | None:
        """The driver's next chain, or None when there is none."""
        avail = self._avail
        position = self._next_avail
        pending = (avail[_IDX] - position) & 0xFFFF
        if not pending:
            return None
        left = self.size
        if pending > left:
            raise DriverError(f"available index ran {pending} ahead on a queue of {left} (virtio 1.2, 2.7.6)")
        head = index = avail[_RING + (position & self._mask)]
        self._next_avail = (position + 1) & 0xFFFF
        table, entries, total, writing = self._table, left, 0, False
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        while True:
            if index >= entries:
                raise DriverError(f"descriptor {index} of a table of {entries} (virtio 1.2, 2.7.5)")
            if not left:
                raise DriverError("a descriptor chain that loops, or is longer than the queue (virtio 1.2, 2.7.5.2)")
            left -= 1
            address, length, flags, following = _unpack_descriptor(table, index << 4)
            if flags & _INDIRECT:
                self._check_indirect(length, flags, table is not self._table)
                table, entries, index, left = self._view(address, length), length >> 4, 0, self._max_indirect
                continue
            if flags & _WRITE:
                writing = True
                if length:
                    writable.append(self._view(address, length))
            elif writing:
                raise DriverError("a readable buffer after a writable one (virtio 1.2, 2.7.4.2)")
            elif length:
                readable.append(self._view(address, length))
            total += length
            if not flags & _NEXT:
                break
            index = following
        if total > MAX_CHAIN_BYTES:
            raise DriverError(f"a descriptor chain of {total} bytes (virtio 1.2, 2.7.5.2: at most 2^32)")
        return Chain(head, readable, writable)

    def _check_indirect(self, length: int, flags: int, nested: bool) -> None:
        """What a descriptor with INDIRECT must be (2.7.5.3). Its WRITE flag is to be ignored."""
        if not self._indirect:
            raise DriverError("an indirect descriptor, which was not negotiated (virtio 1.2, 2.7.5.3.1)")
        if nested:
            raise DriverError("an indirect descriptor inside an indirect table (virtio 1.2, 2.7.5.3.1)")
        if flags & _NEXT:
            raise DriverError("an indirect descriptor with NEXT (virtio 1.2, 2.7.5.3.1)")
        if not length or length % 16:
            raise DriverError(f"an indirect table of {length} bytes (virtio 1.2, 2.7.5.3.1: whole descriptors)")

    def put_back(self) -> None:
        """Undoes the last `pop`: the chain stays available."""
        self._next_avail = (self._next_avail - 1) & 0xFFFF

    def push(self, head: int, length: int) -> None:
        """Gives a chain back to the driver, with `length` bytes written (2.7.8): element first, then the index."""
        position = self._next_used
        slot = 1 + 2 * (position & self._mask)
        self._used_elements[slot] = head
        self._used_elements[slot + 1] = length
        self._next_used = self._used[_IDX] = (position + 1) & 0xFFFF

    def wants_interrupt(self) -> bool:
        """Whether the driver is to be interrupted for what was pushed since the last call (2.7.7)."""
        old, new = self._signalled, self._next_used
        if old == new:
            return False
        self._signalled = new
        with self._fence:  # the used index is out before the driver's wish is read
            pass
        if self._event_idx:
            return need_event(self._avail[self._used_event], new, old)
        return not self._avail[_FLAGS] & AVAIL_NO_INTERRUPT

    def suppress_notifications(self) -> None:
        """Asks the driver not to kick while we look anyway. (With the event index, not moving it says the same.)"""
        if not self._event_idx:
            self._used[_FLAGS] = USED_NO_NOTIFY

    def request_notification(self) -> bool:
        """Asks for a kick at the next chain (2.7.10). Returns True when one came meanwhile, and no kick will tell."""
        if self._event_idx:
            self._used[self._avail_event] = self._next_avail
        else:
            self._used[_FLAGS] = 0
        with self._fence:  # the wish is out before the ring is looked at once more
            pass
        return self._avail[_IDX] != self._next_avail

    def drain(self, handle: Handler, clock: Callable[[], float] = monotonic) -> bool:
        """Serves what is available. Returns True when it stopped at its bound and more is there: call again.

        A driver that posts as fast as it is served would otherwise never let go of the calling thread, so one call
        begins at most DRAIN_ROUNDS * size chains, and none after DRAIN_SECONDS. When it ends with more to do, the
        driver has *not* been asked to kick again: the caller re-arms the queue by calling `drain` until it says False.
        """
        deadline = clock() + DRAIN_SECONDS
        self.suppress_notifications()
        for _ in range(DRAIN_ROUNDS * self.size):
            chain = self.pop()
            if chain is None:
                if not self.request_notification():
                    return False
                self.suppress_notifications()
                continue
            written = handle(chain)
            if written is None:
                # Nothing to do with it yet: the device will look here by itself, no kick is needed for that.
                self.put_back()
                return False
            self.push(chain.head, written)
            if clock() > deadline:
                break
        return self._avail[_IDX] != self._next_avail or self.request_notification()
