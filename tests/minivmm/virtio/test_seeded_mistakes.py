"""The checks of queue.py, taken out one at a time: the random rings notice each. A test of the test."""

from __future__ import annotations

import inspect
import random
import struct

import pytest
from hypothesis import HealthCheck, find, settings
from hypothesis.errors import NoSuchExample

from minivmm.virtio import mmio, queue
from tests.minivmm.virtio.ring_cases import MEMORY, Exhausted, MeteredMemory, RingCase, agrees, ring_cases

MISTAKES = {
    "loops are not noticed": ("            left -= 1\n", ""),
    "a chain one too long is served": ("if not left:", "if left < 0:"),
    "heads and next are not bounded": ("if index >= entries:", "if False:"),
    "the last descriptor is refused": ("if index >= entries:", "if index >= entries - 1:"),
    "readable after writable is served": ("elif writable:", "elif False:"),
    "indirect tables nest": ("if nested:", "if False:"),
    "indirect with next is served": ("if flags & _NEXT:\n            raise", "if False:\n            raise"),
    "half descriptors in a table are served": ("if not length or length % 16:", "if not length:"),
    "empty tables are served": ("if not length or length % 16:", "if length % 16:"),
    "the available index may run ahead": ("if pending > left:", "if False:"),
    "writable buffers are a byte longer": (
        "writable.append(self._view(address, length))",
        "writable.append(self._view(address, length + 1))",
    ),
    "everything is writable": ("if flags & _WRITE:", "if True:"),
    "the used length is lost": ("self._used_elements[slot + 1] = length", "self._used_elements[slot + 1] = 0"),
    "the head is lost": ("self._used_elements[slot] = head", "self._used_elements[slot] = 0"),
}


def served_wrongly(case: RingCase) -> bool:
    try:
        return not agrees(case, MeteredMemory(MEMORY, budget=500))
    except (Exhausted, IndexError, struct.error):
        return True


def search(seed: int) -> RingCase:
    quick = settings(max_examples=3000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    return find(ring_cases(), served_wrongly, settings=quick, random=random.Random(seed))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_seeded_mistake_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = MISTAKES[mistake]
    source = inspect.getsource(queue)
    assert source.count(right) == 1, "the mistake must hit exactly one place"
    namespace: dict[str, object] = {"__name__": "minivmm.virtio.mistaken_queue"}
    exec(compile(source.replace(right, wrong), "mistaken_queue.py", "exec"), namespace)
    monkeypatch.setattr(mmio, "Virtqueue", namespace["Virtqueue"])
    search(seed=1)


def test_without_a_mistake_the_same_search_finds_nothing() -> None:
    with pytest.raises(NoSuchExample):
        search(seed=1)
