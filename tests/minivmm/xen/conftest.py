"""Domains for tests that write their kernel themselves (kernels.py): a machine a file, a domain a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from minivmm.xen.hypervisor import Hypervisor
from tests.minivmm.xen.kernels import Guest


@pytest.fixture(scope="module")
def machine() -> Iterator[Hypervisor]:
    """Two CPUs, and room for two domains of kernels.py."""
    with Hypervisor(24 << 20, cpus=2) as made:
        yield made


@pytest.fixture
def guest(machine: Hypervisor) -> Iterator[Guest]:
    with Guest(machine) as made:
        yield made


@pytest.fixture
def two_vcpus(machine: Hypervisor) -> Iterator[Guest]:
    with Guest(machine, vcpus=2) as made:
        yield made
