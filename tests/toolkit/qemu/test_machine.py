"""A real QEMU, driven: outcomes, console, counters, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from minivmm import Disk
from minivmm.errors import ConfigError
from minivmm.outcome import Outcome
from tests.toolkit.guests import write_guest
from toolkit.qemu import Accelerator, QemuError, QemuMachine

pytestmark = pytest.mark.qemu
ENDS = {
    "exit0": (Outcome.SHUTDOWN, 0),
    "exit3": (Outcome.EXITED, 3),
    "reset": (Outcome.RESET, None),
    "panic": (Outcome.CRASHED, None),
    "triple-fault": (Outcome.TRIPLE_FAULT, None),
    "halt": (Outcome.HALTED, None),
    "spin": (Outcome.DEADLINE, None),
}


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether `condition` came true within a time that is generous on any machine."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize(
    "accelerator", [Accelerator.TCG, pytest.param(Accelerator.KVM, marks=pytest.mark.kvm)], ids=lambda a: a.value
)
@pytest.mark.parametrize("guest", ENDS)
def test_every_way_to_end_has_its_outcome(tmp_path: Path, guest: str, accelerator: Accelerator) -> None:
    with QemuMachine(write_guest(tmp_path, guest), accelerator=accelerator) as machine:
        result = machine.run(timeout=1.0 if guest == "spin" else 30.0)
    assert (result.outcome, result.code) == ENDS[guest]


def test_what_is_sent_reaches_the_guest_and_comes_back(tmp_path: Path) -> None:
    seen = bytearray()
    with QemuMachine(write_guest(tmp_path, "echo"), console=seen.extend) as machine:
        machine.start(30.0)
        machine.send(b"hello, ")
        machine.send(b"world")
        assert until(lambda: seen.endswith(b"world"))
        machine.send(b"q")
        result = machine.wait()
    assert result.outcome is Outcome.SHUTDOWN
    assert result.console == bytes(seen) == b"ready\nhello, world"


def test_the_console_kept_is_bounded(tmp_path: Path) -> None:
    with QemuMachine(write_guest(tmp_path, "flood")) as machine:
        result = machine.run(timeout=2.0)
    assert result.outcome is Outcome.DEADLINE
    assert 0 < len(result.console) <= 1 << 20


def test_stop_ends_a_running_guest_from_another_thread(tmp_path: Path) -> None:
    with QemuMachine(write_guest(tmp_path, "spin")) as machine:
        machine.start(60.0)
        threading.Thread(target=machine.stop, args=("enough",)).start()
        result = machine.wait()
    assert (result.outcome, result.detail) == (Outcome.INTERRUPTED, "enough")


def test_a_killed_qemu_is_an_outcome(tmp_path: Path) -> None:
    with QemuMachine(write_guest(tmp_path, "spin")) as machine:
        machine.start(60.0)
        assert machine._process is not None
        os.kill(machine._process.pid, 9)
        assert machine.wait().outcome is Outcome.INTERRUPTED


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    image = write_guest(tmp_path, "exit0")
    with QemuMachine(image) as machine:
        machine.run(30.0)  # what imports and the first event loop open stays open
    fds, threads = set(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        with QemuMachine(image, virtio_console=True) as machine:
            machine.run(30.0)
        with QemuMachine(image) as machine:
            pass
    assert set(os.listdir("/proc/self/fd")) == fds
    assert threading.active_count() == threads


def test_close_ends_a_running_guest(tmp_path: Path) -> None:
    machine = QemuMachine(write_guest(tmp_path, "spin"))
    machine.start(60.0)
    assert machine._process is not None
    pid = machine._process.pid
    machine.close()
    machine.close()
    assert not Path(f"/proc/{pid}").exists()


def test_a_machine_runs_once(tmp_path: Path) -> None:
    with QemuMachine(write_guest(tmp_path, "exit0")) as machine:
        machine.run(30.0)
        with pytest.raises(ConfigError):
            machine.start(30.0)


def test_qemus_refusal_is_told_in_its_own_words(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    disks = [Disk(disk), Disk(disk)]  # QEMU locks a writable disk
    with QemuMachine(write_guest(tmp_path, "exit0"), disks=disks) as machine, pytest.raises(QemuError) as caught:
        machine.start(10.0)
    assert "lock" in caught.value.words


def test_a_refused_qmp_command_is_told_in_qemus_words(tmp_path: Path) -> None:
    with QemuMachine(write_guest(tmp_path, "spin")) as machine:
        machine.start(60.0)
        with pytest.raises(QemuError, match="no-such-command"):
            machine.execute("no-such-command")


def test_a_guest_left_running_unpaused_gives_its_outcome(tmp_path: Path) -> None:
    with QemuMachine(write_guest(tmp_path, "exit3"), paused=False) as machine:
        assert machine.run(30.0).outcome is Outcome.EXITED


def test_what_a_console_callback_raises_comes_out_of_wait(tmp_path: Path) -> None:
    def fail(_data: bytes) -> None:
        raise RuntimeError("the callback's own")

    with QemuMachine(write_guest(tmp_path, "exit0"), console=fail) as machine, pytest.raises(RuntimeError):
        machine.run(30.0)


@pytest.mark.kvm
def test_kvm_counts_exits_while_the_guest_runs(tmp_path: Path) -> None:
    with QemuMachine(write_guest(tmp_path, "flood"), accelerator=Accelerator.KVM) as machine:
        machine.start(60.0)
        assert until(lambda: machine.exits.get("total", 0) > 0)
        machine.stop()
        assert machine.wait().exits["total"] > 0


def test_tcg_counts_no_exits(tmp_path: Path) -> None:
    with QemuMachine(write_guest(tmp_path, "exit0")) as machine:
        assert machine.run(30.0).exits == {}


def test_qemu_dies_with_its_parent(tmp_path: Path) -> None:
    image = write_guest(tmp_path, "spin")
    script = textwrap.dedent(f"""
        import time
        from toolkit.qemu import QemuMachine
        machine = QemuMachine({str(image)!r})
        machine.start(600.0)
        print(machine._process.pid, flush=True)
        time.sleep(600)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert _runs(pid)
        parent.kill()
    assert until(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    """Whether the process exists and is no zombie: its new parent may not have reaped it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
