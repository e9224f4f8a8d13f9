"""QMP on a machine's private socket: one connection for each question, so that nothing is kept open between verbs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError

from toolkit.qemu.errors import QemuError
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.errors import MonitorSilent

TIMEOUT = 5.0  # seconds for an answer; some ms on an idle machine
SOCKET = "qmp.sock"

# It tells each connection's end on standard error; that of a machine that was asked to quit is no news.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


def execute(
    machine: MachineDirectory, command: str, arguments: dict[str, Any] | None = None, timeout: float = TIMEOUT
) -> Any:
    """The answer to one command. Raises MonitorSilent, and QemuError when QEMU refuses the command."""
    try:
        return asyncio.run(asyncio.wait_for(_execute(machine, command, arguments, timeout), timeout))
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


async def _execute(machine: MachineDirectory, command: str, arguments: dict[str, Any] | None, timeout: float) -> Any:
    connection = machine.connect(SOCKET, timeout)
    connection.setblocking(False)
    client = QMPClient("vtk")
    try:
        await client.connect(connection)
    except BaseException:
        connection.close()
        raise
    try:
        return await client.execute(command, arguments)
    finally:
        with contextlib.suppress(EOFError, OSError, QMPError):  # QEMU hung up first: it was told to quit
            await client.disconnect()
