"""Waiting for a machine: its state, what its console shows, its ssh server, its agent. Every wait has a deadline."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable

from minivmm.errors import ConfigError
from toolkit.vm import console_log
from toolkit.vm.errors import AgentSilent, MachineBusy, MonitorSilent, Unfinished, WrongState
from toolkit.vm.machine import POLL_PERIOD, Machine
from toolkit.vm.provider import State, Status

GOALS = "running, stopped, ssh, agent or console:PATTERN"
GREETING_TIMEOUT = 2.0  # seconds an ssh server has to greet (RFC 4253, 4.2); the forwarding answers before it is there
LONGEST_GREETING = 32.0  # seconds that it gets when it did not in less
ENDED = (State.STOPPED, State.CRASHED, State.PANICKED, State.DAMAGED)
CHUNK = 1 << 20  # bytes read at a time
KEPT = 64 << 10  # bytes already looked at in which a match may begin
SHOWN_LINES = 5  # of the console, when what was waited for cannot come any more


def wait(machine: Machine, goal: str, timeout: float) -> str:
    """Waits for `goal`, one of GOALS. Returns what was found: the state, the matching text,
    the greeting, or the guest's operating system.

    Raises ConfigError for another goal; Unfinished at the deadline, or when the machine ends before.
    """
    kind, _, argument = goal.partition(":")
    looks: dict[str, Callable[[], str]] = {
        "running": lambda: _state(machine, State.RUNNING),
        "stopped": lambda: _state(machine, State.STOPPED, State.CRASHED),
        "ssh": GreetingSearch(machine, timeout).look,
        "agent": lambda: agent_answer(machine),
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
        if kind in ("console", "ssh", "agent") and status.state in ENDED:
            raise _hopeless(machine, goal, status)
        if time.monotonic() >= deadline:
            raise Unfinished(
                f"machine {machine.name!r}: no {goal} within {timeout:g} s",
                cause=_told(machine, status),
                remedy=f"--timeout, or vtk vm logs {machine.name}",
            )
        time.sleep(POLL_PERIOD)


class GreetingSearch:
    """Looks for the ssh server, each time for longer: a busy guest starts a server for every connection, and one that
    is given up before it has greeted was work for nothing, again and again."""

    def __init__(self, machine: Machine, timeout: float) -> None:
        self._machine = machine
        self._deadline = time.monotonic() + timeout
        self._patience = GREETING_TIMEOUT

    def look(self) -> str:
        """The greeting; "" when there is none within this look's time."""
        patience = min(self._patience, max(self._deadline - time.monotonic(), GREETING_TIMEOUT))
        self._patience = min(2 * self._patience, LONGEST_GREETING)
        return greeting(self._machine, patience)


def greeting(machine: Machine, timeout: float | None = None) -> str:
    """The first line of the machine's ssh server; "" when there is none within `timeout` seconds."""
    timeout = GREETING_TIMEOUT if timeout is None else timeout
    try:
        with socket.create_connection(machine.ssh_address(), timeout) as connection:
            line = connection.recv(256)
    except OSError:
        return ""
    return line.decode(errors="replace").strip() if line.startswith(b"SSH-") else ""


def agent_answer(machine: Machine) -> str:
    """What system the guest agent says it is in; "" when there is no agent yet. Raises Unsupported."""
    try:
        return machine.guest_facts().os or "agent"
    except (AgentSilent, MachineBusy, MonitorSilent, WrongState):
        return ""


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
                self._offset = console_log.seek(file, self._offset)
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
