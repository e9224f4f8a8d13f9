"""Machines of a real QEMU: what they are doing is told truly, whatever was killed, and each verb works or says why."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minivmm.errors import ImageError, VtkError
from tests.toolkit.vm.conftest import MakeMachine
from toolkit.qemu.errors import QemuError
from toolkit.vm import presence
from toolkit.vm.directory import MachineDirectory, Machines
from toolkit.vm.errors import MachineBusy, Unfinished, WrongState
from toolkit.vm.machine import Machine, everyone
from toolkit.vm.making import Parts
from toolkit.vm.provider import MIB, State, Status
from toolkit.vm.qemu import QemuProvider
from toolkit.vm.waiting import wait

pytestmark = pytest.mark.qemu


def state(machine: Machine) -> State:
    return machine.status().state


def pid_of(machine: Machine) -> int:
    pid = machine.status().pid
    assert pid is not None
    return pid


def test_a_machine_goes_through_its_life(machines: Machines, make: MakeMachine) -> None:
    machine = make()
    assert state(machine) is State.STOPPED
    machine.start()
    assert state(machine) is State.RUNNING
    assert wait(machine, "console:rea.y", 30.0) == "ready"
    with machine.console() as connection:
        connection.sendall(b"hello")
        assert connection.recv(1) == b"h"
    machine.pause()
    assert state(machine) is State.PAUSED
    machine.resume()
    machine.kill()
    assert state(machine) is State.STOPPED
    machine.delete(machines)
    assert machines.names() == []


def test_each_verb_says_why_it_does_not_fit(machines: Machines, make: MakeMachine) -> None:
    machine = make()
    for verb in (machine.kill, machine.pause, machine.resume, lambda: machine.stop(1.0)):
        with pytest.raises(WrongState, match="is stopped"):
            verb()
    machine.start(paused=True)
    with pytest.raises(WrongState, match="is paused"):
        machine.start()
    with pytest.raises(WrongState, match="is paused"):
        machine.pause()
    with pytest.raises(WrongState, match=r"(?s)is paused.*--force"):
        machine.delete(machines)
    machine.delete(machines, force=True)
    assert machines.names() == []


def test_paused_from_the_start_it_has_done_nothing(make: MakeMachine) -> None:
    machine = make()
    machine.start(paused=True)
    assert state(machine) is State.PAUSED
    assert machine.last_lines(1) == []
    machine.resume()
    assert wait(machine, "console:ready", 30.0)


def test_a_killed_qemu_is_a_crash_and_starts_again(make: MakeMachine) -> None:
    machine = make()
    machine.start()
    os.kill(pid_of(machine), signal.SIGKILL)
    assert presence.wait_for_end(machine.directory, 10.0)
    assert state(machine) is State.CRASHED
    with pytest.raises(WrongState, match="is crashed"):
        machine.pause()
    machine.start()
    assert state(machine) is State.RUNNING


def test_a_terminated_qemu_has_stopped(make: MakeMachine) -> None:
    machine = make()
    machine.start()
    os.kill(pid_of(machine), signal.SIGTERM)
    assert wait(machine, "stopped", 10.0) == "stopped"


def test_a_pid_that_is_another_process_by_now_is_not_the_machine(make: MakeMachine) -> None:
    machine = make()
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        (machine.directory / "qemu.pid").write_text(f"{bystander.pid}\n")
        assert state(machine) is State.CRASHED
        assert presence.kill(machine.directory, 1.0)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_qemu_that_does_not_answer_is_silent_and_can_be_killed(
    make: MakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.vm.monitor.execute.__defaults__", (None, 0.5))
    monkeypatch.setattr("toolkit.vm.qemu.QUIT_TIMEOUT", 0.2)
    machine = make()
    machine.start()
    os.kill(pid_of(machine), signal.SIGSTOP)
    assert state(machine) is State.SILENT
    with pytest.raises(WrongState, match="is silent"):
        machine.pause()
    machine.kill()
    assert state(machine) is State.STOPPED


def test_a_guest_that_panics_is_told_with_its_last_words(make: MakeMachine) -> None:
    machine = make("a", "panic")
    machine.start()
    with pytest.raises(Unfinished, match="is panicked: no console:never can come"):
        wait(machine, "console:never", 30.0)
    machine.kill()


def test_a_process_that_is_silent_while_it_closes_has_still_stopped(
    make: MakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = make()
    machine.start()
    pid = machine.status().pid
    assert pid is not None
    press, status = QemuProvider.press_power_button, QemuProvider.status

    def press_and_hang(provider: QemuProvider, directory: MachineDirectory) -> None:
        press(provider, directory)
        os.kill(pid, signal.SIGSTOP)

    def end_once_silent(provider: QemuProvider, directory: MachineDirectory) -> Status:
        found = status(provider, directory)
        if found.state is State.SILENT:
            os.kill(pid, signal.SIGKILL)
        return found

    monkeypatch.setattr(QemuProvider, "press_power_button", press_and_hang)
    monkeypatch.setattr(QemuProvider, "status", end_once_silent)
    machine.stop(60.0)
    assert not machine.status().state.is_up


@pytest.fixture
def lingering(make: MakeMachine, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Machine, int]]:
    """A running machine whose process' lock outlives it until the descriptor is closed, as that of a large one does:
    QEMU has removed its pid file, and the kernel is taking its memory down."""
    kept: list[int] = []
    claim = presence.claim

    def claim_and_keep(directory: MachineDirectory, slot: str = "") -> int:
        running = claim(directory, slot)
        kept.append(os.dup(running))
        return running

    monkeypatch.setattr(presence, "claim", claim_and_keep)
    monkeypatch.setattr("toolkit.vm.qemu.END_TIMEOUT", 0.0)
    machine = make()
    machine.start()
    yield machine, kept[0]
    with contextlib.suppress(OSError):
        os.close(kept[0])


def end_and_wait(pid: int, directory: MachineDirectory) -> None:
    os.kill(pid, signal.SIGTERM)
    while (directory / presence.PID_FILE).exists():
        time.sleep(0.01)


def test_a_process_that_is_ending_is_not_one_that_starts(lingering: tuple[Machine, int]) -> None:
    machine, lock = lingering
    end_and_wait(pid_of(machine), machine.directory)
    assert machine.status() == Status(State.SILENT, None, "the machine has ended, and its process has not")
    os.close(lock)
    assert state(machine) is State.STOPPED


def test_a_stop_waits_for_a_process_that_is_ending(
    lingering: tuple[Machine, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, lock = lingering
    pid, status, told = pid_of(machine), QemuProvider.status, []

    def end_once_told(provider: QemuProvider, directory: MachineDirectory) -> Status:
        found = status(provider, directory)
        if (directory / presence.PID_FILE).exists():
            return found
        told.append(found.state)
        if len(told) == 2:
            os.close(lock)
        return found

    monkeypatch.setattr(QemuProvider, "press_power_button", lambda _, directory: end_and_wait(pid, directory))
    monkeypatch.setattr(QemuProvider, "status", end_once_told)
    machine.stop(60.0)
    assert told == [State.SILENT, State.SILENT, State.STOPPED]


def test_a_process_that_is_to_come_is_starting(make: MakeMachine) -> None:
    directory = make().directory
    running = presence.claim(directory)
    try:
        presence.expect(directory, "")
        assert QemuProvider().status(directory) == Status(State.STARTING)
    finally:
        os.close(running)
    assert QemuProvider().status(directory) == Status(State.STOPPED)


def test_a_guest_deaf_to_the_power_button_is_left_running(make: MakeMachine) -> None:
    machine = make()
    machine.start()
    with pytest.raises(Unfinished, match=r"(?s)has not powered off within.*vtk vm kill a"):
        machine.stop(0.3)
    assert state(machine) is State.RUNNING


def test_of_two_starts_at_once_one_wins(make: MakeMachine) -> None:
    machine = make()
    ends: list[str] = []

    def one() -> None:
        try:
            machine.start()
            ends.append("started")
        except WrongState:
            ends.append("refused")

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == ["refused", "started"]


def test_one_console_at_a_time(make: MakeMachine) -> None:
    machine = make()
    machine.start()
    with machine.console(), pytest.raises(MachineBusy, match="console of machine 'a' is in use"), machine.console():
        pass


def test_a_taken_port_is_replaced_and_told(make: MakeMachine) -> None:
    machine = make()
    port = machine.config().ssh_port
    with socket.create_server(("127.0.0.1", port)):
        notes = machine.start()
    assert any(f"port {port} is taken" in note for note in notes)
    assert machine.config().ssh_port != port


def test_a_kernel_that_is_gone_is_told_and_nothing_runs(make: MakeMachine) -> None:
    machine = make()
    Path(machine.config().kernel).unlink()
    with pytest.raises(ImageError, match="No such file"):
        machine.start()
    assert state(machine) is State.STOPPED


def test_what_qemu_refuses_is_told_in_its_words(make: MakeMachine) -> None:
    machine = make()
    Path(machine.config().kernel).write_bytes(b"\x7fELF" + bytes(600))
    with pytest.raises(QemuError, match=r"does not start machine 'a'\n  cause: .*kernel"):
        machine.start()
    assert state(machine) in (State.STOPPED, State.CRASHED)


@pytest.mark.parametrize("delay", [0.15, 0.25, 0.35, 0.45])
def test_a_vtk_killed_while_it_starts_a_machine_leaves_one_that_is_told_truly(make: MakeMachine, delay: float) -> None:
    machine = make()
    vtk = subprocess.Popen([sys.executable, "-m", "toolkit.cli", "vm", "start", "a"], stderr=subprocess.DEVNULL)
    time.sleep(delay)  # wherever it is then
    vtk.kill()
    vtk.wait()
    deadline = time.monotonic() + 10.0
    while (now := state(machine)) is State.STARTING and time.monotonic() < deadline:
        time.sleep(0.05)
    if now.is_up:
        machine.kill()
    machine.start()
    assert state(machine) is State.RUNNING


def test_a_machine_outlives_the_vtk_that_started_it(make: MakeMachine) -> None:
    machine = make()
    subprocess.run([sys.executable, "-m", "toolkit.cli", "vm", "start", "a"], check=True, timeout=60)
    assert state(machine) is State.RUNNING


def test_its_disk_is_what_it_writes_to(make: MakeMachine, tmp_path: Path) -> None:
    disk = tmp_path / "a,b.img"
    disk.write_bytes(bytes(MIB))
    machine = make("a", "echo", Parts(accelerator="tcg", memory=32 * MIB, disk=disk))
    machine.start()
    assert wait(machine, "console:ready", 30.0)


def test_the_list_holds_all_of_them_the_damaged_too(machines: Machines, make: MakeMachine) -> None:
    make("a").start()
    make("b")
    (make("c").directory / "config.json").write_bytes(b"")
    told = {machine.name: status.state for machine, status in everyone(machines)}
    assert told == {"a": State.RUNNING, "b": State.STOPPED, "c": State.DAMAGED}
    for name in told:
        Machine(machines.get(name)).delete(machines, force=True)
    assert machines.names() == []


def test_a_wait_ends_at_its_deadline(make: MakeMachine) -> None:
    machine = make()
    machine.start()
    for goal in ("console:never", "ssh", "stopped"):
        with pytest.raises(Unfinished, match=f"no {goal} within 0.3 s"):
            wait(machine, goal, 0.3)


@pytest.mark.parametrize("goal", ["", "now", "console", "console:", "console:(", "ssh:x"])
def test_a_goal_that_is_none_is_refused(make: MakeMachine, goal: str) -> None:
    with pytest.raises(VtkError, match=r"cannot be waited for|no regular expression"):
        wait(make(), goal, 1.0)
