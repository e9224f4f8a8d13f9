"""The checks of queue.py, taken out one at a time: the random rings notice each. A test of the test."""

from __future__ import annotations

import inspect
import struct

import pytest

from minivmm.virtio import mmio, queue
from tests.minivmm.virtio.ring_cases import MEMORY, Exhausted, MeteredMemory, agrees, ring_case

CASES = 3000

MISTAKES = {
    "loops are not noticed": ("            left -= 1\n", ""),
    "a chain one too long is served": ("if not left:", "if left < 0:"),
    "heads and next are not bounded": ("if index >= entries:", "if False:"),
    "the last descriptor is refused": ("if index >= entries:", "if index >= entries - 1:"),
    "readable after writable is served": ("elif writing:", "elif False:"),
    "indirect tables nest": ("if nested:", "if False:"),
    "indirect with next is served": ("if flags & _NEXT:\n            raise", "if False:\n            raise"),
    "half descriptors in a table are served": ("if not length or length % 16:", "if not length:"),
    "the available index may run ahead": ("if pending > left:", "if False:"),
    "writable buffers are a byte longer": (
        "writable.append(self._view(address, length))",
        "writable.append(self._view(address, length + 1))",
    ),
    "everything is writable": ("if flags & _WRITE:", "if True:"),
    "the used length is lost": ("self._used_elements[slot + 1] = length", "self._used_elements[slot + 1] = 0"),
    "the head is lost": ("self._used_elements[slot] = head", "self._used_elements[slot] = 0"),
}


def served_wrongly(seed: int) -> bool:
    try:
        return not agrees(ring_case(seed), MeteredMemory(MEMORY, budget=500))
    except (Exhausted, IndexError, struct.error):
        return True


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_seeded_mistake_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = MISTAKES[mistake]
    source = inspect.getsource(queue)
    assert source.count(right) == 1, "the mistake must hit exactly one place"
    mistaken: dict[str, object] = {"__name__": "minivmm.virtio.mistaken_queue"}
    exec(compile(source.replace(right, wrong), "mistaken_queue.py", "exec"), mistaken)
    monkeypatch.setattr(mmio, "Virtqueue", mistaken["Virtqueue"])
    assert any(map(served_wrongly, range(CASES)))


def test_without_a_mistake_none_of_these_cases_is_served_wrongly() -> None:
    assert not any(map(served_wrongly, range(CASES)))
