"""A place for machines of the test's own, in which nothing is left running."""

from __future__ import annotations

import contextlib
import getpass
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minivmm.errors import VtkError
from tests.toolkit.guests import write_guest
from tests.toolkit.vm.ssh_server import OpenSsh
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


@pytest.fixture(scope="session")
def booted_debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A running Debian that lets ssh in, on the image `debian`; built when it is not there, which takes minutes."""
    from toolkit.images import debian as recipe
    from toolkit.images.store import ImageStore
    from toolkit.vm.waiting import wait

    found = Machines(tmp_path_factory.mktemp("debian") / "vtk" / "machines")
    store = ImageStore(machines=found.root)
    if "debian" not in {image.name for image in store.list()}:
        recipe.build(store, "debian")
    machine = Machine(create(found, "d", Parts(image="debian", accelerator="tcg", memory=512 * MIB)))
    try:
        machine.start()
        wait(machine, "ssh", 1500.0)  # 100 on an idle host
        yield machine
    finally:
        machine.delete(found, force=True)


@pytest.fixture
def debian(booted_debian: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The Debian that all tests of a run share, also for a `vtk` which the test starts; called d."""
    monkeypatch.setenv("XDG_STATE_HOME", str(booted_debian.directory.path.parents[2]))
    return booted_debian


@pytest.fixture
def reached(make: MakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Machine]]:
    """Makes a machine NAME whose guest is this host, this user's, behind OpenSSH's sshd with OPTIONS of sshd_config(5).

    The user has no ssh files and no ssh-agent.
    """
    if reason := OpenSsh.missing():
        pytest.skip(reason)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    servers: list[OpenSsh] = []

    def make_reached(name: str = "a", *options: str) -> Machine:
        machine = make(name, parts=Parts(accelerator="tcg", memory=32 * MIB, user=getpass.getuser()))
        keys = [machine.directory / "id_ed25519.pub"]
        servers.append(OpenSsh(tmp_path / f"sshd-{name}", machine.config().ssh_port, keys, *options))
        return machine

    yield make_reached
    for server in servers:
        server.close()
