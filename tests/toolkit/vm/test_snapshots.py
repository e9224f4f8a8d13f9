"""Snapshots of a real QEMU machine: what is gone back to is what was kept, and nothing kept is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from minivmm.errors import ConfigError, VtkError
from tests.toolkit.vm.conftest import MakeMachine
from toolkit.cli import ExitStatus, invoke
from toolkit.vm import presence
from toolkit.vm.errors import Unsupported, WrongState
from toolkit.vm.machine import Machine
from toolkit.vm.making import Parts
from toolkit.vm.provider import MIB, State
from toolkit.vm.waiting import wait

pytestmark = pytest.mark.qemu

PARTS = Parts(accelerator="tcg", memory=32 * MIB)


def count(machine: Machine) -> str:
    """The next letter of the guest `count`."""
    with machine.console() as connection:
        connection.settimeout(30.0)
        connection.sendall(b"?")
        return connection.recv(1).decode()


def with_disk(tmp_path: Path) -> Parts:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(MIB))
    return PARTS._replace(disk=disk)


def write_to_disk(machine: Machine, pattern: int) -> None:
    line = ["qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} 0 64k", str(machine.directory / "disk.qcow2")]
    subprocess.run(line, check=True, capture_output=True, timeout=30)


def first_byte(machine: Machine, tmp_path: Path) -> int:
    raw = tmp_path / "raw"
    line = ["qemu-img", "convert", "-U", "-O", "raw", str(machine.directory / "disk.qcow2"), str(raw)]
    subprocess.run(line, check=True, capture_output=True, timeout=30)
    return raw.read_bytes()[0]


def checked(disk: Path) -> dict[str, int]:
    line = ["qemu-img", "check", "--output=json", str(disk)]
    told = json.loads(subprocess.run(line, capture_output=True, check=False, timeout=30).stdout)
    return {key: told.get(key, 0) for key in ("corruptions", "leaks")}


@pytest.mark.parametrize("disk", [False, True], ids=["without a disk", "with a disk"])
def test_a_machine_goes_back_to_what_it_was_running_or_stopped(make: MakeMachine, tmp_path: Path, disk: bool) -> None:
    machine = make("a", "count", with_disk(tmp_path) if disk else PARTS)
    machine.start()
    wait(machine, "console:ready", 30.0)
    assert count(machine) == "a"
    machine.snapshot("one")
    assert [count(machine), count(machine)] == ["b", "c"]
    machine.restore("one")
    assert count(machine) == "b"
    machine.kill()
    machine.restore("one")
    assert machine.status().state is State.RUNNING
    assert count(machine) == "b"
    (found,) = machine.snapshots()
    assert (found.name, found.memory, found.size > 0) == ("one", True, True)


def test_a_paused_machine_is_paused_when_it_is_gone_back_to(make: MakeMachine) -> None:
    machine = make("a", "count")
    machine.start()
    wait(machine, "console:ready", 30.0)
    machine.pause()
    machine.snapshot("still")
    machine.resume()
    assert count(machine) == "a"
    machine.restore("still")
    assert machine.status().state is State.PAUSED
    machine.resume()
    assert count(machine) == "a"


def test_of_a_stopped_machine_the_disk_is_kept(make: MakeMachine, tmp_path: Path) -> None:
    machine = make("a", "echo", with_disk(tmp_path))
    write_to_disk(machine, 1)
    machine.snapshot("cold")
    write_to_disk(machine, 2)
    machine.restore("cold")
    assert first_byte(machine, tmp_path) == 1
    assert machine.status().state is State.STOPPED
    assert [snapshot.memory for snapshot in machine.snapshots()] == [False]
    machine.start()
    with pytest.raises(WrongState, match=r"(?s)has its disk only.*vtk vm kill a"):
        machine.restore("cold")
    machine.delete_snapshot("cold")
    assert machine.snapshots() == []


def test_a_stopped_machine_without_a_disk_has_nothing_to_keep(make: MakeMachine) -> None:
    with pytest.raises(Unsupported, match="has no disk, and is not up"):
        make().snapshot("cold")


def test_the_memory_of_another_machine_is_refused_before_anything_changes(make: MakeMachine) -> None:
    machine = make("a", "count")
    machine.start()
    wait(machine, "console:ready", 30.0)
    machine.snapshot("one")
    machine.kill()
    machine.directory.write_config(replace(machine.config(), memory=64 * MIB, cpus=2))
    with pytest.raises(ConfigError, match=r"(?s)does not fit.*memory: 32M then, 64M now; cpus: 1 then, 2 now"):
        machine.restore("one")
    assert machine.status().state is State.STOPPED
    machine.start()
    with pytest.raises(ConfigError, match=r"(?s)memory: 32M then.*vtk vm kill a"):
        machine.restore("one")
    assert machine.status().state is State.RUNNING


@pytest.mark.parametrize("content", [b"", b"[]", b'{"one": 5}', b'{"one": {"shape": {"color": "red"}}}'])
def test_a_snapshot_of_which_nothing_else_is_known_is_gone_back_to(make: MakeMachine, content: bytes) -> None:
    machine = make("a", "count")
    machine.start(paused=True)
    machine.snapshot("one")
    (machine.directory / "snapshots.json").write_bytes(content)
    machine.restore("one")
    assert machine.status().state is State.RUNNING


@pytest.mark.parametrize("name", ["", "../x", "a b", "17"])
def test_a_name_that_cannot_be_is_refused(make: MakeMachine, tmp_path: Path, name: str) -> None:
    machine = make("a", "echo", with_disk(tmp_path))
    with pytest.raises(ConfigError, match="cannot be a snapshot's name"):
        machine.snapshot(name)


def test_a_name_is_had_once_and_one_that_is_not_there_is_told(make: MakeMachine, tmp_path: Path) -> None:
    machine = make("a", "echo", with_disk(tmp_path))
    machine.snapshot("one")
    with pytest.raises(ConfigError, match="has a snapshot 'one' already"):
        machine.snapshot("one")
    for verb in (machine.restore, machine.delete_snapshot):
        with pytest.raises(ConfigError, match=r"(?s)has no snapshot 'two'.*--list"):
            verb("two")


@pytest.mark.parametrize("delay", [0.005, *(pytest.param(delay, marks=pytest.mark.slow) for delay in (0.0, 0.02))])
def test_a_qemu_killed_while_it_keeps_leaves_the_earlier_snapshots_whole(
    make: MakeMachine, tmp_path: Path, delay: float
) -> None:
    machine = make("a", "count", with_disk(tmp_path))
    machine.start()
    wait(machine, "console:ready", 30.0)
    assert count(machine) == "a"
    machine.snapshot("one")
    pid = machine.status().pid
    assert pid is not None
    disk = machine.directory / "disk.qcow2"
    size = disk.stat().st_size

    def keep() -> None:
        with contextlib.suppress(VtkError):
            machine.snapshot("two")

    keeping = threading.Thread(target=keep)
    keeping.start()
    while disk.stat().st_size == size and keeping.is_alive():
        time.sleep(0.001)
    time.sleep(delay)  # wherever it is then, its data on their way
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    keeping.join()
    assert presence.wait_for_end(machine.directory, 10.0)
    assert checked(disk)["corruptions"] == 0
    machine.restore("one")
    assert count(machine) == "b"
    machine.kill()
    assert checked(disk) == {"corruptions": 0, "leaks": 0}  # nor is its room lost


def test_the_verbs_print_what_they_did(make: MakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    make("a", "count").start()
    assert invoke(["vm", "snapshot", "a", "--list"]) == ExitStatus.OK
    assert "has no snapshots" in capsys.readouterr().err
    assert invoke(["vm", "snapshot", "a", "one"]) == ExitStatus.OK
    assert capsys.readouterr().err == "kept a as one\n"
    assert invoke(["vm", "snapshot", "a", "--list", "--json"]) == ExitStatus.OK
    (told,) = json.loads(capsys.readouterr().out)["snapshots"]
    assert (told["name"], told["memory"]) == ("one", True)
    assert invoke(["vm", "restore", "a", "one"]) == ExitStatus.OK
    assert invoke(["vm", "snapshot", "a", "--delete", "one"]) == ExitStatus.OK
    assert invoke(["vm", "snapshot", "a", "two", "--list"]) == ExitStatus.USAGE


@pytest.mark.slow
def test_a_file_of_a_running_linux_is_back_after_a_restore(debian: Machine) -> None:
    def run(command: str) -> str:
        line = [sys.executable, "-m", "toolkit.cli", "vm", "exec", debian.name, "--", "sh", "-c", command]
        return subprocess.run(line, capture_output=True, text=True, timeout=120, check=True).stdout

    run("echo before > file; sync")
    debian.snapshot("before")
    run("echo after > file; sync")
    debian.restore("before")
    assert run("cat file") == "before\n"
