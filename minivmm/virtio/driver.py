"""A mock virtio driver: the other side of any device, without a VM. Part of the library, for tests of devices.

It does through registers and guest memory exactly what a guest's driver does (virtio 1.2, 3.1.1, 2.7.13, 4.2.3), so a
device is tested as a guest would see it:

    driver = MockDriver(Block(Disk("disk.img")))
    driver.start()
    completion = driver.request(0, HEADER.pack(RequestHeader(RequestType.IN, 0, sector=8)), into=(4096, 1))
    assert completion.data[-1] == RequestStatus.OK

And it can misbehave where a guest could: `driver.memory` is all of guest memory, `driver.transport` the registers, and
a DriverQueue lets single descriptors, heads and indices be written raw.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from minivmm.errors import VtkError
from minivmm.memory import GuestMemory
from minivmm.virtio.device import RING_EVENT_IDX, RING_INDIRECT_DESC, VirtioDevice
from minivmm.virtio.mmio import CONFIG, QUEUE_NOTIFY, Status, VirtioMmio, register_offset
from minivmm.virtio.queue import (
    AVAIL_NO_INTERRUPT,
    DESCRIPTOR,
    USED_ELEMENT,
    USED_NO_NOTIFY,
    Descriptor,
    DescriptorFlag,
    QueueAddresses,
    UsedElement,
    need_event,
)

DEFAULT_MEMORY = 16 << 20
PAGE = 4096


class NegotiationError(VtkError):
    """The device refused what the driver asked for: features, a queue, or the driver as a whole."""


class Buffer(NamedTuple):
    """One buffer of a request: guest-physical address, length in bytes, and who writes it."""

    address: int
    length: int
    writable: bool = False


class Completion(NamedTuple):
    """A request the device gave back."""

    used: int
    """The used length: bytes the device says it wrote."""
    data: bytes
    """All the request's writable bytes, in order, as they are now."""


