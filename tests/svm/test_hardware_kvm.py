"""What only a hardware-style KVM shows: run on one by `make test-svm`, and on this host's KVM whichever it is."""

from __future__ import annotations

import pytest

from guest_os import image
from minivmm import Machine, Outcome
from minivmm.boot.loader import Boot

pytestmark = [pytest.mark.kvm, pytest.mark.svm_smoke]


@pytest.mark.parametrize("boot", [Boot.PVH, Boot.LINUX64], ids=lambda boot: boot.name.lower())
def test_a_guest_says_hello_whichever_way_it_is_entered(boot: Boot) -> None:
    with Machine(image("hello"), boot=boot) as machine:
        result = machine.run(timeout=60)
    assert result.outcome is Outcome.SHUTDOWN, result
    assert b"Hello from vtk" in result.console
