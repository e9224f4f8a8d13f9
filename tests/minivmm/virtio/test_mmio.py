"""The virtio-mmio registers: what they say, the order a driver must keep, and what happens when it does not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivmm.memory import GuestMemory
from minivmm.virtio.device import RING_EVENT_IDX, RING_FEATURES, RING_INDIRECT_DESC, VERSION_1
from minivmm.virtio.driver import MockDriver, NegotiationError
from minivmm.virtio.mmio import (
    CONFIG,
    CONFIG_CHANGE,
    MAX_FAULTS,
    QUEUE_NOTIFY,
    REGION_SIZE,
    USED_BUFFER,
    Status,
    VirtioMmio,
)
from tests.minivmm.virtio.echo import SIZE, Echo

UP_TO_DRIVER = Status.ACKNOWLEDGE | Status.DRIVER


def test_the_device_says_what_it_is() -> None:
    driver = MockDriver(Echo())
    assert driver.read("MagicValue").to_bytes(4, "little") == b"virt"
    assert driver.read("Version") == 2
    assert driver.read("DeviceID") == 63
    assert driver.offered() == VERSION_1 | RING_EVENT_IDX | RING_INDIRECT_DESC
    assert driver.read("QueueNumMax") == SIZE
    assert driver.status == 0


def test_a_queue_that_does_not_exist_has_size_0_and_takes_nothing() -> None:
    driver = MockDriver(Echo())
    driver.negotiate(RING_FEATURES)
    driver.write("QueueSel", 1)
    assert driver.read("QueueNumMax") == 0
    driver.write("QueueNum", 8)
    driver.write("QueueReady", 1)
    assert driver.read("QueueReady") == 0
    driver.write("QueueSel", 0xFFFF_FFFF)
    assert driver.read("QueueNumMax") == 0
    assert not driver.status & Status.DEVICE_NEEDS_RESET


def test_only_aligned_32_bit_accesses_reach_the_registers() -> None:
    transport = MockDriver(Echo()).transport
    assert transport.read(0x000, 1) == 0
    assert transport.read(0x001, 4) == 0
    assert transport.read(0x000, 8) == 0
    transport.write(0x070, 1, Status.ACKNOWLEDGE)
    assert transport.read(0x070, 4) == 0
    assert transport.read(0x0C0, 4) == 0, "QueueReset belongs to a feature that is not offered"
    assert transport.read(0x050, 4) == 0, "QueueNotify is write-only"
    assert transport.read(0x0B0, 4) == 0xFFFF_FFFF, "there is no shared memory region"


@pytest.mark.parametrize(
    "features", [0, RING_FEATURES & ~VERSION_1, RING_FEATURES | 1, RING_FEATURES | 1 << 63, VERSION_1 | 1 << 127]
)
def test_features_that_do_not_fit_are_refused(features: int) -> None:
    driver = MockDriver(Echo())
    with pytest.raises(NegotiationError):
        driver.negotiate(features)
    assert driver.status == UP_TO_DRIVER
    driver.write("Status", UP_TO_DRIVER | Status.FEATURES_OK | Status.DRIVER_OK)
    assert driver.status == UP_TO_DRIVER, "nor is DRIVER_OK granted without FEATURES_OK"


def test_features_beyond_the_128th_are_refused() -> None:
    driver = MockDriver(Echo())
    driver.write("Status", UP_TO_DRIVER)
    driver.write("DriverFeaturesSel", 1)
    driver.write("DriverFeatures", 1)
    driver.write("DriverFeaturesSel", 4)
    driver.write("DriverFeatures", 1)
    driver.write("DeviceFeaturesSel", 4)
    assert driver.read("DeviceFeatures") == 0
    driver.write("Status", UP_TO_DRIVER | Status.FEATURES_OK)
    assert driver.status == UP_TO_DRIVER


def test_features_stand_once_accepted() -> None:
    driver = MockDriver(Echo())
    driver.negotiate(VERSION_1)
    driver.write("DriverFeaturesSel", 0)
    driver.write("DriverFeatures", RING_INDIRECT_DESC)
    assert "outside feature negotiation" in driver.transport.faults[-1]
    assert driver.transport._driver_features == VERSION_1


@pytest.mark.parametrize(
    "steps",
    [
        [Status.DRIVER],
        [Status.FEATURES_OK],
        [Status.ACKNOWLEDGE, Status.ACKNOWLEDGE | Status.FEATURES_OK],
        [Status.ACKNOWLEDGE, UP_TO_DRIVER, UP_TO_DRIVER | Status.DRIVER_OK],
        [UP_TO_DRIVER, Status.DRIVER],
        [Status.DEVICE_NEEDS_RESET],
    ],
)
def test_status_bits_out_of_order_are_not_set(steps: list[Status]) -> None:
    driver = MockDriver(Echo())
    for step in steps[:-1]:
        driver.write("Status", step)
    before = driver.status
    driver.write("Status", steps[-1])
    assert driver.status == before


def test_a_driver_that_gave_up_is_not_served() -> None:
    driver = MockDriver(Echo())
    driver.start()
    driver.write("Status", driver.status | Status.FAILED)
    driver.queues[0].post(driver.buffers(b"x"))
    driver.queues[0].kick()
    assert driver.queues[0].used() == []


def test_a_queue_can_only_be_made_ready_after_features_ok() -> None:
    driver = MockDriver(Echo())
    driver.write("Status", UP_TO_DRIVER)
    with pytest.raises(NegotiationError, match="QueueReady before FEATURES_OK"):
        driver.enable_queue(0)


@pytest.mark.parametrize("size", [0, 3, SIZE * 2, 0xFFFF_FFFF])
def test_a_queue_of_an_impossible_size_needs_reset(size: int) -> None:
    driver = MockDriver(Echo())
    driver.negotiate(RING_FEATURES)
    driver.write("QueueNum", size)
    driver.write("QueueReady", 1)
    assert driver.read("QueueReady") == 0
    assert driver.status & Status.DEVICE_NEEDS_RESET
    assert driver.interrupts == 0, "no notification before DRIVER_OK (2.1.2)"


def test_a_smaller_queue_than_the_largest_works() -> None:
    driver = MockDriver(Echo())
    driver.start(queue_size=2)
    assert driver.request(0, b"small", into=(5,)).data == b"small"


def test_a_ready_queue_is_not_changed() -> None:
    driver = MockDriver(Echo())
    driver.start()
    driver.write("QueueSel", 0)
    driver.write("QueueNum", 2)
    driver.write_pair("QueueDesc", 0xDEAD_BEEF_0000)
    assert "changed while ready" in driver.transport.faults[-1]
    assert driver.request(0, b"same", into=(4,)).data == b"same"


def test_a_queue_can_be_taken_back_and_given_again() -> None:
    driver = MockDriver(Echo())
    driver.start()
    driver.write("QueueSel", 0)
    driver.write("QueueReady", 0)
    assert driver.read("QueueReady") == 0
    driver.write(  # a kick of a queue that is not ready
        "QueueNotify", 0
    )
    driver.queues.clear()
    driver.enable_queue(0)
    assert driver.request(0, b"back", into=(4,)).data == b"back"


def test_kicks_of_what_is_not_there_are_ignored() -> None:
    driver = MockDriver(Echo())
    for queue in (0, 1, 0xFFFF_FFFF):
        driver.write("QueueNotify", queue)
    driver.start()
    driver.write("QueueNotify", 7)
    assert not driver.transport.faults
    assert not driver.transport.notify(-1)


def test_nothing_is_served_before_driver_ok() -> None:
    device = Echo()
    driver = MockDriver(device)
    driver.negotiate(RING_FEATURES)
    queue = driver.enable_queue(0)
    queue.post(driver.buffers(b"early", into=(5,)))
    queue.kick(always=True)
    assert not device.requests
    driver.write("Status", driver.status | Status.DRIVER_OK)
    queue.kick(always=True)
    assert device.requests == [b"early"]


def test_an_interrupt_stays_pending_until_acknowledged() -> None:
    driver = MockDriver(Echo())
    driver.start()
    driver.request(0, b"x", into=(1,))
    assert driver.read("InterruptStatus") == USED_BUFFER
    driver.write("InterruptACK", CONFIG_CHANGE)
    assert driver.read("InterruptStatus") == USED_BUFFER
    assert driver.acknowledge_interrupt() == USED_BUFFER
    assert driver.read("InterruptStatus") == 0


def test_reset_forgets_everything() -> None:
    driver = MockDriver(Echo())
    driver.start()
    driver.request(0, b"x", into=(1,))
    driver.write("Status", 0)
    assert driver.status == 0
    assert driver.read("InterruptStatus") == 0
    driver.write("QueueSel", 0)
    assert driver.read("QueueReady") == 0
    assert driver.read("QueueNumMax") == SIZE


def test_configuration_space_reads_at_any_width_and_as_zero_beyond_its_end() -> None:
    transport = MockDriver(Echo()).transport
    assert transport.read(CONFIG, 1) == 0x01
    assert transport.read(CONFIG + 1, 2) == 0x0302
    assert transport.read(CONFIG, 8) == 0x0807060504030201
    assert transport.read(CONFIG + 8, 4) == 0x0A09
    assert transport.read(CONFIG + 10, 4) == 0
    transport.write(CONFIG, 4, 0xFFFF_FFFF)
    assert transport.read(CONFIG, 4) == 0x04030201, "this device has no writable field"


def test_a_configuration_change_moves_the_generation_and_tells_a_live_driver() -> None:
    device = Echo()
    driver = MockDriver(device)
    device.config_changed()
    assert driver.interrupts == 0
    driver.start()
    before = driver.read("ConfigGeneration")
    device.config_changed()
    assert driver.read("ConfigGeneration") != before
    assert driver.acknowledge_interrupt() == CONFIG_CHANGE


def test_faults_are_kept_up_to_a_bound() -> None:
    driver = MockDriver(Echo())
    for _ in range(10 * MAX_FAULTS):
        driver.write("Status", Status.DRIVER)
    assert len(driver.transport.faults) == MAX_FAULTS


def test_after_close_nothing_comes_to_life_again() -> None:
    device = Echo()
    driver = MockDriver(device)
    driver.start()
    driver.transport.close()
    assert device.closed == 1
    driver.write("Status", Status.ACKNOWLEDGE)
    assert driver.status == 0
    driver.close()


def test_guest_memory_is_given_back_after_close() -> None:
    driver = MockDriver(Echo())
    driver.start()
    driver.request(0, b"x", into=(1,))
    mapping = driver.memory._map
    driver.close()
    assert mapping.closed


offsets = st.one_of(st.sampled_from(range(0, CONFIG, 4)), st.integers(0, REGION_SIZE - 1))
values = st.one_of(
    st.integers(0, 16), st.sampled_from([0, 1, 3, 11, 15, 64, 128, 0x8000_0000]), st.integers(0, 2**64 - 1)
)
accesses = st.tuples(st.booleans(), offsets, st.sampled_from([1, 2, 4, 4, 4, 4, 8]), values)


@settings(deadline=None, max_examples=300)
@given(st.lists(accesses, max_size=80), st.booleans())
def test_no_sequence_of_register_accesses_raises_or_outlives_a_reset(
    sequence: list[tuple[bool, int, int, int]], begin_live: bool
) -> None:
    driver = MockDriver(Echo(), memory=GuestMemory(1 << 20))
    if begin_live:
        driver.start()
    for is_write, offset, size, value in sequence:
        if is_write:
            driver.transport.write(offset, size, value & (1 << 8 * size) - 1)
        else:
            assert 0 <= driver.transport.read(offset, size) < 1 << 8 * size
        status = driver.transport._status
        assert not status & Status.DRIVER_OK or status & Status.FEATURES_OK
        assert not status & Status.FEATURES_OK or driver.transport._driver_features & VERSION_1
    driver.start()
    assert driver.request(0, b"alive", into=(5,)).data == b"alive"
    driver.close()


def test_two_vcpus_and_a_device_thread_may_come_in_at_once() -> None:
    device = Echo()
    driver = MockDriver(device)
    driver.start()
    queue = driver.queues[0]
    out, answer = driver.buffers(b"busy", into=(4,))
    rounds = 400

    def post_and_collect() -> None:
        queue.post([out, answer])
        queue.kick(always=True)
        assert any(queue.used() or driver.transport.notify(0) for _ in range(1_000_000))

    def kick() -> None:
        driver.transport.write(QUEUE_NOTIFY, 4, 0)

    def repeat(work: Callable[[], object]) -> None:
        for _ in range(rounds):
            work()

    works = (post_and_collect, kick, kick, device.config_changed, driver.acknowledge_interrupt, lambda: device.wake(0))
    with ThreadPoolExecutor(len(works)) as threads:
        for finished in [threads.submit(repeat, work) for work in works]:
            finished.result(timeout=60)

    assert len(device.requests) == rounds
    assert not driver.transport.faults


def test_a_transport_takes_one_interrupt_callback_and_calls_it_once_a_batch() -> None:
    edges: list[int] = []
    device, memory = Echo(), GuestMemory(1 << 20)
    driver = MockDriver(device, memory=memory, transport=VirtioMmio(device, memory, lambda: edges.append(1)))
    driver.start()
    out, answer = driver.buffers(b"abc", into=(3,))
    for _ in range(5):
        driver.queues[0].post([out, answer])
    driver.queues[0].kick()
    assert len(edges) == 1
    assert len(driver.queues[0].used()) == 5
