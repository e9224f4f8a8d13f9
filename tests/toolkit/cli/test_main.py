"""What every command shares: help, statuses, errors, completion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from minivmm.errors import ConfigError, HostError, ImageError
from toolkit.cli import COMMANDS, ExitStatus, cli, invoke
from toolkit.cli.completion import completion


def vtk(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "toolkit.cli", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        env=os.environ | environment,
        check=False,
    )


def raising(error: BaseException) -> click.Command:
    def callback() -> None:
        raise error

    return click.Command("broken", callback=callback)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """`vtk broken` runs whatever the test puts there; reports go to the directory returned."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("VTK_DEBUG", raising=False)
    return tmp_path


def run_broken(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    monkeypatch.setattr(type(cli), "get_command", lambda *_: raising(error))
    return invoke(["broken"])


def test_help_lists_every_command_and_loads_none() -> None:
    script = (
        "import sys; from toolkit.cli import invoke; invoke(['--help']);"
        "heavy = {'rich', 'asyncio', 'ctypes', 'jsonschema', 'subprocess', 'minivmm.machine', 'toolkit.host'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    done = vtk(name, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: vtk ")


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"], ["run"], ["run", "hello", "--nonsense"]])
def test_wrong_usage_has_status_2_and_no_traceback(arguments: list[str]) -> None:
    done = vtk(*arguments)
    assert done.returncode == ExitStatus.USAGE
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HostError("no KVM", cause="none", remedy="buy one"), ExitStatus.HOST),
        (ImageError("a.elf", "is empty"), ExitStatus.USAGE),
        (ConfigError("too small"), ExitStatus.USAGE),
        (KeyboardInterrupt(), ExitStatus.INTERRUPTED),
    ],
)
def test_an_error_has_its_status(monkeypatch: pytest.MonkeyPatch, error: BaseException, status: ExitStatus) -> None:
    assert run_broken(monkeypatch, error) == status


@pytest.mark.usefixtures("broken")
def test_an_error_says_its_cause_and_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_broken(monkeypatch, HostError("no KVM", cause="there is none", remedy="sudo modprobe kvm"))
    assert capsys.readouterr().err == "vtk: no KVM\n  cause: there is none\n  try:   sudo modprobe kvm\n"


def test_a_fault_of_ours_is_reported_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: Path
) -> None:
    assert run_broken(monkeypatch, ZeroDivisionError("oops")) == ExitStatus.INTERNAL
    told = capsys.readouterr().err
    (report,) = broken.iterdir()
    assert str(report) in told
    assert "Traceback" not in told
    assert "ZeroDivisionError: oops" in report.read_text()


@pytest.mark.usefixtures("broken")
def test_a_fault_is_shown_whole_to_whoever_debugs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTK_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run_broken(monkeypatch, ZeroDivisionError("oops"))


@pytest.mark.parametrize("arguments", [["--help"], ["guest", "list"], ["doctor", "--json"]])
def test_a_reader_that_goes_away_is_no_error(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "toolkit.cli", *arguments], stdout=write, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(write)
    assert done.stderr == b""
    assert done.returncode == ExitStatus.BROKEN_PIPE


def test_the_version_is_told() -> None:
    done = vtk("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("vtk")


@pytest.mark.parametrize("shell", completion.params[0].type.choices)  # type: ignore[attr-defined]
def test_every_shell_gets_a_completion_script(shell: str) -> None:
    done = vtk("completion", shell)
    assert done.returncode == 0
    assert "_VTK_COMPLETE" in done.stdout


def test_completion_offers_the_commands() -> None:
    done = vtk(_VTK_COMPLETE="bash_complete", COMP_WORDS="vtk do", COMP_CWORD="1")
    assert done.stdout.split() == ["plain,doctor"]
