"""virtio-rng."""

from __future__ import annotations

import pytest

from minivmm.virtio.driver import MockDriver
from minivmm.virtio.entropy import Entropy
from minivmm.virtio.mmio import Status


def test_every_buffer_is_filled_and_no_two_requests_are_alike() -> None:
    driver = MockDriver(Entropy())
    driver.start()
    first, second = (driver.request(0, into=(16, 48)) for _ in range(2))
    assert first.used == second.used == 64
    assert first.data != second.data
    assert first.data[:16] != bytes(16)
    assert first.data[16:] != bytes(48)


def test_one_request_costs_the_host_no_more_than_the_limit() -> None:
    asked: list[int] = []

    def source(count: int) -> bytes:
        asked.append(count)
        return b"\xee" * count

    driver = MockDriver(Entropy(limit=100, source=source))
    driver.start()
    completion = driver.request(0, into=(64, 4096))
    assert asked == [100]
    assert completion.used == 100
    assert completion.data == b"\xee" * 100 + bytes(4060)


@pytest.mark.parametrize(("out", "into"), [((b"readable",), ()), ((b"readable",), (16,))])
def test_a_request_with_readable_bytes_needs_reset(out: tuple[bytes, ...], into: tuple[int, ...]) -> None:
    driver = MockDriver(Entropy())
    driver.start()
    driver.queues[0].post(driver.buffers(*out, into=into))
    driver.queues[0].kick()
    assert driver.status & Status.DEVICE_NEEDS_RESET
    assert "5.4.6.1" in driver.transport.faults[-1]
