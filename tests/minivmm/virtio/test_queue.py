"""The split virtqueue as a driver meets it: what is served, what is refused, who is told and when."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from minivmm.errors import DriverError
from minivmm.memory import GuestMemory
from minivmm.virtio import queue as queue_module
from minivmm.virtio.device import RING_EVENT_IDX, RING_FEATURES, RING_INDIRECT_DESC, Chain
from minivmm.virtio.driver import Buffer, DriverQueue, MockDriver
from minivmm.virtio.mmio import CONFIG_CHANGE, USED_BUFFER, Status, VirtioMmio
from minivmm.virtio.queue import (
    DESCRIPTOR,
    DRAIN_ROUNDS,
    Descriptor,
    DescriptorFlag,
    QueueAddresses,
    Virtqueue,
    need_event,
)
from tests.minivmm.virtio.echo import SIZE, Echo

NEXT, WRITE, INDIRECT = DescriptorFlag.NEXT, DescriptorFlag.WRITE, DescriptorFlag.INDIRECT


def started(device: Echo | None = None, features: int | None = None) -> tuple[MockDriver, DriverQueue]:
    driver = MockDriver(device or Echo())
    driver.start(features)
    return driver, driver.queues[0]


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("features", [RING_FEATURES, RING_FEATURES & ~RING_EVENT_IDX])
def test_a_request_comes_back_with_what_was_sent(indirect: bool, features: int) -> None:
    driver, _ = started(features=features)
    for text in (b"first", b"second"):
        completion = driver.request(0, text[:2], text[2:], into=(1, 9), indirect=indirect)
        assert completion.used == len(text)
        assert completion.data.rstrip(b"\0") == text
    assert driver.interrupts == 2
    assert not driver.transport.faults


def test_direct_descriptors_may_end_in_an_indirect_table() -> None:
    driver, queue = started()
    out, answer = driver.buffers(b"abcd", into=(4,))
    table = driver.allocate(16)
    driver.memory.write(table, DESCRIPTOR.pack(Descriptor(answer.address, 4, WRITE, 0)))
    queue.write_descriptor(0, Descriptor(out.address, 4, NEXT, 1))
    # 2.7.5.3.2: the WRITE flag of a descriptor that refers to a table is to be ignored.
    queue.write_descriptor(1, Descriptor(table, 16, INDIRECT | WRITE, 0))
    queue.post_head(0)
    queue.kick()
    assert driver.memory.read(answer.address, 4) == b"abcd"


def test_empty_buffers_carry_nothing_and_break_nothing() -> None:
    driver, queue = started()
    out, answer = driver.buffers(b"xy", into=(2,))
    used = queue.request([Buffer(0, 0), out, Buffer(1 << 60, 0), Buffer(0, 0, True), answer])
    assert used == 2
    assert driver.memory.read(answer.address, 2) == b"xy"


def test_a_chain_as_long_as_the_queue_is_served() -> None:
    driver, queue = started()
    buffers = driver.buffers(*[b"x"] * (SIZE - 1), into=(SIZE,))
    assert queue.request(buffers) == SIZE - 1


Misdeed = Callable[[MockDriver, DriverQueue], None]


def descriptors(*table: Descriptor, head: int = 0) -> Misdeed:
    """A driver that writes these into the descriptor table and makes `head` available."""

    def commit(_: MockDriver, queue: DriverQueue) -> None:
        for index, descriptor in enumerate(table):
            queue.write_descriptor(index, descriptor)
        queue.post_head(head)

    return commit


def indirect_table(length: int, *table: Descriptor, flags: int = INDIRECT) -> Misdeed:
    """A driver that makes an indirect table of `length` bytes available."""

    def commit(driver: MockDriver, queue: DriverQueue) -> None:
        address = driver.allocate(1024)
        driver.memory.write(address, DESCRIPTOR.pack_all(table))
        queue.write_descriptor(0, Descriptor(address, length, flags, 0))
        queue.post_head(0)

    return commit


def many_gigabytes(driver: MockDriver, queue: DriverQueue) -> None:
    """17 descriptors of 256 MiB each, all of them the same memory."""
    chunk = 1 << 28
    for index in range(SIZE):
        queue.write_descriptor(index, Descriptor(0, chunk, NEXT, index + 1))
    table = driver.allocate(32)
    driver.memory.write(table, DESCRIPTOR.pack_all([Descriptor(0, chunk, NEXT, 1), Descriptor(0, 1, 0, 0)]))
    queue.write_descriptor(SIZE - 1, Descriptor(table, 32, INDIRECT, 0))
    queue.write_descriptor(SIZE - 2, Descriptor(0, chunk, NEXT, SIZE - 1))
    queue.post_head(0)


MISDEEDS: dict[str, tuple[Misdeed, str]] = {
    "a chain that points at itself": (descriptors(Descriptor(0, 1, NEXT, 0)), "loops"),
    "a loop of two": (descriptors(Descriptor(0, 1, NEXT, 1), Descriptor(0, 1, NEXT, 0)), "loops"),
    "a loop of empty buffers": (descriptors(Descriptor(0, 0, NEXT, 0)), "loops"),
    "a head outside the table": (descriptors(head=SIZE), f"descriptor {SIZE} of a table of {SIZE}"),
    "a next outside the table": (descriptors(Descriptor(0, 1, NEXT, 0xFFFF)), "descriptor 65535"),
    "readable after writable": (
        descriptors(Descriptor(0, 1, NEXT | WRITE, 1), Descriptor(0, 1, 0, 0)),
        "readable buffer after a writable",
    ),
    "readable after empty writable": (
        descriptors(Descriptor(0, 0, NEXT | WRITE, 1), Descriptor(0, 1, 0, 0)),
        "readable buffer after a writable",
    ),
    "empty readable after writable": (
        descriptors(Descriptor(0, 1, NEXT | WRITE, 1), Descriptor(0, 0, 0, 0)),
        "readable buffer after a writable",
    ),
    "a buffer beyond memory": (descriptors(Descriptor(1 << 40, 1, 0, 0)), "outside guest memory"),
    "a buffer across the end of memory": (descriptors(Descriptor((16 << 20) - 1, 2, 0, 0)), "outside guest memory"),
    "an address that wraps around": (descriptors(Descriptor(2**64 - 1, 2, WRITE, 0)), "outside guest memory"),
    "an available index too far ahead": (lambda _, queue: queue.set_available(SIZE + 1), "available index ran"),
    "an available index that went back": (lambda _, queue: queue.set_available(-1), "available index ran"),
    "an empty indirect table": (indirect_table(0), "indirect table of 0 bytes"),
    "an indirect table and a half": (indirect_table(24), "indirect table of 24 bytes"),
    "an indirect table beyond memory": (descriptors(Descriptor(1 << 50, 16, INDIRECT, 0)), "outside guest memory"),
    "indirect with next": (indirect_table(16, flags=INDIRECT | NEXT), "indirect descriptor with NEXT"),
    "indirect inside indirect": (indirect_table(16, Descriptor(4096, 16, INDIRECT, 0)), "inside an indirect"),
    "a loop in an indirect table": (indirect_table(16, Descriptor(0, 1, NEXT, 0)), "loops"),
    "a next outside an indirect table": (indirect_table(16, Descriptor(0, 1, NEXT, 1)), "descriptor 1 of a table of 1"),
}


@pytest.mark.parametrize("misdeed", MISDEEDS)
@pytest.mark.parametrize("features", [RING_FEATURES, RING_FEATURES & ~RING_EVENT_IDX])
def test_a_broken_chain_needs_reset_and_reset_mends_it(misdeed: str, features: int) -> None:
    device = Echo()
    driver, queue = started(device, features)
    commit, reason = MISDEEDS[misdeed]

    commit(driver, queue)
    queue.kick(always=True)

    assert driver.status & Status.DEVICE_NEEDS_RESET
    assert reason in driver.transport.faults[-1]
    assert driver.acknowledge_interrupt() == CONFIG_CHANGE
    assert driver.interrupts == 1
    assert queue.used() == []
    assert not device.requests

    before = len(driver.transport.faults)
    queue.kick(always=True)
    assert len(driver.transport.faults) == before, "a broken queue is not looked at again"

    driver.start(features)
    assert driver.request(0, b"again", into=(5,)).data == b"again"


def test_an_indirect_table_needs_its_feature() -> None:
    driver, queue = started(features=RING_FEATURES & ~RING_INDIRECT_DESC)
    indirect_table(16, Descriptor(0, 1, 0, 0))(driver, queue)
    queue.kick()
    assert "not negotiated" in driver.transport.faults[-1]


def test_a_chain_of_more_than_4_gib_needs_reset() -> None:
    driver = MockDriver(Echo(), memory=GuestMemory(1 << 29))
    driver.start()
    many_gigabytes(driver, driver.queues[0])
    driver.queues[0].kick()
    assert "at most 2^32" in driver.transport.faults[-1]


def test_what_was_finished_before_a_fault_is_announced() -> None:
    driver, queue = started()
    out, answer = driver.buffers(b"ok", into=(2,))
    head = queue.post([out, answer])
    queue.post_head(SIZE)
    queue.kick()
    assert [element.id for element in queue.used()] == [head]
    assert driver.acknowledge_interrupt() == USED_BUFFER | CONFIG_CHANGE


@pytest.mark.parametrize(
    ("size", "addresses", "reason"),
    [
        (0, (0, 0x1000, 0x2000), "queue size 0"),
        (3, (0, 0x1000, 0x2000), "queue size 3"),
        (512, (0, 0x1000, 0x2000), "queue size 512"),
        (16, (8, 0x1000, 0x2000), "descriptor area"),
        (16, (0, 0x1001, 0x2000), "driver area"),
        (16, (0, 0x1000, 0x2002), "device area"),
        (16, ((1 << 20) - 16, 0x1000, 0x2000), "outside guest memory"),
        (16, (0, (1 << 20) - 36, 0x2000), "outside guest memory"),
        (16, (0, 0x1000, (1 << 20) - 132), "outside guest memory"),
        (16, (2**64 - 16, 0x1000, 0x2000), "outside guest memory"),
    ],
)
def test_rings_that_cannot_be_are_refused(size: int, addresses: tuple[int, int, int], reason: str) -> None:
    memory = GuestMemory(1 << 20)
    with pytest.raises(DriverError, match=reason):
        Virtqueue(memory, size, QueueAddresses(*addresses), max_size=256, indirect=True, event_idx=True)


def test_rings_end_where_memory_ends() -> None:
    memory = GuestMemory(1 << 20)
    end = 1 << 20
    addresses = QueueAddresses(end - 256, end - 256 - 40, end - 256 - 40 - 136)
    queue = Virtqueue(memory, 16, addresses, max_size=16, indirect=True, event_idx=True)
    assert queue.pop() is None
    last = Virtqueue(memory, 16, addresses._replace(device=end - 136), max_size=16, indirect=True, event_idx=True)
    assert not last.request_notification()


def test_a_ring_across_the_hole_below_4_gib_is_refused() -> None:
    memory = GuestMemory((3 << 30) + (1 << 20))  # untouched pages cost nothing
    across = QueueAddresses((3 << 30) - 16, 0, 0x1000)
    with pytest.raises(DriverError, match="outside guest memory"):
        Virtqueue(memory, 16, across, max_size=16, indirect=True, event_idx=True)
    above = QueueAddresses(4 << 30, (4 << 30) + 0x1000, (4 << 30) + 0x2000)
    assert Virtqueue(memory, 16, above, max_size=16, indirect=True, event_idx=True).pop() is None
    memory.close()


def test_the_indices_wrap_around_at_65536() -> None:
    driver, queue = started()
    out, answer = driver.buffers(b"wrap", into=(4,))
    for _ in range(70_000):
        queue.post([out, answer])
        assert queue.kick()
        assert len(queue.used()) == 1
    assert driver.interrupts == 70_000
    assert not driver.transport.faults


@pytest.mark.parametrize(
    ("event", "new", "old", "expected"),
    [
        (0, 1, 0, True),
        (1, 1, 0, False),
        (0, 5, 1, False),
        (4, 5, 1, True),
        (0xFFFF, 0, 0xFFFF, True),
        (0xFFFE, 0, 0xFFFF, False),
        (5, 5, 5, False),
    ],
)
def test_need_event_is_whether_the_index_passed_the_event(event: int, new: int, old: int, expected: bool) -> None:
    assert need_event(event, new, old) is expected


def test_an_event_in_the_future_is_waited_for() -> None:
    driver, queue = started()
    out, answer = driver.buffers(b"event", into=(5,))
    queue.interrupt_at(2)
    for interrupts in (0, 0, 1):
        queue.post([out, answer])
        queue.kick()
        assert driver.interrupts == interrupts


def test_a_driver_that_wants_no_interrupt_gets_none() -> None:
    driver, queue = started(features=RING_FEATURES & ~RING_EVENT_IDX)
    queue.suppress_interrupts()
    driver.request(0, b"quiet", into=(5,))
    assert driver.interrupts == 0
    assert driver.read("InterruptStatus") == 0
    queue.suppress_interrupts(False)
    driver.request(0, b"loud", into=(4,))
    assert driver.interrupts == 1


@pytest.mark.parametrize("features", [RING_FEATURES, RING_FEATURES & ~RING_EVENT_IDX])
def test_what_is_posted_while_the_queue_is_served_needs_no_kick(features: int) -> None:
    device = Echo()
    driver, queue = started(device, features)
    out, answer = driver.buffers(b"more", into=(4,))
    kicks = []

    def post_another(_: Chain) -> None:
        if len(device.requests) < 5:
            queue.post([out, answer])
            kicks.append(queue.kick())

    device.before = post_another
    queue.post([out, answer])
    queue.kick()

    assert len(device.requests) == 6
    # With the event index the driver's own reckoning allows one more kick: for the chain after avail_event.
    assert kicks.count(True) <= (1 if features & RING_EVENT_IDX else 0)
    queue.post([out, answer])
    assert queue.kick(), "afterwards the device wants to be told again"


def test_a_driver_that_posts_endlessly_does_not_hold_the_thread_and_is_served_on() -> None:
    resumed: list[int] = []
    device = Echo()
    memory = GuestMemory(1 << 20)

    transport = VirtioMmio(device, memory, lambda: None, resume=resumed.append)
    driver = MockDriver(device, memory=memory, transport=transport)
    driver.start()
    queue = driver.queues[0]
    out, answer = driver.buffers(b"endless", into=(7,))
    queue.write_descriptor(0, Descriptor(out.address, 7, NEXT, 1))
    queue.write_descriptor(1, Descriptor(answer.address, 7, WRITE, 0))
    device.before = lambda _: queue.post_head(0)

    queue.post_head(0)
    queue.kick()

    assert len(device.requests) == DRAIN_ROUNDS * SIZE
    assert resumed == [0]
    device.before = lambda _: None
    assert not transport.notify(0), "the last one is served, and the queue is empty"
    assert len(device.requests) == DRAIN_ROUNDS * SIZE + 1


def test_without_a_way_to_resume_the_transport_finishes_on_a_thread_that_ends() -> None:
    device, memory = Echo(), GuestMemory(1 << 20)
    driver = MockDriver(device, memory=memory, transport=VirtioMmio(device, memory, lambda: None))
    driver.start()
    queue = driver.queues[0]
    out, answer = driver.buffers(b"rest", into=(4,))
    queue.write_descriptor(0, Descriptor(out.address, 4, NEXT, 1))
    queue.write_descriptor(1, Descriptor(answer.address, 4, WRITE, 0))
    total = 10 * DRAIN_ROUNDS * SIZE
    device.before = lambda _: queue.post_head(0) if len(device.requests) < total else None

    queue.post_head(0)
    queue.kick()
    for thread in list(driver.transport._resuming.values()):
        thread.join(timeout=30)

    assert len(device.requests) == total + 1
    assert not driver.transport._resuming


def test_slow_requests_end_a_drain_by_time() -> None:
    device = Echo()
    driver, queue = started(device)
    out, answer = driver.buffers(b"slow", into=(4,))
    for _ in range(4):
        queue.post([out, answer])
    ring = driver.transport._queues[0].ring
    assert ring is not None
    times = count(0.0, 0.6 * queue_module.DRAIN_SECONDS)
    assert ring.drain(device.handle_echoq, clock=lambda: next(times))
    assert len(device.requests) == 2, "begun at 0 and 0.6 of the bound; the next would be at 1.2"
    assert not ring.drain(device.handle_echoq)


def test_a_chain_left_for_later_stays_available() -> None:
    class Hesitant(Echo):
        ready = False

        def handle_echoq(self, chain: Chain) -> int | None:
            return super().handle_echoq(chain) if self.ready else None

    device = Hesitant()
    driver, queue = started(device)
    out, answer = driver.buffers(b"later", into=(5,))
    queue.post([out, answer])
    queue.kick()
    queue.kick(always=True)
    assert queue.used() == []
    device.ready = True
    device.wake(0)
    assert len(queue.used()) == 1
    assert driver.interrupts == 1
