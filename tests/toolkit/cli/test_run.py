"""`vtk run` as a user has it: a process, its streams, signals and exit status."""

from __future__ import annotations

import errno
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minivmm.outcome import Outcome
from tests.toolkit.guests import CODES, write_guest
from toolkit.cli import ExitStatus, invoke, run

COMMAND = [sys.executable, "-m", "toolkit.cli", "run"]
LIMIT = 60  # seconds for what takes well under one

KVM = pytest.param("kvm", marks=pytest.mark.kvm)
TCG = pytest.param("tcg", marks=pytest.mark.qemu)
either = pytest.mark.parametrize("accelerator", [KVM, TCG])


def vtk_run(*arguments: str | Path, typed: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *arguments], input=typed, capture_output=True, timeout=LIMIT, check=False)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in CODES:
        write_guest(tmp_path, name)
    return tmp_path


ENDS = {
    "exit0": (Outcome.SHUTDOWN, 0),
    "exit3": (Outcome.EXITED, 3),
    "reset": (Outcome.RESET, 21),
    "panic": (Outcome.CRASHED, 22),
    "triple-fault": (Outcome.TRIPLE_FAULT, 23),
    "halt": (Outcome.HALTED, 20),
    "spin": (Outcome.DEADLINE, 24),
}


@either
@pytest.mark.parametrize("guest", ENDS)
def test_the_exit_status_says_how_the_guest_ended(directory: Path, guest: str, accelerator: str) -> None:
    limit = "0.5" if guest == "spin" else "30"
    done = vtk_run(directory / f"{guest}.elf", "--accel", accelerator, "--timeout", limit)
    outcome, status = ENDS[guest]
    assert done.returncode == status
    assert outcome is Outcome.SHUTDOWN or outcome.value in done.stderr.decode()
    assert b"Traceback" not in done.stderr


@either
def test_an_ordinary_end_whose_output_is_processed_says_nothing_more(directory: Path, accelerator: str) -> None:
    done = vtk_run(directory / "exit0.elf", "--accel", accelerator)
    assert (done.stdout, done.stderr) == (b"bye\n", b"")


