"""Machines of a real libvirt: what they are doing is told truly, and each verb works or says why."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from minivmm.errors import ConfigError
from tests.toolkit.guests import write_guest
from tests.toolkit.libvirt.conftest import MakeMachine
from tests.toolkit.libvirt.daemon import Daemon
from toolkit.images.overlay import tool
from toolkit.libvirt.connection import ask
from toolkit.libvirt.importing import import_domain
from toolkit.vm.directory import Machines
from toolkit.vm.errors import Unsupported, WrongState
from toolkit.vm.machine import Machine
from toolkit.vm.making import Parts
from toolkit.vm.provider import MIB, State
from toolkit.vm.waiting import wait

pytestmark = pytest.mark.qemu


def state(machine: Machine) -> State:
    return machine.status().state


def domains(daemon: Daemon) -> list[str]:
    return ask(daemon.uri, lambda connection: sorted(domain.name() for domain in connection.listAllDomains()))


def test_a_machine_goes_through_its_life(daemon: Daemon, machines: Machines, make: MakeMachine) -> None:
    machine = make("life")
    assert state(machine) is State.STOPPED
    assert "life" in domains(daemon)
    machine.start(paused=True)
    assert state(machine) is State.PAUSED
    machine.resume()
    assert wait(machine, "console:rea.y", 30.0) == "ready"
    with machine.console() as connection:
        connection.settimeout(30.0)
        connection.sendall(b"hello")
        assert connection.recv(1) == b"h"
    machine.pause()
    assert state(machine) is State.PAUSED
    figures = machine.figures()
    assert figures.memory == 32 * MIB
    assert figures.cpu_time is not None
    assert figures.resident
    with pytest.raises(WrongState, match="is paused"):
        machine.start()
    machine.kill()
    assert state(machine) is State.STOPPED
    machine.delete(machines)
    assert machines.names() == []
    assert "life" not in domains(daemon)


@pytest.mark.slow
def test_its_ssh_port_leads_to_the_guest(daemon: Daemon, make: MakeMachine) -> None:
    machine = make("port")
    machine.start(paused=True)
    _, port = machine.ssh_address()
    import libvirt_qemu

    told = ask(daemon.uri, lambda there: libvirt_qemu.qemuMonitorCommand(there.lookupByName("port"), "info usernet", 1))
    assert f"{port}" in told


def test_a_killed_qemu_is_a_crash_and_starts_again(daemon: Daemon, make: MakeMachine) -> None:
    machine = make("crash", "halt")
    machine.start(paused=True)
    os.kill(daemon.qemu_pid("crash"), signal.SIGKILL)
    wait(machine, "stopped", 10.0)
    assert state(machine) is State.CRASHED
    machine.start(paused=True)
    assert state(machine) is State.PAUSED


@pytest.mark.slow
def test_a_guest_that_panics_is_told_of_and_stands_still(make: MakeMachine) -> None:
    machine = make("panic", "panic")
    machine.start()
    with pytest.raises(Exception, match="panicked"):
        wait(machine, "ssh", 10.0)
    assert state(machine) is State.PANICKED
    machine.kill()


def test_a_name_that_libvirt_has_already_is_refused_and_leaves_nothing(
    daemon: Daemon, machines: Machines, make: MakeMachine, tmp_path: Path
) -> None:
    define_foreign(daemon, "taken", write_guest(tmp_path, "echo"))
    try:
        with pytest.raises(ConfigError, match=r"(?s)domain 'taken'.*already.*vtk vm import"):
            make("taken")
        assert machines.names() == []
    finally:
        ask(daemon.uri, lambda connection: connection.lookupByName("taken").undefine())


def test_an_imported_domain_obeys_and_is_only_forgotten(daemon: Daemon, machines: Machines, tmp_path: Path) -> None:
    define_foreign(daemon, "foreign", write_guest(tmp_path, "echo"))
    try:
        machine = Machine(import_domain(machines, "foreign", daemon.uri, "mine"))
        assert state(machine) is State.STOPPED
        machine.start()
        assert state(machine) is State.RUNNING
        with pytest.raises(ConfigError, match="is machine 'mine' already"):
            import_domain(machines, "foreign", daemon.uri)
        machine.delete(machines, force=True)
        assert machines.names() == []
        assert ask(daemon.uri, lambda connection: connection.lookupByName("foreign").isActive())
    finally:
        ask(daemon.uri, lambda connection: connection.lookupByName("foreign").destroy())
        ask(daemon.uri, lambda connection: connection.lookupByName("foreign").undefine())


@pytest.mark.slow
def test_a_snapshot_brings_the_machine_back(make: MakeMachine, tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    os.spawnv(os.P_WAIT, tool("qemu-img"), ["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "16M"])
    machine = make("snap", parts=Parts(accelerator="tcg", memory=32 * MIB, disk=disk))
    machine.start()
    wait(machine, "console:ready", 30.0)
    machine.snapshot("one")
    assert state(machine) is State.RUNNING
    assert [(kept.name, kept.memory) for kept in machine.snapshots()] == [("one", True)]
    machine.kill()
    machine.restore("one")
    assert state(machine) is State.RUNNING
    with machine.console() as connection:  # it goes on where it was: it answers, and has not said "ready" again
        connection.settimeout(30.0)
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
    machine.delete_snapshot("one")
    assert machine.snapshots() == []


def test_a_machine_without_a_disk_says_that_it_keeps_no_snapshot(make: MakeMachine) -> None:
    with pytest.raises(Unsupported, match=r"(?s)cannot keep.*has none"):
        make("diskless").snapshot("one")


@pytest.mark.slow
def test_a_domain_that_somebody_undefined_is_made_anew(daemon: Daemon, make: MakeMachine) -> None:
    machine = make("gone")
    ask(daemon.uri, lambda connection: connection.lookupByName("gone").undefine())
    assert state(machine) is State.STOPPED
    assert "starting defines it anew" in machine.status().detail
    machine.start(paused=True)
    assert state(machine) is State.PAUSED


def define_foreign(daemon: Daemon, name: str, kernel: Path) -> None:
    xml = (
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory>"
        f"<os><type arch='x86_64' machine='q35'>hvm</type><kernel>{kernel}</kernel></os>"
        "<devices><serial type='pty'/></devices></domain>"
    )
    ask(daemon.uri, lambda connection: connection.defineXML(xml))