class MockDriver:
    """Drives `device` through a VirtioMmio of its own, in guest memory of its own, unless either is given.

    `interrupts` counts the edges on the device's line.
    """

    def __init__(
        self, device: VirtioDevice, *, memory: GuestMemory | None = None, transport: VirtioMmio | None = None
    ) -> None:
        self.device = device
        self.memory = GuestMemory(DEFAULT_MEMORY) if memory is None else memory
        self.interrupts = 0
        self.transport = (
            VirtioMmio(device, self.memory, self._interrupted, resume=self._finish) if transport is None else transport
        )
        self.queues: list[DriverQueue] = []
        self.features = 0
        self._free = PAGE  # page 0 stays unused: address 0 in a ring is then always a mistake

    def _interrupted(self) -> None:
        self.interrupts += 1

    def _finish(self, queue: int) -> None:
        """On a busy host a drain may reach its time bound: here what a kick began is done when the kick returns."""
        while self.transport.notify(queue):
            pass

    # --- registers ------------------------------------------------------------------------------------------------

    def read(self, register: str) -> int:
        """A register by its name in the specification, for instance "QueueNumMax"."""
        return self.transport.read(register_offset(register), 4)

    def write(self, register: str, value: int) -> None:
        """Stores to a register by its name."""
        self.transport.write(register_offset(register), 4, value)

    def write_pair(self, register: str, value: int) -> None:
        """Stores 64 bits to a pair of registers, whose names end in Low and High."""
        self.write(f"{register}Low", value & 0xFFFF_FFFF)
        self.write(f"{register}High", value >> 32)

    @property
    def status(self) -> Status:
        """The device status field."""
        return Status(self.read("Status"))

    def read_config(self, offset: int = 0, length: int | None = None) -> bytes:
        """Configuration space, read until ConfigGeneration stands still (2.5.1)."""
        count = len(self.device.config) - offset if length is None else length
        while True:
            before = self.read("ConfigGeneration")
            data = bytes(self.transport.read(CONFIG + offset + i, 1) for i in range(count))
            if self.read("ConfigGeneration") == before:
                return data

    def write_config(self, offset: int, data: bytes) -> None:
        """Configuration space, one access for the whole of `data` (1, 2, 4 or 8 bytes)."""
        self.transport.write(CONFIG + offset, len(data), int.from_bytes(data, "little"))

    def acknowledge_interrupt(self) -> int:
        """Reads InterruptStatus and acknowledges what it says. Returns it."""
        pending = self.read("InterruptStatus")
        self.write("InterruptACK", pending)
        return pending

    # --- the life of a driver (3.1.1) ------------------------------------------------------------------------------

    def reset(self) -> None:
        """Resets the device, and forgets queues and memory handed out."""
        self.write("Status", 0)
        self.queues = []
        self._free = PAGE

    def offered(self) -> int:
        """The features the device offers."""
        features = 0
        for sel in range(4):
            self.write("DeviceFeaturesSel", sel)
            features |= self.read("DeviceFeatures") << (32 * sel)
        return features

    def negotiate(self, features: int) -> None:
        """Reset, up to FEATURES_OK. Raises NegotiationError when the device refuses."""
        self.reset()
        self.write("Status", Status.ACKNOWLEDGE)
        self.write("Status", self.status | Status.DRIVER)
        for sel in range(4):
            self.write("DriverFeaturesSel", sel)
            self.write("DriverFeatures", features >> (32 * sel) & 0xFFFF_FFFF)
        self.write("Status", self.status | Status.FEATURES_OK)
        if not self.status & Status.FEATURES_OK:
            raise NegotiationError(f"features {features:#x} were refused", cause="; ".join(self.transport.faults))
        self.features = features

    def start(self, features: int | None = None, *, queue_size: int | None = None) -> None:
        """The whole of 3.1.1, with all features offered and the largest queues unless told otherwise.

        Raises NegotiationError when the device refuses the features or a queue.
        """
        self.negotiate(self.offered() if features is None else features)
        for index in range(len(self.device.queues)):
            self.enable_queue(index, queue_size)
        self.write("Status", self.status | Status.DRIVER_OK)

    def enable_queue(self, index: int, size: int | None = None) -> DriverQueue:
        """Lays out one queue and makes it ready (4.2.3.2). Raises NegotiationError when the device refuses it."""
        self.write("QueueSel", index)
        chosen = self.read("QueueNumMax") if size is None else size
        areas = QueueAddresses(
            self.allocate(16 * chosen, 16), self.allocate(6 + 2 * chosen, 2), self.allocate(6 + 8 * chosen, 4)
        )
        self.write("QueueNum", chosen)
        self.write_pair("QueueDesc", areas.descriptor)
        self.write_pair("QueueDriver", areas.driver)
        self.write_pair("QueueDevice", areas.device)
        self.write("QueueReady", 1)
        if not self.read("QueueReady"):
            raise NegotiationError(f"queue {index} was refused", cause="; ".join(self.transport.faults))
        queue = DriverQueue(self, index, chosen, areas)
        self.queues.append(queue)
        return queue

    def allocate(self, length: int, alignment: int = 16) -> int:
        """Guest memory for a ring or a buffer, zeroed once, given back only by `reset`. Returns its address."""
        address = -(-self._free // alignment) * alignment
        self._free = address + length
        self.memory.write(address, bytes(length))  # raises GuestMemoryError when the guest's memory is used up
        return address

    # --- requests ---------------------------------------------------------------------------------------------------

    def buffers(self, *out: bytes, into: Sequence[int] = ()) -> list[Buffer]:
        """Buffers of one request: `out` copied into guest memory, then an empty one of each length in `into`."""
        made = []
        for data in out:
            made.append(Buffer(self.allocate(len(data)), len(data)))
            self.memory.write(made[-1].address, data)
        made += [Buffer(self.allocate(length), length, writable=True) for length in into]
        return made

    def request(self, queue: int, *out: bytes, into: Sequence[int] = (), indirect: bool = False) -> Completion:
        """One request from posting to completion, on a device that answers during the kick.

        Raises NegotiationError when the device did not give it back: look at `transport.faults`.
        """
        buffers = self.buffers(*out, into=into)
        used = self.queues[queue].request(buffers, indirect=indirect)
        writable = [b for b in buffers if b.writable]
        return Completion(used, b"".join(self.memory.read(b.address, b.length) for b in writable))

    def close(self) -> None:
        """Closes the transport, the device and the memory."""
        self.transport.close()
        self.queues = []
        self.memory.close()


class DriverQueue:
    """The driver's side of one split virtqueue (2.7.13, 2.7.14).

    `descriptor`, `driver` and `device` are the addresses of the three areas, for whoever wants to write into them.
    """

    def __init__(self, driver: MockDriver, index: int, size: int, areas: QueueAddresses) -> None:
        self.index = index
        self.size = size
        self.descriptor, self.driver, self.device = areas
        self._memory = driver.memory
        self._owner = driver
        self._event_idx = bool(driver.features & RING_EVENT_IDX)
        self._indirect = bool(driver.features & RING_INDIRECT_DESC)
        self._free = list(range(size - 1, -1, -1))
        self._chains: dict[int, list[int]] = {}  # head -> all descriptors of the chain
        self._next_avail = 0
        self._next_used = 0
        self._kicked = 0  # the available index at the last decision whether to kick

    def post(self, buffers: Iterable[Buffer], *, indirect: bool = False) -> int:
        """Makes a chain of the buffers available, without a kick. Returns its head. Raises VtkError when full."""
        wanted = list(buffers)
        if indirect:
            if not self._indirect:
                raise VtkError("indirect descriptors were not negotiated")
            table = self._owner.allocate(DESCRIPTOR.size * len(wanted))
            self._memory.write(table, DESCRIPTOR.pack_all(_link(wanted, range(len(wanted)))))
            flags, wanted = DescriptorFlag.INDIRECT, [Buffer(table, DESCRIPTOR.size * len(wanted))]
        else:
            flags = DescriptorFlag(0)
        if not 0 < len(wanted) <= len(self._free):
            raise VtkError(f"{len(wanted)} descriptors wanted, {len(self._free)} free on queue {self.index}")
        indices = [self._free.pop() for _ in wanted]
        for i, descriptor in zip(indices, _link(wanted, indices), strict=True):
            self.write_descriptor(i, descriptor._replace(flags=descriptor.flags | flags))
        self._chains[indices[0]] = indices
        self.post_head(indices[0])
        return indices[0]

    def request(self, buffers: Sequence[Buffer], *, indirect: bool = False) -> int:
        """Posts, kicks, and returns the used length. Raises NegotiationError when the chain did not come back."""
        head = self.post(buffers, indirect=indirect)
        self.kick()
        for element in self.used():
            if element.id == head:
                return element.len
        raise NegotiationError(f"chain {head} was not given back", cause="; ".join(self._owner.transport.faults))

    def kick(self, *, always: bool = False) -> bool:
        """Writes QueueNotify when the device asked for it (2.7.10), or `always`. Returns whether it did."""
        if self._event_idx:
            event = self._memory.read_u16(self.device + 4 + 8 * self.size)
            wanted = need_event(event, self._next_avail, self._kicked)
        else:
            wanted = not self._memory.read_u16(self.device) & USED_NO_NOTIFY
        self._kicked = self._next_avail
        if wanted or always:
            self._owner.transport.write(QUEUE_NOTIFY, 4, self.index)
        return wanted or always

    def used(self) -> list[UsedElement]:
        """What the device gave back since the last call, oldest first; asks to be interrupted for the next."""
        elements = []
        while self._next_used != self._memory.read_u16(self.device + 2):
            slot = self.device + 4 + USED_ELEMENT.size * (self._next_used % self.size)
            element = USED_ELEMENT.unpack(self._memory.read(slot, USED_ELEMENT.size))
            elements.append(element)
            self._free += self._chains.pop(element.id, [])
            self._next_used = (self._next_used + 1) & 0xFFFF
        self.interrupt_at(self._next_used)
        return elements

    # --- what the rings say, raw --------------------------------------------------------------------------------------

    def interrupt_at(self, event: int) -> None:
        """Sets used_event: with the event index, interrupt once the used index has passed this (2.7.7)."""
        self._memory.write_u16(self.driver + 4 + 2 * self.size, event & 0xFFFF)

    def suppress_interrupts(self, suppress: bool = True) -> None:
        """Sets VIRTQ_AVAIL_F_NO_INTERRUPT, which counts without the event index (2.7.7)."""
        self._memory.write_u16(self.driver, AVAIL_NO_INTERRUPT if suppress else 0)

    def write_descriptor(self, index: int, descriptor: Descriptor) -> None:
        """Entry `index` of the descriptor table, whatever it says."""
        self._memory.write(self.descriptor + DESCRIPTOR.size * index, DESCRIPTOR.pack(descriptor))

    def post_head(self, head: int) -> None:
        """Puts any head into the available ring and moves its index on by one."""
        self._memory.write_u16(self.driver + 4 + 2 * (self._next_avail % self.size), head)
        self.set_available(self._next_avail + 1)

    def set_available(self, index: int) -> None:
        """The available index, whatever it says (modulo 2^16)."""
        self._next_avail = index & 0xFFFF
        self._memory.write_u16(self.driver + 2, self._next_avail)


def _link(buffers: Sequence[Buffer], indices: Sequence[int]) -> list[Descriptor]:
    """The buffers as descriptors at these indices, each pointing at the next."""
    chain = []
    for position, buffer in enumerate(buffers):
        flags = DescriptorFlag.WRITE if buffer.writable else DescriptorFlag(0)
        following = 0
        if position + 1 < len(buffers):
            flags |= DescriptorFlag.NEXT
            following = indices[position + 1]
        chain.append(Descriptor(buffer.address, buffer.length, flags, following))
    return chain