@either
def test_the_json_is_one_object_with_the_console_in_it(directory: Path, accelerator: str) -> None:
    done = vtk_run(directory / "exit3.elf", "--accel", accelerator, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == report["exit_status"] == report["code"] == 3
    assert (report["schema"], report["outcome"], report["console"]) == (1, "exited", "bye")
    assert report["accelerator"] == accelerator
    assert done.stdout.count(b"\n") == 1


@either
def test_piped_input_is_fed_to_the_guest(directory: Path, accelerator: str) -> None:
    text = b"line %d\n" * 500
    done = vtk_run(directory / "echo.elf", "--accel", accelerator, typed=text + b"q")
    assert done.returncode == 0
    assert done.stdout == b"ready\n" + text


@either
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_machine_and_says_so(directory: Path, accelerator: str, number: int) -> None:
    with _started(directory / "echo.elf", "--accel", accelerator) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        _, told = process.communicate(timeout=LIMIT)
    assert process.returncode == Outcome.INTERRUPTED.exit_status
    assert b"interrupted" in told
    assert b"Traceback" not in told


@either
def test_a_flooding_guest_ends_at_its_deadline(directory: Path, accelerator: str) -> None:
    done = vtk_run(directory / "flood.elf", "--accel", accelerator, "--timeout", "1")
    assert done.returncode == Outcome.DEADLINE.exit_status
    assert done.stdout.strip(b"A") == b""
    assert b"deadline" in done.stderr


@either
def test_a_reader_that_never_reads_does_not_keep_the_process(directory: Path, accelerator: str) -> None:
    with _started(directory / "flood.elf", "--accel", accelerator, "--timeout", "0.2") as process:
        assert process.wait(LIMIT) == Outcome.DEADLINE.exit_status


@either
def test_a_reader_that_goes_away_ends_the_machine(directory: Path, accelerator: str) -> None:
    with _started(directory / "flood.elf", "--accel", accelerator) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(LIMIT) == ExitStatus.BROKEN_PIPE


@pytest.mark.kvm
def test_the_machine_ends_with_its_parent(directory: Path) -> None:
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", script, *COMMAND, str(directory / "echo.elf")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + LIMIT
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(child)


@pytest.mark.kvm
def test_counters_are_told_on_standard_error(directory: Path) -> None:
    done = vtk_run(directory / "exit0.elf", "--stats")
    assert b"exits to user space" in done.stderr
    assert b"  io " in done.stderr


@pytest.mark.qemu
def test_without_kvm_the_guest_runs_emulated_and_the_reason_is_told(directory: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import minivmm.kvm.system as s\ns.DEVICE='/nonexistent'\n" + _PATCH)
    environment = os.environ | {"PYTHONPATH": f"{site}:{Path.cwd()}"}
    command = [*COMMAND, str(directory / "exit0.elf")]
    done = subprocess.run(command, capture_output=True, timeout=LIMIT, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, b"bye\n")
    assert b"emulation" in done.stderr
    assert b"/nonexistent" in done.stderr
    asked = subprocess.run(
        [*command, "--accel", "kvm"], capture_output=True, timeout=LIMIT, env=environment, check=False
    )
    assert asked.returncode == ExitStatus.HOST
    assert b"try:" in asked.stderr


_PATCH = "s.Kvm.__init__.__defaults__ = ('/nonexistent',)\n"  # the default was bound when the function was made


# --- input that cannot be used ---------------------------------------------------------------------------------------
@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Runs `vtk run` here, which must refuse what it is given in words."""
    monkeypatch.setattr(run, "_end_with_parent", lambda: None)

    def check(*arguments: str | Path) -> None:
        status = invoke(["run", *map(str, arguments)])
        shown, told = capfd.readouterr()
        assert status in (ExitStatus.USAGE, ExitStatus.HOST), told
        assert told.strip()
        assert shown == ""
        assert "Traceback" not in told

    return check


@either
@pytest.mark.parametrize(
    "content",
    [b"", b"\x7fEL", b"\x7fELF", b"\x7fELF" + bytes(60), b"text", bytes(4096), b"\x7fELF" + b"\xff" * 4096],
    ids=["empty", "3-bytes", "4-bytes", "zeros", "text", "no-magic", "ones"],
)
def test_a_file_that_is_no_kernel_is_refused(
    tmp_path: Path, refused: Callable[..., None], accelerator: str, content: bytes
) -> None:
    image = tmp_path / "image.elf"
    image.write_bytes(content)
    refused(image, "--accel", accelerator, "--timeout", "5")


@either
def test_a_truncated_kernel_is_refused(directory: Path, refused: Callable[..., None], accelerator: str) -> None:
    image = directory / "exit0.elf"
    image.write_bytes(image.read_bytes()[:150])
    refused(image, "--accel", accelerator, "--timeout", "5")


@either
@pytest.mark.parametrize(
    "arguments",
    [
        ["./none.elf"],
        ["."],
        ["/dev/null"],
        ["nonsense"],
        [""],
        ["./exit0.elf", "--mem", "0"],
        ["./exit0.elf", "--mem", "nonsense"],
        ["./exit0.elf", "--mem", "-5"],
        ["./exit0.elf", "--mem", "4K"],
        ["./exit0.elf", "--mem", "1M"],
        ["./exit0.elf", "--mem", "999999999999T"],
        ["./exit0.elf", "--cpus", "0"],
        ["./exit0.elf", "--cpus", "100000"],
        ["./exit0.elf", "--timeout", "0"],
        ["./exit0.elf", "--timeout", "nan"],
        ["./exit0.elf", "--disk", "none.img"],
        ["./exit0.elf", "--disk", "."],
        ["./exit0.elf", "--disk", ""],
        ["./exit0.elf", "--disk", ",ro"],
        ["./exit0.elf", "--boot", "nonsense"],
        ["./exit0.elf", "--append", "x" * 100_000],
        ["./exit0.elf", "--append", "a\0b"],
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_what_cannot_be_is_refused(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., None],
    accelerator: str,
    arguments: list[str],
) -> None:
    monkeypatch.chdir(directory)
    refused(*arguments, "--accel", accelerator)


def test_a_near_miss_of_a_guests_name_is_pointed_out() -> None:
    done = vtk_run("helo")
    assert done.returncode == ExitStatus.USAGE
    assert b"vtk run hello" in done.stderr


# --- the terminal ----------------------------------------------------------------------------------------------------
class Terminal:
    """`vtk run` on a pseudo-terminal of its own, as its controlling terminal."""

    def __init__(self, *arguments: str | Path) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(sys.executable, [*COMMAND, *map(str, arguments)])
        self.shown = b""

    def wait_for(self, text: bytes) -> None:
        """Reads until `text` has been shown. Fails at the end of the output."""
        while text not in self.shown:
            more = self._read()
            assert more, self.shown
            self.shown += more

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def end(self) -> int:
        """The exit status, after everything has been shown."""
        while more := self._read():
            self.shown += more
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _read(self) -> bytes:
        try:
            return os.read(self.fd, 65536)
        except OSError as error:
            if error.errno == errno.EIO:  # the other side is closed
                return b""
            raise


@pytest.fixture(params=[KVM, TCG])
def terminal(directory: Path, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    console = Terminal(directory / "echo.elf", "--accel", request.param)
    yield console
    os.close(console.fd)


def test_the_banner_names_the_escape_key(terminal: Terminal) -> None:
    terminal.wait_for(b"ready")
    assert b"Ctrl-]" in terminal.shown
    terminal.type(b"q")
    assert terminal.end() == 0
    assert b"shutdown" in terminal.shown


@pytest.mark.parametrize("key", [b"q", b"x"])
def test_the_escape_key_ends_the_machine(terminal: Terminal, key: bytes) -> None:
    terminal.wait_for(b"ready")
    terminal.type(b"\x1d" + key)
    assert terminal.end() == Outcome.INTERRUPTED.exit_status
    assert b"ended by the escape key" in terminal.shown


def test_every_key_goes_to_the_guest(terminal: Terminal) -> None:
    terminal.wait_for(b"ready")
    terminal.type(b"a\x03\x1a\x04\x1d\x1db")  # Ctrl-C, Ctrl-Z, Ctrl-D, and Ctrl-] by typing it twice
    terminal.wait_for(b"a\x03\x1a\x04\x1db")
    terminal.type(b"q")
    assert terminal.end() == 0


def test_the_terminal_is_left_as_it_was_found(terminal: Terminal) -> None:
    before = termios.tcgetattr(terminal.fd)
    terminal.wait_for(b"ready")
    assert not termios.tcgetattr(terminal.fd)[3] & termios.ECHO
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.end() == Outcome.INTERRUPTED.exit_status
    assert termios.tcgetattr(terminal.fd) == before


def _started(*arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _runs(pid: int) -> bool:
    """Whether the process exists and is no zombie: its new parent may not have reaped it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
