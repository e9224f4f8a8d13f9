"""Several hosts as one: listed together, machines move between them, and files are sent where they are not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minivmm.errors import ConfigError
from tests.toolkit.libvirt.conftest import MakeMachine
from tests.toolkit.libvirt.daemon import Daemon
from toolkit.images.overlay import tool
from toolkit.libvirt import pool, storage
from toolkit.libvirt.connection import Connection, ask
from toolkit.libvirt.errors import LibvirtRefused
from toolkit.libvirt.whereabouts import MIGRATING, settle
from toolkit.vm.directory import Machines
from toolkit.vm.making import Parts
from toolkit.vm.provider import MIB, State
from toolkit.vm.waiting import wait

pytestmark = [pytest.mark.qemu, pytest.mark.slow]


def vtk(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "toolkit.cli", "vm", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, done.stderr
    return done


def volumes(daemon: Daemon) -> list[str]:
    return ask(daemon.uri, lambda there: sorted(there.storagePoolLookupByName("default").listVolumes()))


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "base.qcow2"
    subprocess.run([tool("qemu-img"), "create", "-q", "-f", "qcow2", path, "8M"], check=True)
    return path


def test_hosts_are_listed_together_and_one_that_is_down_is_a_row(
    daemon: Daemon, neighbour: Daemon, make: MakeMachine, tmp_path: Path
) -> None:
    make("here")
    nobody = f"qemu+unix:///system?socket={tmp_path}/nobody"
    done = vtk("list", "--uri", daemon.uri, "--uri", neighbour.uri, "--uri", nobody)
    assert "here" in done.stdout
    assert "no answer" in done.stdout
    assert "there is no libvirt at" in done.stderr
    told = json.loads(vtk("list", "--json", "--uri", daemon.uri, "--uri", nobody).stdout)
    hosts = told["hosts"]
    assert [domain["machine"] for domain in hosts[0]["domains"] if domain["name"] == "here"] == ["here"]
    assert hosts[1]["error"]["cause"]
    vtk("list", "--uri", nobody, status=3)


def test_a_machine_moves_while_it_runs(neighbour: Daemon, make: MakeMachine, disk: Path) -> None:
    machine = make("mover", parts=Parts(accelerator="tcg", memory=32 * MIB, disk=disk))
    machine.start()
    wait(machine, "console:ready", 60.0)
    moved = machine.migrate(neighbour.uri)
    assert moved.duration > moved.downtime
    assert machine.config().uri == neighbour.uri
    assert machine.status().state is State.RUNNING
    with machine.console() as connection:  # it goes on where it was
        connection.settimeout(60.0)
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
    with pytest.raises(ConfigError, match="already"):
        machine.migrate(neighbour.uri)


def test_a_machine_whose_mover_was_killed_is_found_where_it_came_to(neighbour: Daemon, make: MakeMachine) -> None:
    machine = make("orphan", "halt")
    machine.start(paused=True)
    before = machine.config()
    machine.migrate(neighbour.uri)
    # As if the process had died between libvirt's answer and its own note of it.
    machine.directory.write_config(before)
    machine.directory.write(MIGRATING, f"{neighbour.uri}\n".encode())
    assert machine.status().state is State.PAUSED
    assert settle(machine.directory).uri == neighbour.uri
    assert not (machine.directory / MIGRATING).exists()


def test_a_move_that_fails_leaves_the_machine_where_it_was(
    daemon: Daemon, neighbour: Daemon, make: MakeMachine, disk: Path
) -> None:
    machine = make("stayer", "halt", parts=Parts(accelerator="tcg", memory=32 * MIB, disk=disk))
    machine.start(paused=True)
    machine.snapshot("one")  # which libvirt does not carry along
    with pytest.raises(LibvirtRefused, match=r"(?s)goes on at.*snapshot"):
        machine.migrate(neighbour.uri)
    assert machine.config().uri == daemon.uri
    assert machine.status().state is State.PAUSED
    assert not (machine.directory / MIGRATING).exists()


def test_files_are_sent_once_and_a_machines_own_go_with_it(
    daemon: Daemon, machines: Machines, make: MakeMachine, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "is_in_place", lambda _uri: False)  # as with qemu+ssh://HOST/system
    parts = Parts(accelerator="tcg", memory=32 * MIB, disk=disk, disk_size=16 * MIB)
    first = make("first", parts=parts)
    shared = {name for name in volumes(daemon) if "first" not in name}
    second = make("second", parts=parts)
    assert {name for name in volumes(daemon) if "first" not in name and "second" not in name} == shared
    first.start()
    wait(first, "console:ready", 60.0)
    first.delete(machines, force=True)
    second.delete(machines)
    assert set(volumes(daemon)) == shared


def test_a_half_sent_file_is_sent_again(
    daemon: Daemon, make: MakeMachine, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "is_in_place", lambda _uri: False)
    disk.write_bytes(disk.read_bytes() + b"\0" * 4096)  # like no other test's
    make("one", "halt", parts=Parts(accelerator="tcg", memory=32 * MIB, disk=disk))
    complete = {name for name in volumes(daemon) if name.endswith(f".qcow2{pool.COMPLETE}")}
    ask(daemon.uri, lambda there: [_volume(there, name).delete(0) for name in complete])
    make("two", "halt", parts=Parts(accelerator="tcg", memory=32 * MIB, disk=disk))
    again = {name for name in volumes(daemon) if name.endswith(f".qcow2{pool.COMPLETE}")}
    assert again
    assert again.isdisjoint(complete)


def _volume(connection: Connection, name: str) -> Any:
    return connection.storagePoolLookupByName("default").storageVolLookupByName(name)
