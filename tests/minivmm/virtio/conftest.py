"""What all tests of virtio devices share."""

from __future__ import annotations

import pytest

from minivmm.virtio import queue


@pytest.fixture(autouse=True)
def _no_drain_ends_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy host may take this process off the CPU in the middle of a drain: counts must not depend on it."""
    monkeypatch.setattr(queue, "DRAIN_SECONDS", 3600.0)
