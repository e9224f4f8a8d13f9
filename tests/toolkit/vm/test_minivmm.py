"""Machines of minivmm by the verbs of every machine: the same truths told, and what cannot be is refused with why."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from guest_os import image
from minivmm.control.controlled import Controlled
from minivmm.errors import ConfigError, HostError, ImageError, VtkError
from tests.toolkit.guests import write_guest
from tests.toolkit.vm.conftest import MakeMachine
from toolkit.images import tiny
from toolkit.images.store import ImageStore
from toolkit.vm import presence
from toolkit.vm.directory import Machines
from toolkit.vm.errors import MonitorSilent, Unsupported, WrongState
from toolkit.vm.machine import Machine
from toolkit.vm.making import Parts, create
from toolkit.vm.minivmm_console import OUTPUT_LIMIT, Console, ConsoleLog
from toolkit.vm.minivmm_kind import maker
from toolkit.vm.monitor import execute
from toolkit.vm.provider import MIB, State
from toolkit.vm.waiting import wait

pytestmark = pytest.mark.kvm

PARTS = Parts(provider="minivmm", memory=32 * MIB)
PATIENCE = 30.0  # seconds

Begin = Callable[..., Machine]


@pytest.fixture
def begin(make: MakeMachine) -> Begin:
    """Makes and starts a machine with the guest called so."""

    def make_started(guest: str = "echo", *, paused: bool = False) -> Machine:
        machine = make(guest=guest, parts=PARTS)
        machine.start(paused=paused)
        return machine

    return make_started


def state(machine: Machine) -> State:
    return machine.status().state


def pid_of(machine: Machine) -> int:
    pid = machine.status().pid
    assert pid is not None
    return pid


def test_a_machine_goes_through_its_life(machines: Machines, make: MakeMachine) -> None:
    machine = make(parts=PARTS)
    assert state(machine) is State.STOPPED
    machine.start()
    assert state(machine) is State.RUNNING
    assert wait(machine, "console:rea.y", PATIENCE) == "ready"
    with machine.console() as connection:
        connection.sendall(b"h")
        assert connection.recv(1) == b"h"
    machine.pause()
    assert state(machine) is State.PAUSED
    machine.resume()
    figures = machine.figures()
    assert figures.memory == 32 * MIB
    assert figures.cpu_time is not None
    assert figures.resident
    machine.kill()
    assert "interrupted" in machine.status().detail
    machine.delete(machines)
    assert machines.names() == []


def test_a_machine_that_started_paused_has_not_begun(begin: Begin) -> None:
    machine = begin(paused=True)
    assert state(machine) is State.PAUSED
    assert machine.last_lines(1) == []
    machine.resume()
    wait(machine, "console:ready", PATIENCE)


@pytest.mark.parametrize(
    ("guest", "expected", "detail"),
    [
        ("exit0", State.STOPPED, "shutdown"),
        ("exit3", State.STOPPED, "exited with code 3"),
        ("halt", State.STOPPED, "halted"),
        ("panic", State.CRASHED, "panicked"),
        ("triple-fault", State.CRASHED, "triple_fault"),
    ],
)
def test_how_a_guest_ended_is_known_afterwards(begin: Begin, guest: str, expected: State, detail: str) -> None:
    machine = begin(guest)
    wait(machine, "stopped", PATIENCE)
    status = machine.status()
    assert status.state is expected
    assert detail in status.detail
    machine.start()  # and it can be started again
    wait(machine, "stopped", PATIENCE)


def test_a_guest_that_resets_for_ever_stays_a_machine_that_can_be_killed(begin: Begin) -> None:
    machine = begin("reset")
    assert state(machine) is State.RUNNING
    machine.kill()
    assert state(machine) is State.STOPPED


def test_after_a_kill_the_truth_is_told_and_the_machine_starts_again(begin: Begin) -> None:
    machine = begin()
    os.kill(pid_of(machine), signal.SIGKILL)
    assert presence.wait_for_end(machine.directory, PATIENCE)
    assert state(machine) is State.CRASHED
    machine.start()
    os.kill(pid_of(machine), signal.SIGTERM)
    assert presence.wait_for_end(machine.directory, PATIENCE)
    assert machine.status().detail == "interrupted: stopped by SIGTERM"


def test_a_process_that_stands_still_is_silent_and_can_be_killed(begin: Begin) -> None:
    machine = begin()
    os.kill(pid_of(machine), signal.SIGSTOP)
    with pytest.raises(MonitorSilent):
        execute(machine.directory, "query-status", timeout=0.5)
    assert presence.kill(machine.directory, PATIENCE)
    assert state(machine) is State.CRASHED


def test_every_byte_of_the_console_is_in_the_log_though_nobody_reads_it(make: MakeMachine) -> None:
    directory = make(parts=PARTS).directory
    text = bytes(range(256)) * 16
    with directory.listen("console.sock") as listener:
        console = Console(listener, ConsoleLog(directory))
        with Controlled("a", maker(directory, directory.config(), console.write)) as machine:
            console.serve(machine)
            with directory.connect("console.sock", PATIENCE) as deaf:
                for _ in range(3 * OUTPUT_LIMIT // len(text)):  # none of it waits
                    console.write(text)
                deaf.close()
            console.close()
    assert (directory / "console.log").read_bytes() == text * (3 * OUTPUT_LIMIT // len(text))


def test_a_log_that_grows_for_ever_takes_a_bounded_place(make: MakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.vm.console_log.KEPT", MIB)
    monkeypatch.setattr("toolkit.vm.console_log.SLACK", MIB)
    directory = make(parts=PARTS).directory
    log = ConsoleLog(directory)
    for number in range(80):
        log.write(bytes([number]) * (256 << 10))
    kept = (directory / "console.log").stat()
    assert kept.st_size == 80 * (256 << 10)  # offsets stay what they were
    assert kept.st_blocks * 512 <= 3 * MIB
    assert (directory / "console.log").read_bytes().endswith(bytes([79]))


def test_input_that_the_guest_has_no_room_for_waits(begin: Begin) -> None:
    machine = begin(paused=True)
    text = bytes(range(97, 113)) * 400  # no q in it
    with machine.console() as connection:
        connection.sendall(text)
        machine.resume()
        heard = b""
        while not heard.endswith(text):
            heard += connection.recv(1 << 16)
    assert heard == b"ready\n" + text


def test_the_console_ends_with_the_machine_and_after_its_last_words(begin: Begin) -> None:
    machine = begin(paused=True)
    with machine.console() as connection:
        machine.resume()
        connection.sendall(b"bye, q")
        heard = b""
        while data := connection.recv(4096):
            heard += data
    assert heard == b"ready\nbye, "


def test_what_minivmm_cannot_do_is_refused_with_the_reason(begin: Begin) -> None:
    machine = begin()
    for verb in (
        machine.ssh_address,
        machine.snapshots,
        machine.migrate,
        lambda: machine.balloon(16 * MIB),
        lambda: machine.stop(1.0),
    ):
        with pytest.raises(Unsupported) as refused:
            verb()
        assert refused.value.cause
        assert refused.value.remedy
    assert state(machine) is State.RUNNING


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        pytest.param(PARTS._replace(accelerator="tcg"), "emulates no processor", id="tcg"),
        pytest.param(PARTS._replace(initrd=Path(__file__)), "--initrd goes with a Xen domain", id="initrd"),
    ],
)
def test_a_machine_that_cannot_be_is_not_made(machines: Machines, make: MakeMachine, parts: Parts, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make(parts=parts)
    assert machines.names() == []


def test_a_disk_alone_is_nothing_to_boot(machines: Machines, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    with pytest.raises(ConfigError, match="nothing to boot"):
        create(machines, "a", PARTS._replace(disk=disk))
    assert machines.names() == []


def test_a_start_that_fails_says_why_and_leaves_nothing(make: MakeMachine) -> None:
    machine = make(parts=PARTS)
    Path(machine.config().kernel).unlink()
    with pytest.raises(VtkError, match=r"echo\.elf"):
        machine.start()
    assert state(machine) is State.STOPPED


def test_a_process_that_dies_while_it_sets_up_is_told(make: MakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = make(parts=PARTS)
    monkeypatch.setattr("toolkit.vm.minivmm.BECOME", "raise RuntimeError('no such luck')")
    with pytest.raises(HostError, match="not set it up") as failed:
        machine.start()
    assert "no such luck" in failed.value.cause
    assert state(machine) is State.STOPPED


def test_a_second_process_is_refused(begin: Begin) -> None:
    machine = begin()
    with pytest.raises(WrongState):
        machine._provider().start(machine.directory)
    assert state(machine) is State.RUNNING


def test_a_disk_is_a_copy_whose_holes_stay_holes(machines: Machines, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(8 * MIB)
        file.write(b"data")
    kernel = write_guest(tmp_path, "echo")
    machine = Machine(create(machines, "a", PARTS._replace(kernel=kernel, disk=disk, disk_size=128 * MIB)))
    copy = machine.directory / "disk.img"
    assert copy.stat().st_size == 128 * MIB
    assert copy.stat().st_blocks * 512 < MIB
    with copy.open("rb") as file:
        file.seek(8 * MIB)
        assert file.read(4) == b"data"
    machine.start()
    assert state(machine) is State.RUNNING


def test_a_qcow2_is_no_disk_for_it(machines: Machines, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"QFI\xfb".ljust(1 << 20, b"\0"))
    with pytest.raises(ImageError, match="not a raw image"):
        create(machines, "a", PARTS._replace(kernel=write_guest(tmp_path, "echo"), disk=disk))
    assert machines.names() == []


def test_a_stale_socket_is_in_nobodys_way(make: MakeMachine) -> None:
    machine = make(parts=PARTS)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(machine.directory / "qmp.sock"))
    machine.start()
    assert state(machine) is State.RUNNING


def test_our_kernel_for_xen_is_a_domain(machines: Machines) -> None:
    machine = Machine(create(machines, "a", PARTS._replace(kernel=image("echo", "xen"), memory=64 * MIB)))
    machine.start()
    wait(machine, "console:quit ends", PATIENCE)
    machine.pause()
    machine.resume()
    with machine.console() as connection:
        connection.sendall(b"quit\n")
    wait(machine, "stopped", PATIENCE)
    assert machine.status().detail.startswith("shutdown")


@pytest.mark.slow
def test_a_debian_kernel_runs_as_a_domain_and_hears_the_power_button(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    tiny.build(ImageStore(), "tiny")

    def vtk(*arguments: str, typed: str = "") -> str:
        line = [sys.executable, "-m", "toolkit.cli", "vm", *arguments]
        done = subprocess.run(line, input=typed, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    vtk("create", "t", "--image", "tiny", "--mem", "256M", "--provider", "minivmm")
    vtk("start", "t")
    vtk("wait", "t", "--for", "console:ends the machine", "--timeout", "360")
    # The kernel runs this when it is asked to power off, which the image has not.
    button = (
        "mkdir -p /sbin; echo '#!/bin/sh\npoweroff -f' >/sbin/poweroff; chmod +x /sbin/poweroff; echo end-$((6*7))\n"
    )
    vtk("console", "t", "--until", "end-42", "--timeout", "60", typed=button + "echo end-$((6*7))\n")
    vtk("stop", "t", "--timeout", "120")
    assert machines.get("t").config().image == "tiny"
    assert "poweroff" in Machine(machines.get("t")).status().detail
