"""A command, or a shell, in a machine's guest over ssh: its output as it comes and its exit status.

The parts: ssh_connection (who gets in), ssh_host_key, ssh_settings (~/.ssh/config), ssh_streams (pipes), ssh_terminal
(a terminal here and one there), ssh_copy (files).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit.vm.machine import Machine
from toolkit.vm.ssh_connection import CONNECT_TIMEOUT, connected, lost
from toolkit.vm.ssh_streams import SIGNALLED, Feeder, Sink, Source, relay

if TYPE_CHECKING:
    from paramiko import Channel


def execute(
    machine: Machine,
    command: str,
    *,
    stdout: Sink,
    stderr: Sink,
    stdin: Source = None,
    user: str | None = None,
    wait_timeout: float = 60.0,
    timeout: float | None = None,
) -> int:
    """Runs `command` by the log-in shell of the guest's user; waits `wait_timeout` seconds for the ssh server.

    Returns the command's exit status; SIGNALLED when a signal ended it. Raises Unreachable, and Unfinished for a server
    or an end that did not come in time; what the sinks raise.
    """
    with session(machine, user, wait_timeout) as channel:
        _start(machine, channel, command)
        return (
            relay(machine, channel, Feeder(channel, b"" if stdin is None else stdin), stdout, stderr, timeout=timeout)
            or 0
        )


def attend(
    machine: Machine,
    command: str = "",
    *,
    user: str | None = None,
    wait_timeout: float = 60.0,
    timeout: float | None = None,
) -> int:
    """A terminal in the guest on standard input and output, for `command` or, without one, a log-in shell.

    Returns its exit status; SIGNALLED also when the person left by `~.`. Raises as `execute` does.
    """
    from toolkit.vm import ssh_terminal

    with session(machine, user, wait_timeout) as channel, ssh_terminal.on(channel) as terminal:
        _start(machine, channel, command)
        status = terminal.relay(machine, timeout)
    return SIGNALLED if status is None else status


@contextlib.contextmanager
def session(machine: Machine, user: str | None, wait_timeout: float) -> Iterator[Channel]:
    """A channel on which nothing was started yet (RFC 4254, 6.1). Raises as `execute` does."""
    from paramiko import SSHException

    with connected(machine, user=user, wait_timeout=wait_timeout) as transport:
        try:
            channel = transport.open_session(timeout=CONNECT_TIMEOUT)
        except (OSError, SSHException, EOFError) as error:
            raise lost(machine, error) from error
        yield channel


def _start(machine: Machine, channel: Channel, command: str) -> None:
    from paramiko import SSHException

    try:
        if command:
            channel.exec_command(command)
        else:
            channel.invoke_shell()
    except (OSError, SSHException, EOFError) as error:
        raise lost(machine, f"its server starts no command: {error or type(error).__name__}") from error


__all__ = ["SIGNALLED", "attend", "execute", "session"]
