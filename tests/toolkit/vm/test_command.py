"""`vtk vm`: what its verbs print, and the status each one ends with."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest

from tests.toolkit.vm.conftest import MakeMachine
from toolkit.cli import ExitStatus, invoke
from toolkit.cli.vm import vm

VERBS = (
    *("create", "start", "stop", "kill", "list", "show", "console", "exec", "pause"),
    *("resume", "snapshot", "restore", "balloon", "migrate", "top", "wait", "logs", "delete"),
)
LINE = [sys.executable, "-m", "toolkit.cli", "vm"]


def vtk(*arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LINE, *arguments], input=typed, capture_output=True, text=True, timeout=60, check=False, env=os.environ
    )


def test_help_names_every_verb_with_examples() -> None:
    told = vtk("--help").stdout
    assert [verb for verb in VERBS if f"\n  {verb} " not in told] == []
    assert "Examples:" in told


def test_every_verb_speaks_json(make: MakeMachine) -> None:
    options = {verb: [option for param in vm.commands[verb].params for option in param.opts] for verb in VERBS}
    assert [verb for verb in VERBS if "--json" not in options[verb]] == ["console"]
    make()
    assert json.loads(vtk("list", "--json").stdout)["machines"][0]["state"] == "stopped"
    shown = json.loads(vtk("show", "a", "--json").stdout)
    assert shown["schema"] == 1
    assert shown["machine"]["memory"] == 32 << 20
    assert json.loads(vtk("logs", "a", "--json").stdout) == {"schema": 1, "name": "a", "text": ""}
    assert json.loads(vtk("delete", "a", "--json").stdout) == {"schema": 1, "name": "a", "deleted": True}


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize("verb", ["start", "stop", "kill", "show", "console", "pause", "resume", "logs", "delete"])
def test_a_machine_that_is_not_there_is_named_with_the_next_step(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["vm", verb, "nobody"]) == ExitStatus.USAGE
    assert capsys.readouterr().err == "vtk: there is no machine 'nobody'\n  try:   vtk vm list\n"


@pytest.mark.usefixtures("machines")
def test_an_image_that_is_not_there_is_wrong_input() -> None:
    done = vtk("create", "a", "--image", "nothing")
    assert done.returncode == ExitStatus.USAGE
    assert "nothing" in done.stderr
    assert "cause:" in done.stderr or "try:" in done.stderr


@pytest.mark.qemu
def test_the_statuses_tell_a_wait_in_vain_from_a_wrong_state(make: MakeMachine) -> None:
    make()
    assert vtk("stop", "a").returncode == ExitStatus.USAGE
    assert vtk("start", "a").returncode == ExitStatus.OK
    assert vtk("wait", "a", "--for", "console:ready", "--timeout", "30").returncode == ExitStatus.OK
    assert vtk("wait", "a", "--for", "stopped", "--timeout", "0.1").returncode == ExitStatus.FAILED
    assert vtk("stop", "a", "--timeout", "0.1").returncode == ExitStatus.FAILED
    piped = vtk("console", "a", "--until", "hello", "--timeout", "30", typed="hello")
    assert (piped.returncode, piped.stdout) == (ExitStatus.OK, "hello")
    assert vtk("console", "a", "--until", "never", "--timeout", "0.1").returncode == ExitStatus.FAILED
    assert vtk("logs", "a", "-n", "1").stdout == "hello"


@pytest.mark.qemu
def test_the_escape_key_leaves_the_console_and_the_machine_running(make: MakeMachine) -> None:
    machine = make()
    machine.start()
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [*LINE, "console", "a"], os.environ)
    try:
        seen = b""

        def until(text: bytes) -> None:
            nonlocal seen
            deadline = time.monotonic() + 30.0
            while text not in seen:
                assert select.select([terminal], [], [], deadline - time.monotonic())[0]
                seen += os.read(terminal, 4096)

        until(b"leaves the console")
        os.write(terminal, b"\x03hi")  # Ctrl-C is the guest's
        until(b"\x03hi")
        os.write(terminal, b"\x1dq")
        until(b"left by the escape key")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == ExitStatus.OK
    finally:
        os.close(terminal)
    assert machine.status().state.value == "running"
