"""A place for machines of the test's own, in which nothing is left running."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minivmm.errors import VtkError
from tests.toolkit.guests import write_guest
from toolkit.vm import presence
from toolkit.vm.directory import MachineDirectory, Machines
from toolkit.vm.machine import Machine
from toolkit.vm.making import Parts, create
from toolkit.vm.provider import MIB

MakeMachine = Callable[..., Machine]


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    """The list of machines, also that of a `vtk` which the test starts; empty at first."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    found = Machines()
    yield found
    if found.root.is_dir():
        for path in found.root.iterdir():
            if path.is_dir():
                with contextlib.suppress(VtkError):
                    assert presence.kill(MachineDirectory(path), 10.0)


@pytest.fixture
def make(machines: Machines, tmp_path: Path) -> MakeMachine:
    """Makes a machine NAME with the guest called GUEST (tests/toolkit/guests.py)."""

    def make_machine(name: str = "a", guest: str = "echo", parts: Parts | None = None) -> Machine:
        kernel = write_guest(tmp_path, guest)
        asked = parts or Parts(accelerator="tcg", memory=32 * MIB)
        return Machine(create(machines, name, asked._replace(kernel=kernel)))

    return make_machine
