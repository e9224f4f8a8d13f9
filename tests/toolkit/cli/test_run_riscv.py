"""`vtk run` with RISC-V guests: which machine they get; verbs, statuses and messages are those of every other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from guest_os import image
from tests.minivmm.emulator.programs import compile_program
from toolkit.cli import ExitStatus

LINE = [sys.executable, "-m", "toolkit.cli", "run"]


def vtk_run(*arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LINE, *arguments], input=typed, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("accelerator", ["interpret", "translate"])
def test_a_guest_of_ours_runs_under_both_and_says_which_in_its_report(accelerator: str) -> None:
    done = vtk_run("echo", "--arch", "riscv64", "--accel", accelerator, "--json", typed="hello\nquit\n")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["platform"], report["accelerator"], report["outcome"]) == ("riscv64", accelerator, "shutdown")
    assert "hello\n" in report["console"]
    assert report["exits"]["instructions"] > 1000


def test_the_file_says_which_machine_it_is_for() -> None:
    done = vtk_run(str(image("exit", "riscv64")), "--append", "code=6", "--json")
    assert done.returncode == 6
    assert json.loads(done.stdout)["accelerator"] == "translate"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("hello", "--arch", "riscv64", "--cpus", "2"), "--cpus does not go with a RISC-V machine"),
        (("hello", "--arch", "riscv64", "--accel", "kvm"), "--accel kvm does not go with a RISC-V machine"),
        (("hello", "--arch", "riscv64", "--xen"), "--xen does not go with a RISC-V machine"),
        (("hello", "--arch", "x86_64", "--accel", "translate"), "--accel translate is for RISC-V guests"),
        (("smp", "--arch", "riscv64"), "is not made for RISC-V"),
    ],
)
def test_what_the_machine_does_not_have_is_refused(arguments: tuple[str, ...], words: str) -> None:
    done = vtk_run(*arguments)
    assert done.returncode == ExitStatus.USAGE
    assert words in done.stderr
    assert "cause:" in done.stderr


def test_a_guest_without_end_is_ended_at_the_deadline(tmp_path: Path) -> None:
    loop = tmp_path / "loop.bin"
    loop.write_bytes((0x0000006F).to_bytes(4, "little"))  # jal zero, itself
    done = vtk_run(str(loop), "--arch", "riscv64", "--timeout", "0.3")
    assert done.returncode == 24
    assert "deadline" in done.stderr


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes its arguments; its exit status is their number, itself included; without any it crashes."""
    body = """
        long start(long *stack)
        {
            for (long i = 1; i < stack[0]; i++) say(((char **)(stack + 1))[i]), say("\\n");
            if (stack[0] == 1) *(volatile int *)0 = 0;
            return stack[0];
        }"""
    return compile_program(tmp_path_factory.mktemp("program"), body)


@pytest.mark.parametrize("accelerator", ["interpret", "translate"])
def test_a_linux_program_gets_its_arguments_and_gives_its_status(program: Path, accelerator: str) -> None:
    done = vtk_run("--user", str(program), "--accel", accelerator, "--", "-v", "two words")
    assert (done.returncode, done.stdout, done.stderr) == (3, "-v\ntwo words\n", "")


def test_a_program_that_crashes_is_told_and_gives_128_and_the_signal(program: Path) -> None:
    done = vtk_run("--user", str(program))
    assert done.returncode == 128 + 11
    assert "SIGSEGV: store page fault at" in done.stderr


def test_the_report_of_a_program_is_alone_on_standard_output(program: Path) -> None:
    done = vtk_run("--user", str(program), "--json", "--", "word")
    report = json.loads(done.stdout)
    assert (report["outcome"], report["exit_status"], done.returncode) == ("exited", 2, 2)
    assert report["figures"]["system calls"] == 3
    assert done.stderr == "word\n"


def test_options_of_machines_are_refused_beside_user(program: Path) -> None:
    for options in (("--disk", "x"), ("--xen",), ("--cpus", "2"), ("--accel", "kvm")):
        assert vtk_run("--user", str(program), *options).returncode == ExitStatus.USAGE
    assert vtk_run("hello", "word").returncode == ExitStatus.USAGE
