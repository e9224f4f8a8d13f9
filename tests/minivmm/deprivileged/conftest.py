"""The machine, made for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.minivmm.deprivileged.ring3 import Ring3


@pytest.fixture
def ring3() -> Iterator[Ring3]:
    machine = Ring3()
    try:
        yield machine
    finally:
        machine.close()
