"""`vtk run --lockstep` and `--trace`: what is printed, where it goes, and how vtk exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minivmm.outcome import Outcome
from tests.minivmm.emulator.programs import compile_program
from tests.toolkit.cli.test_run_riscv import vtk_run
from toolkit.cli import ExitStatus

WITH_A_MISTAKE = """
import sys
from minivmm.emulator.translator.emit import EMIT
right = EMIT["addiw"]
EMIT["addiw"] = lambda emitter, decoded: right(emitter, decoded._replace(imm=decoded.imm + 2, raw=-decoded.raw))
from toolkit.cli import __main__
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says the sum of squares, modulo 16, and exits with 0."""
    body = """
        long start(long *stack)
        {
            volatile unsigned int sum = 0;
            for (unsigned int i = 0; i < 1000; i++) sum = sum + i * i;
            char text[2] = {"0123456789abcdef"[sum & 15], 10};
            CALL(WRITE, 1, text, 2, 0);
            return 0;
        }"""
    return compile_program(tmp_path_factory.mktemp("program"), body)


def with_a_mistake(*arguments: str) -> subprocess.CompletedProcess[str]:
    """vtk run, with a translator that adds wrongly."""
    line = [sys.executable, "-c", WITH_A_MISTAKE, "run", *arguments]
    return subprocess.run(line, input="", capture_output=True, text=True, timeout=120, check=False)


# --- lock-step -------------------------------------------------------------------------------------------------------
def test_engines_that_agree_leave_the_guest_s_status_and_say_what_was_compared() -> None:
    done = vtk_run("hello", "--lockstep")
    assert done.returncode == 0
    assert "Hello from vtk" in done.stdout
    assert "interpreted and translated" in done.stderr
    assert "no difference" in done.stderr


def test_a_program_gives_its_own_status(program: Path) -> None:
    done = vtk_run("--user", str(program), "--lockstep", "--stride", "100")
    assert (done.returncode, done.stdout) == (0, "c\n"), done.stderr
    assert "no difference" in done.stderr


def test_a_difference_is_told_with_the_instruction_and_a_status_of_its_own(program: Path) -> None:
    for arguments in (("--user", str(program)), ("user", "--arch", "riscv64")):
        done = with_a_mistake(*arguments, "--lockstep")
        assert done.returncode == Outcome.DIVERGED.exit_status == 29, done.stderr
        assert "diverged after" in done.stderr
        marked = [line for line in done.stderr.splitlines() if line.strip().startswith("> 0x")]
        assert len(marked) == 1
        assert "addiw" in marked[0]
        assert "no difference" not in done.stderr
        assert "Traceback" not in done.stderr


def test_a_difference_is_in_the_report() -> None:
    done = with_a_mistake("user", "--lockstep", "--json")
    report = json.loads(done.stdout)
    assert (report["accelerator"], report["outcome"], report["exit_status"]) == ("lockstep", "diverged", 29)
    assert "addiw" in report["detail"]


# --- the trace -------------------------------------------------------------------------------------------------------
def test_lines_go_to_standard_error_and_the_console_stays_where_it_is() -> None:
    done = vtk_run("hello", "--arch", "riscv64", "--trace", "-", "--trace-events", "blocks,traps")
    assert done.stdout.startswith("Hello from vtk")
    assert " blocks       0x000080000004  translated: " in done.stderr
    assert " lookups " not in done.stderr


def test_a_file_that_is_called_json_is_json(tmp_path: Path, program: Path) -> None:
    for guest in (("hello", "--arch", "riscv64"), ("--user", str(program))):
        done = vtk_run(*guest, "--trace", str(tmp_path / "trace.json"), "--trace-limit", "50")
        assert done.returncode == 0, done.stderr
        assert "vtk: the trace has 50 events" in done.stderr
        assert len(json.loads((tmp_path / "trace.json").read_text())) == 52


def test_a_trace_that_cannot_be_written_is_told_and_the_guest_goes_on() -> None:
    done = vtk_run("hello", "--arch", "riscv64", "--trace", "/dev/full", "--trace-limit", "2000")
    assert done.returncode == 0
    assert "the trace could not be written" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("hello", "--trace", "{}"), "--trace is for RISC-V guests"),
        (("hello", "--stride", "5"), "--stride is for RISC-V guests"),
        (("hello", "--arch", "x86_64", "--lockstep"), "--lockstep is for RISC-V guests"),
        (("hello", "--arch", "riscv64", "--stride", "5"), "--stride does not go with a RISC-V machine"),
        (("hello", "--lockstep", "--trace", "{}"), "--trace with --lockstep does not go"),
        (("hello", "--lockstep", "--accel", "interpret"), "--accel interpret with --lockstep does not go"),
        (("--user", "program", "--lockstep", "--accel", "interpret"), "--lockstep interprets and translates"),
        (("--user", "program", "--lockstep", "--trace", "{}"), "--trace tells of one engine"),
        (("--user", "program", "--stride", "5"), "--stride belongs to --lockstep"),
        (("--user", "program", "--quota", "1M"), "--quota goes with --root"),
        (("hello", "--quota", "1M"), "--quota goes with a program"),
        (("hello", "--arch", "riscv64", "--trace", "{}", "--trace-events", "loops"), "'loops' is not one of"),
        (("hello", "--arch", "riscv64", "--trace", "{}/none"), "the trace cannot be written to"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_made(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = vtk_run(*(argument.replace("{}", str(tmp_path / "trace")) for argument in arguments))
    assert done.returncode == ExitStatus.USAGE
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == []
