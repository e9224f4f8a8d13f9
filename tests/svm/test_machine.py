"""However the emulated machine ends, the run ends too, with its status or with the last words of its console.

QEMU's part is played by shell scripts; the real thing is what `make test-svm-smoke` runs.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.svm import machine
from tests.svm.machine import Console, Limits, MachineDied


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A script that runs in place of QEMU. It finds the results directory in $RESULTS."""
    script = tmp_path / "qemu"
    monkeypatch.setattr(machine, "QEMU", str(script))
    monkeypatch.setattr(machine, "prepare", lambda directory: (directory / "kernel", directory / "initrd"))
    monkeypatch.setenv("RESULTS", str(tmp_path / "out" / "results"))
    return script


def run(stand_in: Path, script: str, limits: Limits) -> tuple[int, str]:
    stand_in.write_text(f"#!/bin/sh\n{script}\n")
    stand_in.chmod(0o755)
    output = io.StringIO()
    status = machine.run(["true"], stand_in.parent / "out", limits, output)
    return status, output.getvalue()


def test_the_commands_exit_status_is_passed_on(stand_in: Path) -> None:
    status, output = run(stand_in, "echo tested; echo 5 >$RESULTS/status", Limits(60))
    assert status == 5
    assert "s] tested\n" in output


def test_a_panic_ends_with_the_last_lines_of_the_console(stand_in: Path) -> None:
    with pytest.raises(MachineDied, match="before its command did") as died:
        run(stand_in, "echo first; echo Kernel panic - not syncing; exit 0", Limits(60))
    assert "Kernel panic - not syncing" in died.value.cause


def test_what_qemu_itself_complains_of_is_shown(stand_in: Path) -> None:
    with pytest.raises(MachineDied) as died:
        run(stand_in, "echo qemu: no such CPU >&2; exit 1", Limits(60))
    assert "qemu: no such CPU" in died.value.cause


@pytest.mark.parametrize(
    ("limits", "words"),
    [(Limits(total=60, silence=0.2), "said nothing"), (Limits(total=0.2), "did not finish within")],
    ids=["silent", "slow"],
)
def test_a_machine_that_hangs_is_stopped(stand_in: Path, limits: Limits, words: str) -> None:
    pid_file = stand_in.parent / "pid"
    with pytest.raises(MachineDied, match=words):
        run(stand_in, f"echo $$ >{pid_file}; echo begun; exec sleep 1000", limits)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_the_status_of_an_earlier_run_is_not_taken_for_this_one(stand_in: Path) -> None:
    run(stand_in, "echo 0 >$RESULTS/status", Limits(60))
    with pytest.raises(MachineDied):
        run(stand_in, "exit 0", Limits(60))


def test_lines_carry_the_time_once_however_they_arrive() -> None:
    output = io.StringIO()
    console = Console(output)
    for piece in (b"te", b"st_a PAS", b"SED\r\nte", b"st_b \xff"):
        console.write(piece)
    assert [line[line.index("]") + 2 :] for line in output.getvalue().splitlines()] == [
        "test_a PASSED",
        "test_b \ufffd",
    ]
    assert console.last_lines() == ["test_a PASSED", "test_b \ufffd"]


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_no_machine_outlives_the_run(stand_in: Path, ending: signal.Signals) -> None:
    pid_file = stand_in.parent / "pid"
    stand_in.write_text(f"#!/bin/sh\necho $$ >{pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 1000\n")
    stand_in.chmod(0o755)
    program = (
        "import sys\nfrom pathlib import Path\nfrom tests.svm import machine\n"
        f"machine.QEMU = {str(stand_in)!r}\n"
        "machine.prepare = lambda directory: (directory, directory)\n"
        f"machine.run(['true'], Path({str(stand_in.parent / 'out')!r}), machine.Limits(60), sys.stdout)\n"
    )
    runner = subprocess.Popen([sys.executable, "-c", program], cwd=machine.CHECKOUT, stderr=subprocess.DEVNULL)
    while not pid_file.exists():
        assert runner.poll() is None
        time.sleep(0.02)
    runner.send_signal(ending)
    runner.wait(30)
    assert wait_until_gone(int(pid_file.read_text()))


def wait_until_gone(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":  # dead; whoever inherited it has not asked yet
            return True
        time.sleep(0.02)
    return False
