"""virtio-console: bytes both ways, in order, none twice, none lost while there is room."""

from __future__ import annotations

import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from minivmm.memory import GuestMemory
from minivmm.virtio.console import (
    CONSOLE_CONFIG,
    F_SIZE,
    MAX_PENDING,
    MAX_TRANSMIT,
    RECEIVEQ,
    TRANSMITQ,
    Console,
)
from minivmm.virtio.driver import Buffer, DriverQueue, MockDriver
from minivmm.virtio.mmio import CONFIG_CHANGE, Status


def started(console: Console) -> tuple[MockDriver, DriverQueue]:
    driver = MockDriver(console)
    driver.start()
    return driver, driver.queues[RECEIVEQ]


def test_output_arrives_in_order_whatever_the_buffers() -> None:
    heard: list[bytes] = []
    driver, _ = started(Console(heard.append))
    assert driver.request(TRANSMITQ, b"hello, ", b"world").used == 0
    driver.request(TRANSMITQ, b"\n", indirect=True)
    assert b"".join(heard) == b"hello, world\n"


def test_input_fills_buffers_that_are_waiting() -> None:
    console = Console(lambda _: None)
    driver, queue = started(console)
    slots = driver.buffers(into=(4, 4, 4))
    for slot in slots:
        queue.post([slot])
    queue.kick()
    assert queue.used() == []
    assert console.feed(b"abcdef") == 6
    assert [element.len for element in queue.used()] == [4, 2]
    assert driver.interrupts == 1
    assert driver.memory.read(slots[0].address, 4) + driver.memory.read(slots[1].address, 2) == b"abcdef"


def test_input_before_the_driver_posts_is_kept_up_to_a_bound() -> None:
    console = Console(lambda _: None)
    driver, queue = started(console)
    assert console.feed(b"x" * MAX_PENDING) == MAX_PENDING
    assert console.feed(b"refused") == 0
    slot = driver.buffers(into=(10,))
    assert queue.request(slot) == 10
    assert console.feed(b"0123456789abc") == 10


def test_input_before_any_driver_is_there_is_not_lost() -> None:
    console = Console(lambda _: None)
    console.feed(b"early")
    driver, _ = started(console)
    assert driver.request(RECEIVEQ, into=(16,)).data.startswith(b"early")


def test_an_enormous_transmit_request_needs_reset_and_is_not_copied() -> None:
    heard: list[bytes] = []
    driver, _ = started(Console(heard.append))
    piece = Buffer(0, 1 << 20)
    driver.queues[TRANSMITQ].post([piece] * (MAX_TRANSMIT // piece.length + 1))
    driver.queues[TRANSMITQ].kick()
    assert driver.status & Status.DEVICE_NEEDS_RESET
    assert not heard


def test_a_receive_buffer_without_room_is_given_back_empty() -> None:
    console = Console(lambda _: None)
    driver, queue = started(console)
    console.feed(b"still here")
    assert queue.request(driver.buffers(b"readable")) == 0
    assert driver.request(RECEIVEQ, into=(16,)).data.startswith(b"still here")


def test_a_resize_is_told() -> None:
    console = Console(lambda _: None, cols=80, rows=24)
    driver, _ = started(console)
    assert driver.features & F_SIZE
    assert CONSOLE_CONFIG.unpack(driver.read_config())[:2] == (80, 24)
    console.resize(132, 50)
    assert driver.acknowledge_interrupt() & CONFIG_CHANGE
    assert CONSOLE_CONFIG.unpack(driver.read_config())[:2] == (132, 50)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.binary(max_size=40), st.integers(1, 24)), max_size=40))
def test_every_byte_fed_arrives_once_and_in_order(actions: list[bytes | int]) -> None:
    console = Console(lambda _: None)
    driver = MockDriver(console, memory=GuestMemory(1 << 20))
    driver.start()
    queue = driver.queues[RECEIVEQ]
    fed, heard, waiting = b"", b"", {}
    for action in [*actions, *[64] * 20]:
        if isinstance(action, bytes):
            fed += action[: console.feed(action)]
        else:
            slots = driver.buffers(into=(action,))
            waiting[queue.post(slots)] = slots[0]
            queue.kick()
        for element in queue.used():
            heard += driver.memory.read(waiting.pop(element.id).address, element.len)
    assert heard == fed
    driver.close()


def test_input_and_kicks_from_two_threads_lose_nothing() -> None:
    console = Console(lambda _: None)
    driver, queue = started(console)
    text = bytes(range(256)) * 40
    heard = bytearray()

    def feed() -> None:
        sent = 0
        while sent < len(text):
            sent += console.feed(text[sent : sent + 100])

    thread = threading.Thread(target=feed)
    slot = driver.buffers(into=(37,))[0]
    thread.start()
    queue.post([slot])
    queue.kick(always=True)
    for _ in range(1_000_000):
        for element in queue.used():
            heard += driver.memory.read(slot.address, element.len)
            queue.post([slot])
            queue.kick(always=True)
        if len(heard) >= len(text):
            break
    thread.join(timeout=30)
    assert heard == text
