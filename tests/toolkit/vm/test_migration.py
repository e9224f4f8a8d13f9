"""Moving a machine between two real QEMU processes: at every moment exactly one of them is the machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from minivmm.errors import ImageError, VtkError
from tests.toolkit.vm.conftest import MakeMachine
from toolkit.cli import ExitStatus, invoke
from toolkit.qemu.errors import QemuError
from toolkit.vm import migration, presence
from toolkit.vm.errors import Unsupported
from toolkit.vm.launch import launch
from toolkit.vm.machine import Machine
from toolkit.vm.making import Parts
from toolkit.vm.provider import MIB, State
from toolkit.vm.waiting import wait

pytestmark = pytest.mark.qemu
SLOW = pytest.mark.slow  # of the cases of one property, those that are tried with the slow tests only


def count(machine: Machine) -> str:
    """The next letter of the guest `count`."""
    with machine.console() as connection:
        connection.settimeout(30.0)
        connection.sendall(b"?")
        return connection.recv(1).decode()


def started(make: MakeMachine, disk: Path | None = None) -> Machine:
    """A machine that has counted to a."""
    if disk is not None:
        disk.write_bytes(bytes(MIB))
    machine = make("a", "count", Parts(accelerator="tcg", memory=32 * MIB, disk=disk))
    machine.start()
    wait(machine, "console:ready", 30.0)
    assert count(machine) == "a"
    return machine


def processes(machine: Machine) -> list[int]:
    return [pid for slot in presence.SLOTS if (pid := presence.process_id(machine.directory, slot)) is not None]


def port_answers(machine: Machine) -> bool:
    """Whether the forwarding to the guest's ssh port listens."""
    with contextlib.suppress(OSError), socket.create_connection(machine.ssh_address(), 5.0):
        return True
    return False


def test_it_goes_on_in_another_process_there_and_back(make: MakeMachine, tmp_path: Path) -> None:
    machine = started(make, tmp_path / "disk.img")
    port = machine.config().ssh_port
    seen = [machine.status().pid]
    for letter in "bcd":
        moved = machine.migrate()
        assert moved.transferred > 0
        assert 0 < moved.downtime < moved.duration
        assert count(machine) == letter
        assert port_answers(machine)
        assert machine.config().ssh_port == port
        assert processes(machine) == [machine.status().pid]
        seen.append(machine.status().pid)
    assert len(set(seen)) == 4
    assert (machine.directory / "console.log").read_bytes() == b"ready\nabcd"
    machine.kill()
    assert machine.status().state is State.STOPPED
    machine.start()
    assert machine.status().state is State.RUNNING


def test_a_paused_machine_stays_paused(make: MakeMachine, tmp_path: Path) -> None:
    machine = started(make, tmp_path / "disk.img")
    machine.pause()
    assert machine.migrate().downtime == 0.0
    assert machine.status().state is State.PAUSED
    machine.snapshot("still")
    machine.resume()
    assert count(machine) == "b"


def test_a_guest_that_writes_to_its_memory_all_the_time_moves(make: MakeMachine) -> None:
    machine = make("a", "dirty")
    machine.start()
    wait(machine, "console:ready", 30.0)
    moved = machine.migrate()
    assert moved.transferred > 16 * MIB  # whole pages: none of them is all zeros
    assert machine.status().state is State.RUNNING


def test_it_has_its_snapshots_after_a_move(make: MakeMachine) -> None:
    machine = started(make)
    machine.snapshot("one")
    machine.migrate()
    assert count(machine) == "b"
    machine.restore("one")
    assert count(machine) == "b"


def test_a_machine_that_has_moved_and_is_terminated_has_stopped(make: MakeMachine) -> None:
    machine = started(make)
    machine.migrate()
    os.kill(machine.status().pid or 0, signal.SIGTERM)
    assert wait(machine, "stopped", 10.0) == "stopped"


def test_a_new_process_that_does_not_come_up_leaves_the_old_one_running(make: MakeMachine) -> None:
    machine = started(make)
    pid = machine.status().pid
    Path(machine.config().kernel).unlink()
    with pytest.raises(ImageError, match="cannot be read"):
        machine.migrate()
    assert (machine.status().state, machine.status().pid) == (State.RUNNING, pid)
    assert processes(machine) == [pid]
    assert count(machine) == "b"


