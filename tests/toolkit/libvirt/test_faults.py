"""A daemon that dies, hangs or is not there: it is said, with what to do, and no machine is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from minivmm.errors import VtkError
from tests.toolkit.libvirt.conftest import MakeMachine
from tests.toolkit.libvirt.daemon import Daemon
from toolkit.images.overlay import tool
from toolkit.libvirt import connection, provider
from toolkit.libvirt.errors import LibvirtDown, LibvirtLost, LibvirtMissing, LibvirtSilent
from toolkit.vm.directory import Machines
from toolkit.vm.errors import WrongState
from toolkit.vm.making import Parts, create
from toolkit.vm.provider import MIB, State

pytestmark = pytest.mark.qemu


@pytest.mark.slow
def test_a_daemon_that_dies_loses_no_machine(mortal: Daemon, make: MakeMachine) -> None:
    machine = make("survivor", "halt", at=mortal)
    machine.start()
    mortal.kill()
    status = machine.status()
    assert status.state is State.SILENT
    assert "try:" in status.detail
    with pytest.raises((LibvirtDown, LibvirtLost), match=r"(?s)libvirt.*try:.*libvirtd"):
        machine.kill()
    with pytest.raises(WrongState, match="is silent"):
        machine.start()
    mortal.start()
    assert machine.status().state is State.RUNNING
    machine.kill()
    assert machine.status().state is State.STOPPED


@pytest.mark.slow
def test_a_daemon_that_hangs_is_not_waited_for_for_ever(
    mortal: Daemon, make: MakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider, "STATUS_TIMEOUT", 0.5)
    machine = make("waiting", at=mortal)
    machine.start(paused=True)
    mortal.signal(signal.SIGSTOP)
    try:
        status = machine.status()
        assert status.state is State.SILENT
        assert "has not answered within 0.5 s" in status.detail
        with pytest.raises(LibvirtSilent, match="what it was asked may still happen"):
            connection.ask(mortal.uri, lambda there: there.getHostname(), timeout=0.2)
    finally:
        mortal.signal(signal.SIGCONT)
    assert connection.ask(mortal.uri, lambda there: there.getHostname(), timeout=30.0)
    assert machine.status().state is State.PAUSED


@pytest.mark.slow
def test_a_daemon_that_dies_while_a_snapshot_is_taken_loses_nothing(
    mortal: Daemon, make: MakeMachine, tmp_path: Path
) -> None:
    disk = tmp_path / "disk.qcow2"
    subprocess.run([tool("qemu-img"), "create", "-q", "-f", "qcow2", disk, "16M"], check=True)
    machine = make("kept", "halt", parts=Parts(accelerator="tcg", memory=256 * MIB, disk=disk), at=mortal)
    machine.start(paused=True)
    machine.snapshot("before")
    failures: list[VtkError] = []

    def take() -> None:
        try:
            machine.snapshot("during")
        except VtkError as error:
            failures.append(error)

    taking = threading.Thread(target=take)
    taking.start()
    taking.join(0.4)  # wherever it is by then
    mortal.kill()
    taking.join(60.0)
    # It was made, or was cut off at one point or another: no other error, and nobody waits.
    assert not taking.is_alive()
    assert all(isinstance(failure, LibvirtLost | LibvirtDown | WrongState) for failure in failures)
    mortal.start()
    assert machine.status().state is State.PAUSED
    assert "before" in {kept.name for kept in machine.snapshots()}
    machine.restore("before")
    assert machine.status().state is State.PAUSED


def test_a_daemon_that_is_not_there_is_told_of_and_no_machine_made(machines: Machines, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"")
    uri = f"qemu+unix:///system?socket={tmp_path}/nobody"
    with pytest.raises(LibvirtDown, match=r"(?s)no libvirt at.*systemctl restart libvirtd"):
        create(machines, "x", Parts(kernel=kernel, provider="libvirt", uri=uri))
    assert machines.names() == []


def test_without_libvirt_python_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(LibvirtMissing, match=r"(?s)libvirt-python.*python3-libvirt"):
        connection.ask("qemu:///system", lambda there: there)


def test_libvirt_itself_prints_nothing(daemon: Daemon, machines: Machines) -> None:
    del machines
    line = [sys.executable, "-m", "toolkit.cli", "vm", "import", "nobody", "--uri", daemon.uri]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("vtk: there is no domain 'nobody'")
    assert "libvirt:" not in done.stderr
