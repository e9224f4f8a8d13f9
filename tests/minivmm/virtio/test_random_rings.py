"""Whatever a driver writes into its rings: the device does what the specification says, or needs a reset, and ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivmm.memory import GuestMemory
from minivmm.virtio.block import Block, Disk
from minivmm.virtio.console import Console
from minivmm.virtio.device import VirtioDevice
from minivmm.virtio.driver import MockDriver
from minivmm.virtio.entropy import Entropy
from tests.minivmm.virtio.ring_cases import MEMORY, agrees, ring_case


@settings(deadline=None, max_examples=600)
@given(st.integers(0, 2**64 - 1))
def test_a_queue_is_read_as_the_specification_says_and_nothing_else_is_touched(seed: int) -> None:
    assert agrees(ring_case(seed))


@pytest.mark.parametrize("kind", ["block", "console", "entropy"])
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_no_bytes_in_the_rings_make_a_device_raise_or_run_on(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    """Here buffers may lie anywhere, on the rings themselves too, and the device writes what the rings then say."""
    driver = MockDriver(make(kind, tmp_path_factory.getbasetemp()), memory=GuestMemory(MEMORY))
    driver.start(queue_size=8)
    for queue in driver.queues:
        ring_bytes = queue.device + 6 + 8 * queue.size - queue.descriptor
        for _ in range(3):
            noise = data.draw(st.binary(max_size=ring_bytes))
            driver.memory.write(queue.descriptor, noise)
            for index in range(8):
                # Small addresses and lengths, or hardly a descriptor would be inside memory.
                driver.memory.write(queue.descriptor + 16 * index + 2, bytes(6))
                driver.memory.write(queue.descriptor + 16 * index + 10, bytes(2))
            queue.set_available(data.draw(st.integers(0, 12)))
            queue.kick(always=True)
    driver.start()
    driver.close()


def make(kind: str, directory: Path) -> VirtioDevice:
    if kind == "console":
        console = Console(lambda _: None)
        console.feed(b"x" * 1000)
        return console
    if kind == "entropy":
        return Entropy()
    image = directory / "random-rings.img"
    if not image.exists():
        image.write_bytes(bytes(1 << 16))
    return Block(Disk(image))
