"""A libvirt daemon for the tests of this directory, and machines on it of which none is left over."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minivmm.errors import VtkError
from tests.toolkit.guests import write_guest
from tests.toolkit.libvirt.daemon import Daemon, obstacle
from toolkit.libvirt import connection
from toolkit.vm.directory import Machines
from toolkit.vm.machine import Machine, find
from toolkit.vm.making import Parts, create
from toolkit.vm.provider import MIB

MakeMachine = Callable[..., Machine]


def _daemon(name: str) -> Iterator[Daemon]:
    if reason := obstacle():
        pytest.skip(reason)
    daemon = Daemon(name)
    try:
        yield daemon
    finally:
        daemon.end()


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    """The one that most tests share: they leave it running."""
    yield from _daemon("host-a")


@pytest.fixture(scope="session")
def neighbour() -> Iterator[Daemon]:
    """Another host's, as far as it can know."""
    yield from _daemon("host-b")


@pytest.fixture
def mortal() -> Iterator[Daemon]:
    """One to be killed."""
    yield from _daemon("host-c")


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    """The list of machines, also that of a `vtk` which the test starts; empty at first."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    found = Machines()
    yield found
    for name in found.names():
        with contextlib.suppress(VtkError):
            find(found, name).delete(found, force=True)
    connection.forget_all()


@pytest.fixture
def make(machines: Machines, tmp_path: Path, request: pytest.FixtureRequest) -> MakeMachine:
    """Makes a machine NAME with the guest called GUEST (tests/toolkit/guests.py), at the shared daemon or another."""

    def make_machine(
        name: str = "a", guest: str = "echo", parts: Parts | None = None, at: Daemon | None = None
    ) -> Machine:
        at = at or request.getfixturevalue("daemon")
        asked = parts or Parts(accelerator="tcg", memory=32 * MIB)
        kernel = write_guest(tmp_path, guest)
        return Machine(create(machines, name, asked._replace(kernel=kernel, provider="libvirt", uri=at.uri)))

    return make_machine
