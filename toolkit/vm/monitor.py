"""QMP on a machine's private socket: a connection for a question or a few, so that nothing is kept open between verbs.

QEMU serves one connection at a time; who holds one for long makes the machine silent for everybody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError

from toolkit.qemu.errors import QemuError
from toolkit.vm import presence
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.errors import MonitorSilent

TIMEOUT = 5.0  # seconds for an answer; some ms on an idle machine
HANG_UP_TIMEOUT = 2.0  # seconds QEMU has to see that we leave
SOCKET = "qmp.sock"

# It tells each connection's end on standard error; that of a machine that was asked to quit is no news.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


def execute(
    machine: MachineDirectory, command: str, arguments: dict[str, Any] | None = None, timeout: float = TIMEOUT
) -> Any:
    """The answer to one command. Raises MonitorSilent, and QemuError when QEMU refuses the command."""
    with conversation(machine, timeout=timeout) as monitor:
        return monitor.execute(command, arguments, timeout)


class Conversation:
    """A connection to a machine's QMP."""

    def __init__(self, machine: MachineDirectory, client: QMPClient, runner: asyncio.Runner) -> None:
        self._machine = machine
        self._client = client
        self._runner = runner

    def execute(self, command: str, arguments: dict[str, Any] | None = None, timeout: float = TIMEOUT) -> Any:
        """The answer. Raises MonitorSilent, and QemuError when QEMU refuses the command."""
        with _translated(self._machine, command, timeout):
            return self._runner.run(asyncio.wait_for(self._client.execute(command, arguments), timeout))

    def ask(self, command: str, arguments: dict[str, Any] | None = None, timeout: float = TIMEOUT) -> Any:
        """The answer; None when QEMU refuses the command, or does not know it. Raises MonitorSilent."""
        with contextlib.suppress(QemuError):
            return self.execute(command, arguments, timeout)
        return None


@contextlib.contextmanager
def conversation(
    machine: MachineDirectory, slot: str | None = None, timeout: float = TIMEOUT
) -> Iterator[Conversation]:
    """A connection to the machine's process, or to that in `slot` (see presence). Raises MonitorSilent."""
    client = QMPClient("vtk")
    with asyncio.Runner() as runner:
        with _translated(machine, "qmp_capabilities", timeout):
            connection = machine.connect(presence.file_name(machine, SOCKET, slot), timeout)
            connection.setblocking(False)
            try:
                runner.run(asyncio.wait_for(client.connect(connection), timeout))
            except BaseException as error:
                connection.close()
                if isinstance(error, AssertionError):  # qemu.qmp's own, when the peer leaves as soon as it has agreed
                    raise EOFError("the connection was closed") from error
                raise
        try:
            yield Conversation(machine, client, runner)
        finally:
            # QEMU may have hung up first: it was told to quit, or was killed.
            with contextlib.suppress(EOFError, OSError, QMPError, TimeoutError):
                runner.run(asyncio.wait_for(client.disconnect(), HANG_UP_TIMEOUT))


@contextlib.contextmanager
def _translated(machine: MachineDirectory, command: str, timeout: float) -> Iterator[None]:
    """What can go wrong on the way, as our errors."""
    try:
        yield
    except ExecuteError as error:
        raise QemuError(f"QEMU refuses {command!r} for machine {machine.name!r}", str(error)) from error
    except (OSError, EOFError, QMPError, TimeoutError) as error:
        silent = isinstance(error, TimeoutError)
        raise MonitorSilent(
            f"machine {machine.name!r} does not answer",
            cause=f"no answer on QMP within {timeout:g} s: its process is stopped or overloaded, or somebody else is "
            "connected"
            if silent
            else f"QMP: {error}",
            remedy=f"vtk vm show {machine.name}, or vtk vm kill {machine.name}",
        ) from error
