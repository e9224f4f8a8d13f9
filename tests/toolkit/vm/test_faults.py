"""What a host does to machines: no room, no QEMU, one that dies or stands still; files that are not what they say."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minivmm.errors import ImageError, VtkError
from tests.toolkit.guests import write_guest
from tests.toolkit.vm.conftest import MakeMachine
from toolkit.cli import ExitStatus, invoke
from toolkit.qemu.errors import QemuMissing
from toolkit.vm import presence
from toolkit.vm.directory import Machines
from toolkit.vm.errors import MonitorSilent, StateError, Unfinished
from toolkit.vm.machine import Machine
from toolkit.vm.making import Parts, create
from toolkit.vm.monitor import execute
from toolkit.vm.provider import MIB, State
from toolkit.vm.waiting import wait

FAKE_QEMU = """#!/bin/sh
case "$1" in
-version) echo "QEMU emulator version {version}";;
-accel) printf 'Accelerators supported in QEMU binary:\\n{accelerators}\\n';;
-machine) printf 'Supported machines are:\\nq35 Standard PC\\n';;
esac
"""


def pid_of(machine: Machine) -> int:
    pid = machine.status().pid
    assert pid is not None
    return pid


# --- a host without a QEMU that will do


def install(directory: Path, monkeypatch: pytest.MonkeyPatch, version: str, accelerators: str) -> None:
    """The only QEMU on PATH."""
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory))
    binary = directory / "qemu-system-x86_64"
    binary.write_text(FAKE_QEMU.format(version=version, accelerators=accelerators))
    binary.chmod(0o755)


def test_without_a_qemu_its_package_is_named(make: MakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = make()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(QemuMissing, match="not installed") as missing:
        machine.start()
    assert "apt install qemu-system-x86" in missing.value.remedy
    assert machine.status().state is State.STOPPED


def test_a_qemu_that_is_too_old_is_told_apart(
    make: MakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = make()
    install(tmp_path, monkeypatch, "2.12.1", "tcg")
    with pytest.raises(QemuMissing, match=r"(?s)is too old.*2\.12\.1"):
        machine.start()
    assert machine.status().state is State.STOPPED


def test_a_qemu_without_the_accelerator_is_told(
    make: MakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = make()
    install(tmp_path, monkeypatch, "7.2.0", "xen\\nqtest")
    with pytest.raises(QemuMissing, match=r"(?s)has no accelerator tcg.*xen"):
        machine.start()
    assert machine.status().state is State.STOPPED


# --- files that are not what they say


@pytest.mark.qemu
@pytest.mark.parametrize("content", [b"", b"MZ", b"\x7fELF", b"\x7fELF" + bytes(60), os.urandom(100_000)])
def test_a_file_that_is_no_kernel_is_refused_at_the_start(make: MakeMachine, content: bytes) -> None:
    machine = make()
    Path(machine.config().kernel).write_bytes(content)
    with pytest.raises(VtkError, match="kernel"):
        machine.start()
    assert machine.status().state in (State.STOPPED, State.CRASHED)


@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
def test_a_disk_that_was_cut_off_makes_no_machine(machines: Machines, tmp_path: Path, kept: float) -> None:
    whole, cut = tmp_path / "whole.img", tmp_path / "cut.qcow2"
    whole.write_bytes(os.urandom(4 * MIB))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", whole, cut], check=True, timeout=60)
    os.truncate(cut, int(cut.stat().st_size * kept))
    with pytest.raises(ImageError, match="damaged"):
        create(machines, "a", Parts(disk=cut))
    assert machines.names() == []


# --- no room


@pytest.fixture
def small(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 1 MiB, or of the parameter's size, in which the machines are."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={getattr(request, 'param', '1M')},mode=700", "vtk-test", place],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no mounting here: {mounted.stderr.decode().strip()}")
    monkeypatch.setenv("XDG_STATE_HOME", str(place))
    try:
        yield place
    finally:
        for running in place.glob("vtk/machines/*/running"):
            presence.kill(Machines().get(running.parent.name), 10.0)
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(place: Path, leave: int) -> Path:
    """A file that leaves `leave` bytes free. Returns it."""
    free = os.statvfs(place)
    rest = place / "rest"
    with contextlib.suppress(OSError), open(rest, "wb") as file:
        file.write(bytes(free.f_bavail * free.f_bsize - leave))
    return rest


def machine_on(directory: Path, guest: str) -> Machine:
    kernel = write_guest(directory, guest)
    return Machine(create(Machines(), "a", Parts(kernel=kernel, memory=32 * MIB, accelerator="tcg")))


@pytest.mark.parametrize("leave", [0, 8192])
def test_a_create_without_room_leaves_nothing_and_works_with_room(small: Path, tmp_path: Path, leave: int) -> None:
    rest = fill(small, leave)
    with pytest.raises(StateError, match="No space left on device") as failure:
        machine_on(tmp_path, "echo")
    assert "XDG_STATE_HOME" in failure.value.remedy
    assert Machines().names() == []
    rest.unlink()
    machine_on(tmp_path, "echo")
    assert Machines().names() == ["a"]


@pytest.mark.qemu
def test_a_start_without_room_is_told_and_works_with_room(small: Path, tmp_path: Path) -> None:
    machine = machine_on(tmp_path, "echo")
    rest = fill(small, 0)
    with pytest.raises(VtkError, match="No space left on device"):
        machine.start()
    assert not machine.status().state.is_up
    rest.unlink()
    machine.start()
    assert wait(machine, "console:ready", 30.0)


@pytest.mark.qemu
@pytest.mark.parametrize("small", ["16M"], indirect=True)
@pytest.mark.parametrize("leave", [0, 128 << 10])
def test_a_snapshot_without_room_is_told_and_the_machine_and_its_snapshots_go_on(
    small: Path, tmp_path: Path, leave: int
) -> None:
    machine = machine_on(tmp_path, "count")
    machine.start()
    wait(machine, "console:ready", 30.0)

    def count() -> str:
        with machine.console() as connection:
            connection.settimeout(30.0)
            connection.sendall(b"?")
            return connection.recv(1).decode()

    machine.snapshot("before")
    assert count() == "a"
    rest = fill(small, leave)
    with pytest.raises(VtkError, match=r"No space left on device|free space"):  # QEMU may call it an I/O error
        machine.snapshot("two")
    assert machine.status().state is State.RUNNING
    assert count() == "b"
    assert [snapshot.name for snapshot in machine.snapshots()] == ["before"]
    rest.unlink()
    machine.snapshot("two")
    machine.restore("before")
    assert count() == "a"


@pytest.mark.qemu
def test_a_console_that_fills_the_disk_does_not_end_the_machine(small: Path, tmp_path: Path) -> None:
    machine = machine_on(tmp_path, "flood")
    machine.start(paused=True)
    fill(small, 65536)
    machine.resume()
    deadline = time.monotonic() + 30.0
    while os.statvfs(small).f_bavail and time.monotonic() < deadline:
        time.sleep(0.05)
    assert os.statvfs(small).f_bavail == 0
    assert machine.status().state is State.RUNNING
    machine.pause()
    machine.kill()
    machine.delete(Machines())
    assert Machines().names() == []


# --- a QEMU that dies, or stands still, in the middle


@pytest.mark.qemu
def test_a_qemu_killed_in_the_middle_of_a_command_is_told_at_once(make: MakeMachine) -> None:
    machine = make()
    machine.start()
    pid = pid_of(machine)
    os.kill(pid, signal.SIGSTOP)  # it takes the connection, and answers nothing
    failures: list[VtkError] = []

    def ask() -> None:
        try:
            execute(machine.directory, "query-status", timeout=60.0)
        except VtkError as error:
            failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    os.kill(pid, signal.SIGKILL)
    asking.join(30.0)
    assert [type(failure) for failure in failures] == [MonitorSilent]
    assert machine.status().state is State.CRASHED


@pytest.mark.qemu
def test_a_machine_that_crashes_while_it_is_waited_for_ends_the_wait(make: MakeMachine) -> None:
    machine = make()
    machine.start()
    failures: list[VtkError] = []

    def wait_long() -> None:
        try:
            wait(machine, "console:never", 60.0)
        except Unfinished as error:
            failures.append(error)

    waiting = threading.Thread(target=wait_long)
    waiting.start()
    os.kill(pid_of(machine), signal.SIGKILL)
    waiting.join(30.0)
    assert "is crashed" in failures[0].message


@pytest.mark.qemu
def test_a_stopping_machine_that_crashes_has_stopped(make: MakeMachine) -> None:
    machine = make()
    machine.start()
    pid = pid_of(machine)

    def stop() -> None:
        with contextlib.suppress(VtkError):  # it crashed before it could be asked
            machine.stop(60.0)

    stopping = threading.Thread(target=stop)
    stopping.start()
    os.kill(pid, signal.SIGKILL)
    stopping.join(30.0)
    assert not stopping.is_alive()
    assert machine.status().state is State.CRASHED


@pytest.mark.qemu
def test_sockets_and_locks_of_a_process_that_is_gone_are_in_nobodys_way(make: MakeMachine) -> None:
    machine = make()
    machine.start()
    os.kill(pid_of(machine), signal.SIGKILL)
    assert presence.wait_for_end(machine.directory, 10.0)
    assert (machine.directory / "qmp.sock").is_socket()  # stale: nobody listens
    machine.start()
    assert wait(machine, "console:ready", 30.0)


# --- a guest that never answers


@pytest.mark.qemu
def test_a_command_for_a_guest_that_never_answers_meets_its_deadline(
    make: MakeMachine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.vm.waiting.GREETING_TIMEOUT", 0.2)
    make().start()
    assert invoke(["vm", "exec", "a", "--wait", "0.3", "--", "true"]) != ExitStatus.OK
    assert "no ssh within 0.3 s" in capsys.readouterr().err


def test_a_port_where_nobody_speaks_ssh_is_not_taken_for_ssh(make: MakeMachine) -> None:
    machine = make()
    with socket.create_server(("127.0.0.1", machine.config().ssh_port)) as server:
        thread = threading.Thread(target=lambda: server.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\r\n"))
        thread.start()
        with pytest.raises(Unfinished):
            wait(machine, "ssh", 0.3)
        thread.join()


# --- names


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize("name", ["a/b", "a b", "caffè", "../a", "", "🐧", "a\nb", "-", "x" * 300])
@pytest.mark.parametrize("verb", ["create", "start", "show", "delete"])
def test_a_name_that_cannot_be_is_wrong_usage_for_every_verb(
    verb: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--kernel", "k"] if verb == "create" else []
    assert invoke(["vm", verb, *options, "--", name]) == ExitStatus.USAGE
    assert "cannot be a machine's name" in capsys.readouterr().err