@pytest.mark.parametrize(
    ("whose", "after"),
    [
        ("new", "_transfer"),
        ("old", "_transfer"),
        pytest.param("new", "launch", marks=SLOW),
        pytest.param("old", "launch", marks=SLOW),
    ],
)
def test_a_qemu_that_is_killed_on_the_way_leaves_the_other_or_is_told(
    make: MakeMachine, monkeypatch: pytest.MonkeyPatch, whose: str, after: str
) -> None:
    machine = started(make)
    old = machine.status().pid
    step: Callable[..., object] = getattr(migration, after)

    def and_then_killed(*arguments: object) -> object:
        done = step(*arguments)
        victims = [pid for pid in processes(machine) if (pid == old) is (whose == "old")]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        assert victims
        return done

    monkeypatch.setattr(migration, after, and_then_killed)
    with contextlib.suppress(VtkError):
        machine.migrate()
    deadline = time.monotonic() + 10.0
    while len(processes(machine)) > 1 or machine.status().state is State.STARTING:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    now = machine.status()
    if (whose, after) == ("old", "launch"):
        assert now.state is State.CRASHED  # nothing had gone over
    else:
        assert now.state is State.RUNNING
        assert count(machine) == "b"
        assert port_answers(machine)


def test_a_new_process_that_cannot_load_leaves_the_old_one_running_and_says_why(
    make: MakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = started(make)
    pid = machine.status().pid
    monkeypatch.setattr(
        migration, "launch", lambda where, config, how: launch(where, replace(config, memory=64 * MIB), how)
    )
    with pytest.raises(QemuError, match=r"(?s)has not moved, and goes on where it was\n  cause: .*pc.ram"):
        machine.migrate()
    assert (machine.status().state, processes(machine)) == (State.RUNNING, [pid])
    assert count(machine) == "b"
    monkeypatch.undo()
    machine.migrate()
    assert count(machine) == "c"


@pytest.mark.parametrize(
    "step",
    [
        "_pump",
        "_end",
        *(pytest.param(step, marks=SLOW) for step in ("launch", "_transfer", "_wait_until_loaded", "_forward")),
    ],
)
def test_a_vtk_killed_after_any_step_of_a_move_leaves_exactly_one(make: MakeMachine, step: str) -> None:
    machine = started(make)
    killed_after = (
        "import os, sys; from toolkit.cli import invoke; from toolkit.vm import migration;"
        f"step = migration.{step};"
        # In _pump, the state is on its way.
        f"migration.{step} = lambda *arguments: ({step != '_pump'} and step(*arguments), os.kill(os.getpid(), 9));"
        "invoke(['vm', 'migrate', 'a'])"
    )
    done = subprocess.run([sys.executable, "-c", killed_after], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert machine.status().state in (State.RUNNING, State.PAUSED)
    if machine.status().state is State.PAUSED:  # all had gone over, and the old process had not ended yet
        machine.resume()
    assert count(machine) == "b"
    assert port_answers(machine)
    machine.pause()  # any verb that changes the machine clears away what is left over
    deadline = time.monotonic() + 10.0
    while processes(machine) != [machine.status().pid]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    machine.kill()
    machine.start()
    assert machine.status().state is State.RUNNING


def test_the_list_tells_the_truth_while_it_moves(make: MakeMachine) -> None:
    machine = started(make)
    states, over = set(), threading.Event()

    def look() -> None:
        while not over.is_set():
            states.add(machine.status().state)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        machine.migrate()
    finally:
        over.set()
        looking.join()
    assert states <= {State.RUNNING, State.PAUSED}
    assert machine.status().state is State.RUNNING


def test_a_destination_is_refused(make: MakeMachine) -> None:
    with pytest.raises(Unsupported, match="moves between processes of this host"):
        started(make).migrate("tcp:127.0.0.1:4444")


def test_the_verb_tells_how_it_went(make: MakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    started(make)
    assert invoke(["vm", "migrate", "a", "--json"]) == ExitStatus.OK
    told = json.loads(capsys.readouterr().out)
    assert told["machine"]["state"] == "running"
    assert told["migration"]["transferred"] > 0


@pytest.mark.slow
def test_a_busy_linux_moves_and_ssh_still_lets_in(debian: Machine) -> None:
    def run(command: str) -> str:
        line = [sys.executable, "-m", "toolkit.cli", "vm", "exec", debian.name, "--", "sh", "-c", command]
        return subprocess.run(line, capture_output=True, text=True, timeout=120, check=True).stdout

    booted = run("cat /proc/sys/kernel/random/boot_id")
    run("nohup sh -c 'while :; do dd if=/dev/urandom of=/dev/shm/x bs=1M count=16; done' >/dev/null 2>&1 & sleep 1")
    moved = debian.migrate()
    assert moved.downtime < 10.0
    assert wait(debian, "ssh", 60.0)
    # The loop's own shell, for between two dd there is none.
    assert run("cat /proc/sys/kernel/random/boot_id; pgrep -f '[w]hile :' >/dev/null && echo busy") == f"{booted}busy\n"
    run("pkill -f '[w]hile :'; rm -f /dev/shm/x")
