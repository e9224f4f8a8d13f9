"""What a virtio device is, whatever carries it: type, queues, features, configuration, what it does with a Chain.

A device is a subclass of VirtioDevice with one `handle_<queue>` method for each of its queues:

    class Entropy(VirtioDevice):
        device_type = 4
        queues = (QueueSpec("requestq", max_size=256),)

        def handle_requestq(self, chain: Chain) -> int | None: ...

Its methods run under the transport's lock, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

from minivmm.errors import DriverError

# Reserved feature bits (virtio 1.2, 6).
RING_INDIRECT_DESC = 1 << 28
RING_EVENT_IDX = 1 << 29
VERSION_1 = 1 << 32

RING_FEATURES = RING_INDIRECT_DESC | RING_EVENT_IDX | VERSION_1
"""What the split ring of queue.py implements: every device offers these beside its own."""


class QueueSpec(NamedTuple):
    """One virtqueue of a device. `max_size` is QueueNumMax: a power of 2, in descriptors."""

    name: str
    max_size: int = 256


class Chain:
    """One descriptor chain: a request of the driver, every buffer of it inside guest memory.

    `readable` and `writable` are views of the guest's own bytes, in the driver's order, none of them empty. The
    guest can change them while they are being looked at: what is to be trusted is copied first (`take`, `gather`).
    Where one buffer ends and the next begins carries no meaning (virtio 1.2, 2.7.4.1).
    """

    __slots__ = ("head", "readable", "writable")

    def __init__(self, head: int, readable: list[memoryview], writable: list[memoryview]) -> None:
        self.head = head
        self.readable = readable
        self.writable = writable

    @property
    def readable_size(self) -> int:
        """Bytes the device may still read."""
        return sum(map(len, self.readable))

    @property
    def writable_size(self) -> int:
        """Bytes the device may still write."""
        return sum(map(len, self.writable))

    def take(self, count: int) -> bytes:
        """A copy of the next `count` readable bytes, which leave the chain. Raises DriverError when there are fewer."""
        if self.readable and len(self.readable[0]) == count:
            return bytes(self.readable.pop(0))
        if self.readable_size < count:
            raise DriverError(f"{self.readable_size} readable bytes where the request has {count}")
        taken = bytearray()
        while len(taken) < count:
            buffer = self.readable[0]
            missing = count - len(taken)
            taken += buffer[:missing]
            if len(buffer) > missing:
                self.readable[0] = buffer[missing:]
            else:
                del self.readable[0]
        return bytes(taken)

    def take_last_writable(self) -> memoryview:
        """The last writable byte, which leaves the chain: where a request has its status. Raises DriverError."""
        if not self.writable:
            raise DriverError("no writable byte for the status of the request")
        last = self.writable[-1]
        if len(last) == 1:
            return self.writable.pop()
        self.writable[-1] = last[:-1]
        return last[-1:]

    def gather(self, limit: int) -> bytes:
        """A copy of all readable bytes. Raises DriverError when they are more than `limit`, and copies nothing."""
        if self.readable_size > limit:
            raise DriverError(f"{self.readable_size} readable bytes where the device takes {limit}")
        return b"".join(self.readable)

    def scatter(self, data: bytes | bytearray | memoryview) -> int:
        """Copies `data` into the writable buffers, as far as they reach. Returns the number of bytes copied."""
        rest = memoryview(data)
        for buffer in self.writable:
            count = min(len(buffer), len(rest))
            buffer[:count] = rest[:count]
            rest = rest[count:]
            if not rest:
                break
        return len(data) - len(rest)


Handler = Callable[[Chain], int | None]


class VirtioDevice:
    """A device without its transport. Subclasses set `device_type` and `queues` and write the handlers.

    A handler returns the number of bytes it wrote (the used length), counted from the first writable byte; or None
    for "not now": the chain stays available, and the device calls `wake(queue)` when it has something for it.
    """

    device_type: ClassVar[int]
    """Device ID (virtio 1.2, 5)."""
    queues: ClassVar[tuple[QueueSpec, ...]]

    def __init__(self, *, features: int = 0, config: bytes = b"") -> None:
        self.features = features
        """What the device offers of its own, bits 0-23 and 50-127 (virtio 1.2, 2.2)."""
        self.config = bytearray(config)
        """Device configuration space, as the driver reads it (virtio 1.2, 2.5)."""
        # Set by the transport. Both are safe on any thread, and do nothing while no driver is there.
        self.wake: Callable[[int], None] = _nobody_to_wake
        self.config_changed: Callable[[], None] = _nobody_to_tell

    def handlers(self) -> tuple[Handler, ...]:
        """The handler of each queue, in order. Raises AttributeError for a queue without its method."""
        return tuple(getattr(self, f"handle_{queue.name}") for queue in self.queues)

    def negotiated(self, features: int) -> None:
        """Feature negotiation ended with these (FEATURES_OK): the driver may now use the configuration space."""

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver wrote into the configuration space. A device without writable fields ignores it."""

    def reset(self) -> None:
        """The driver reset the device: back to the state before `negotiated`."""

    def close(self) -> None:
        """The machine is gone: release what the device holds of the host. Called once or more."""


def _nobody_to_wake(queue: int) -> None:
    """No transport yet."""


def _nobody_to_tell() -> None:
    """No transport yet."""
