"""The process that is a minivmm machine, started by minivmm.MinivmmProvider.

It outlives whoever started it. What it holds and leaves is what a QEMU machine's process does (directory.py): the lock
on `running`, inherited; the lock on its pid file, which it removes when it ends in order; qmp.sock, console.sock,
console.log. And in outcome.json how the machine ended, which QEMU's does not tell.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from minivmm.control.controlled import Controlled
from minivmm.control.server import QmpServer
from minivmm.errors import HostError, VtkError
from toolkit.vm import presence
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.minivmm_console import Console, ConsoleLog
from toolkit.vm.minivmm_kind import maker
from toolkit.vm.minivmm_outcome import keep

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Orders(NamedTuple):
    """What the process is started with, its one argument. Numbers are inherited descriptors."""

    directory: str
    running: int
    qmp: int  # a socket that listens
    console: int
    report: int  # a pipe: who started it reads there how that went
    paused: bool


def main() -> NoReturn:
    """Becomes the machine: in a second process, that nobody has to wait for."""
    orders = Orders(*json.loads(sys.argv[1]))
    if os.fork():
        os._exit(0)
    os.chdir("/")
    machine = MachineDirectory(Path(orders.directory))
    pid_file = _lock_pid_file(machine)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # every thread inherits that: they come to _end_by_signal alone
    try:
        _live(machine, orders)
    except VtkError as error:
        _report(orders.report, error)
    finally:
        sys.stderr.flush()
    presence.forget(machine, "")
    os.close(pid_file)
    os._exit(0)  # nothing is left to be taken down piece by piece


def _lock_pid_file(machine: MachineDirectory) -> int:
    """A lock of fcntl(2)'s old kind: F_GETLK names its holder."""
    fd = os.open(machine / presence.PID_FILE, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd


def _live(directory: MachineDirectory, orders: Orders) -> None:
    """From the machine's making to its end. Raises VtkError when it cannot be made."""
    config = directory.config()
    try:
        log = ConsoleLog(directory)
    except OSError as error:
        raise HostError(f"{directory / 'console.log'} cannot be written", cause=error.strerror or str(error)) from error
    with contextlib.ExitStack() as held:
        qmp, listener = (held.enter_context(socket.socket(fileno=fd)) for fd in (orders.qmp, orders.console))
        console = Console(listener, log)
        machine = Controlled(config.name, maker(directory, config, console.write), paused=orders.paused)
        held.enter_context(machine)
        held.callback(console.close)
        held.enter_context(QmpServer(qmp, machine))
        console.serve(machine)
        threading.Thread(target=_end_by_signal, args=(machine,), name="signals", daemon=True).start()
        if not _report(orders.report, None):
            return
        result = machine.run()
        try:
            keep(directory, result)
        except HostError as error:
            print(f"{result.outcome.value}: {result.detail}\n{error}", file=sys.stderr, flush=True)


def _end_by_signal(machine: Controlled) -> None:
    number = signal.sigwait(ENDING)
    machine.quit("host-signal", f"stopped by {signal.Signals(number).name}")


def _report(pipe: int, error: VtkError | None) -> bool:
    """Tells who started the machine that it is there, or why not. False when nobody waits for it any more."""
    told: dict[str, Any] = {}
    if error is not None:
        host = isinstance(error, HostError)
        told = {"message": error.message, "cause": error.cause, "remedy": error.remedy, "host": host}
    try:
        os.write(pipe, json.dumps(told).encode())
        os.close(pipe)
    except OSError:  # it was interrupted, and the machine is not wanted
        return False
    return True
