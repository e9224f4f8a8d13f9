"""A vtk that is killed, wherever it is: the list tells the truth, and the same verb works the next time."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path

import pytest

from tests.toolkit.guests import write_guest
from tests.toolkit.vm.conftest import MakeMachine
from tests.toolkit.vm.kill_points import killed_before
from toolkit.images.store import ImageStore
from toolkit.vm import presence
from toolkit.vm.directory import Machines
from toolkit.vm.errors import MachineMissing, WrongState
from toolkit.vm.machine import Machine, everyone, find
from toolkit.vm.making import Parts, create
from toolkit.vm.provider import MIB, State

SETTLE_TIMEOUT = 10.0  # seconds

# All of a verb's steps take some ten seconds; some of them are tried every time.
steps = pytest.mark.parametrize(
    "every", [pytest.param(1, marks=pytest.mark.slow, id="each"), pytest.param(9, id="some")]
)


def states(machines: Machines) -> dict[str, State]:
    return {machine.name: status.state for machine, status in everyone(machines)}


def settled(machine: Machine) -> State:
    """Its state when QEMU has done what it had begun when its vtk was killed."""
    deadline = time.monotonic() + SETTLE_TIMEOUT
    while (state := machine.status().state) is State.STARTING and time.monotonic() < deadline:
        time.sleep(0.02)
    return state


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """Of a machine on an image with a seed and a disk: the one with the most steps."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with ImageStore().build("i") as staging:
        (staging.directory / "vmlinuz").write_bytes(write_guest(tmp_path, "echo").read_bytes())
        (staging.directory / "disk.qcow2").write_bytes(bytes(MIB))
        staging.publish("debian", kernel="vmlinuz", disk="disk.qcow2", user="debian", inputs={})
    return Parts("i", memory=32 * MIB, accelerator="tcg")


@steps
def test_a_create_killed_at_any_step_makes_a_whole_machine_or_none(
    machines: Machines, parts: Parts, every: int
) -> None:
    for step in itertools.count(0, every):
        killed = killed_before(step, lambda: create(machines, "a", parts))
        assert states(machines) in ({}, {"a": State.STOPPED}), f"step {step}"
        if "a" not in states(machines):
            create(machines, "a", parts)
        machine = find(machines, "a")
        assert (machine.directory / "seed.iso").is_file()
        assert (machine.directory / "disk.qcow2").is_file()
        machine.delete(machines)
        assert [path.name for path in machines.root.iterdir()] == [".lock"], f"step {step}"
        if not killed:
            break


@steps
def test_a_delete_killed_at_any_step_leaves_a_whole_machine_or_none(
    machines: Machines, parts: Parts, every: int
) -> None:
    for step in itertools.count(0, every):
        create(machines, "a", parts)
        killed = killed_before(step, lambda: find(machines, "a").delete(machines))
        assert states(machines) in ({}, {"a": State.STOPPED}), f"step {step}"
        if "a" in states(machines):
            find(machines, "a").delete(machines)
        create(machines, "a", parts)  # takes the rest away
        find(machines, "a").delete(machines)
        assert [path.name for path in machines.root.iterdir()] == [".lock"], f"step {step}"
        if not killed:
            break
    with pytest.raises(MachineMissing):
        find(machines, "a")


@steps
@pytest.mark.qemu
def test_a_start_killed_at_any_step_leaves_a_machine_that_is_told_truly(
    machines: Machines, make: MakeMachine, every: int
) -> None:
    machine = make()
    for step in itertools.count(0, every):
        killed = killed_before(step, machine.start)
        state = settled(machine)
        pid = machine.status().pid
        assert state in (State.RUNNING, State.STOPPED, State.CRASHED), f"step {step}"
        assert (pid is not None) == state.is_up
        if pid is not None:
            assert os.readlink(f"/proc/{pid}/exe").rpartition("/")[2].startswith("qemu-system")
        else:
            machine.start()
            assert settled(machine) is State.RUNNING, f"step {step}"
        machine.kill()
        assert states(machines) == {"a": State.STOPPED}
        assert not presence.is_alive(machine.directory)
        if not killed:
            break


@steps
@pytest.mark.qemu
def test_a_kill_killed_at_any_step_can_be_said_again(make: MakeMachine, every: int) -> None:
    machine = make()
    for step in itertools.count(0, every):
        machine.start()
        killed = killed_before(step, machine.kill)
        with contextlib.suppress(WrongState):  # QEMU had heard it
            machine.kill()
        assert machine.status().state in (State.STOPPED, State.CRASHED), f"step {step}"
        if not killed:
            break
