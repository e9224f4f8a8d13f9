"""Waiting for a machine: for a state, for what its console shows, for its ssh server. Every wait has a deadline."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable

from minivmm.errors import ConfigError
from toolkit.vm.errors import Unfinished
from toolkit.vm.machine import POLL_PERIOD, Machine
from toolkit.vm.provider import State, Status

GOALS = "running, stopped, ssh or console:PATTERN"
GREETING_TIMEOUT = 2.0  # seconds an ssh server has to greet (RFC 4253, 4.2); the forwarding answers before it is there
ENDED = (State.STOPPED, State.CRASHED, State.PANICKED, State.DAMAGED)
CHUNK = 1 << 20  # bytes read at a time
KEPT = 64 << 10  # bytes already looked at in which a match may begin
SHOWN_LINES = 5  # of the console, when what was waited for cannot come any more


def wait(machine: Machine, goal: str, timeout: float) -> str:
    """Waits for `goal`, one of GOALS. Returns what was found: the state, the matching text or the greeting.

    Raises ConfigError for another goal; Unfinished at the deadline, or when the machine ends before.
    """
    kind, _, argument = goal.partition(":")
    looks: dict[str, Callable[[], str]] = {
        "running": lambda: _state(machine, State.RUNNING),
        "stopped": lambda: _state(machine, State.STOPPED, State.CRASHED),
        "ssh": lambda: greeting(machine),
    }
    if kind == "console" and argument:
        looks["console"] = ConsoleSearch(machine, compiled(argument)).look
    elif kind not in looks or argument:
        raise ConfigError(f"{goal!r} cannot be waited for", cause=f"it is one of {GOALS}")
    deadline = time.monotonic() + timeout
    while True:
        # The state first: what the machine did before it ended still counts.
        status = machine.status()
        if found := looks[kind]():
            return found
        if kind in ("console", "ssh") and status.state in ENDED:
            raise _hopeless(machine, goal, status)
        if time.monotonic() >= deadline:
            raise Unfinished(
                f"machine {machine.name!r}: no {goal} within {timeout:g} s",
                cause=_told(machine, status),
                remedy=f"--timeout, or vtk vm logs {machine.name}",
            )
        time.sleep(POLL_PERIOD)


def greeting(machine: Machine) -> str:
    """The first line of the machine's ssh server; "" when there is none."""
    try:
        with socket.create_connection(machine.ssh_address(), GREETING_TIMEOUT) as connection:
            line = connection.recv(256)
    except OSError:
        return ""
    return line.decode(errors="replace").strip() if line.startswith(b"SSH-") else ""


def _state(machine: Machine, *wanted: State) -> str:
    state = machine.status().state
    return state.value if state in wanted else ""


class ConsoleSearch:
    """Looks for a pattern in what a console has shown since its machine was started, each byte read once."""

    def __init__(self, machine: Machine, pattern: re.Pattern[bytes]) -> None:
        self._file = machine.directory / "console.log"
        self._pattern = pattern
        self._inode, self._offset, self._seen = 0, 0, b""

    def look(self) -> str:
        """The text that matches, "" as long as there is none."""
        try:
            with open(self._file, "rb") as file:
                if (inode := os.fstat(file.fileno()).st_ino) != self._inode:  # started again
                    self._inode, self._offset, self._seen = inode, 0, b""
                file.seek(self._offset)
                while data := file.read(CHUNK):
                    self._offset += len(data)
                    self._seen = self._seen[-KEPT:] + data
                    if found := self._pattern.search(self._seen):
                        return found[0].decode(errors="replace")
        except FileNotFoundError:
            pass
        return ""


def compiled(text: str) -> re.Pattern[bytes]:
    try:
        return re.compile(text.encode())
    except re.error as error:
        raise ConfigError(f"{text!r} is no regular expression", cause=str(error)) from error


def _hopeless(machine: Machine, goal: str, status: Status) -> Unfinished:
    return Unfinished(
        f"machine {machine.name!r} is {status.state.value}: no {goal} can come",
        cause=_told(machine, status),
        remedy=f"vtk vm logs {machine.name}",
    )


def _told(machine: Machine, status: Status) -> str:
    """The state, and the console's last words."""
    lines = machine.last_lines(SHOWN_LINES)
    told = f"it is {status.state.value}" + (f" ({status.detail})" if status.detail else "")
    return "\n         ".join([told + ("; its console's last lines:" if lines else ""), *lines])
