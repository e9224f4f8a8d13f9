"""Moving a machine from its QEMU process to a new one on this host, while it runs.

    old QEMU --unix socket--> this vtk --socket pair--> new QEMU, which stands still

The state goes through this process, and the new QEMU has nothing but its end of that pair to load from: when vtk is
killed, both ends close, QEMU's migration fails, the old process goes on by itself and the new one ends. When all has
arrived both stand still, and the move is done by ending the old one: see presence, which tells who is the machine.

An emulated machine stands still from the first byte on: TCG may miss that a page was written to after it had been sent,
for a store that finds its page in the TLB says nothing (seen with QEMU 7.2: a busy Linux, moved while it ran, hung in
its kernel). When vtk is killed meanwhile the old process stays so, and the machine is `paused`.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.qemu.errors import QemuError
from toolkit.qemu.microvm import Accelerator
from toolkit.vm import presence
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.errors import MonitorSilent, Unfinished
from toolkit.vm.launch import KILL_TIMEOUT, launch, shape_of
from toolkit.vm.monitor import Conversation, conversation
from toolkit.vm.ports import free_port
from toolkit.vm.provider import MachineConfig, Migration
from toolkit.vm.q35 import NETDEV, Launch, forwarding

TRANSFER_TIMEOUT = 900.0  # seconds for all of the memory, however often the guest writes to it again
STALL_TIMEOUT = 60.0  # seconds without a byte
SETTLE_TIMEOUT = 30.0  # seconds the processes have to say how it went
PERIOD = 0.005  # seconds between looks: the machine stands still meanwhile
CHUNK = 1 << 20  # bytes moved at a time
MAX_BANDWIDTH = 1 << 40  # bytes a second: no limit, it is a socket of this host
DOWNTIME_LIMIT = 100  # milliseconds that the last round may take
UNDER_WAY = ("none", "setup", "active", "pre-switchover", "device", "cancelling", "wait-unplug")


def migrate(machine: MachineDirectory, config: MachineConfig) -> Migration:
    """Raises QemuError, MonitorSilent, Unfinished: the machine is where it was then, and goes on."""
    began = time.monotonic()
    settle(machine, config)
    old = presence.slot_of(machine) or presence.SLOTS[0]
    (new,) = (slot for slot in presence.SLOTS if slot != old)
    with conversation(machine, old) as monitor:
        shape = shape_of(monitor, config)
        running = bool(monitor.execute("query-status")["running"])
        monitor.execute("migrate-set-parameters", {"max-bandwidth": MAX_BANDWIDTH, "downtime-limit": DOWNTIME_LIMIT})
        # A guest that writes faster than we copy is slowed down, more and more.
        capability = {"capability": "auto-converge", "state": True}
        monitor.execute("migrate-set-capabilities", {"capabilities": [capability]})
    # As the running machine is, not as config.json may say by now: otherwise its state does not fit.
    config = replace(config, memory=shape.memory, cpus=shape.cpus)
    accelerator = Accelerator(shape.accelerator)
    machine.write(presence.INCOMING, f"{new}\n".encode())
    try:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                launch(machine, config, Launch(accelerator, True, shape.type, new, theirs.fileno()))
            with conversation(machine, new) as there:
                stands = time.monotonic()
                if running and accelerator is Accelerator.TCG:
                    with conversation(machine, old) as monitor:
                        monitor.execute("stop")
                told = _transfer(machine, old, ours)
                if accelerator is not Accelerator.TCG:
                    stands = time.monotonic() - told.get("downtime", 0) / 1000
                _wait_until_loaded(machine, there)
                _end(machine, old)
                if running:
                    there.execute("cont")
                downtime = time.monotonic() - stands
                _forward(machine, config, there)
    except BaseException as error:
        if presence.is_alive(machine, old):
            _go_back(machine, old, new, running)
        if isinstance(error, QemuError) and (words := _said(machine)):
            raise QemuError(error.message, words, remedy=error.remedy) from error
        raise
    (machine / presence.INCOMING).unlink(missing_ok=True)
    return Migration(time.monotonic() - began, downtime if running else 0.0, told["ram"]["transferred"])


def progress(machine: MachineDirectory) -> tuple[int, int]:
    """Bytes transferred, and bytes that remain. Raises MonitorSilent, QemuError."""
    with conversation(machine) as monitor:
        memory = monitor.execute("query-migrate").get("ram", {})
    return memory.get("transferred", 0), memory.get("remaining", 0)


def settle(machine: MachineDirectory, config: MachineConfig) -> None:
    """Ends what a vtk that was killed has left of a move. Raises MonitorSilent. The caller holds the lock."""
    new = presence.incoming(machine)
    if new is None:
        return
    (old,) = (slot for slot in presence.SLOTS if slot != new)
    if presence.is_alive(machine, old):
        presence.kill(machine, KILL_TIMEOUT, new)
        presence.forget(machine, new)
    elif presence.is_alive(machine, new):
        with conversation(machine, new) as monitor:
            _forward(machine, config, monitor)
        presence.forget(machine, old)
    else:
        (machine / presence.INCOMING).unlink(missing_ok=True)


def _transfer(machine: MachineDirectory, old: str, target: socket.socket) -> dict[str, Any]:
    """Everything that the old process sends, to the new one. Returns what QEMU tells of it (query-migrate)."""
    deadline = time.monotonic() + TRANSFER_TIMEOUT
    # In a directory of its own, for a machine's path may be longer than a socket's name.
    directory = Path(tempfile.mkdtemp(prefix="vtk-"))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(directory / "state"))
            listener.listen(1)
            listener.settimeout(STALL_TIMEOUT)
            with conversation(machine, old) as monitor:
                monitor.execute("migrate", {"uri": f"unix:{directory / 'state'}"})
            source, _ = listener.accept()
            with source:
                _pump(machine, source, target, deadline)
    except OSError as error:
        raise _failed(machine, old, error.strerror or str(error)) from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    told = _outcome(machine, old)
    if told["status"] != "completed":
        raise _failed(machine, old, told.get("error-desc", f"QEMU: {told['status']}"))
    return told


def _pump(machine: MachineDirectory, source: socket.socket, target: socket.socket, deadline: float) -> None:
    source.settimeout(STALL_TIMEOUT)
    target.settimeout(STALL_TIMEOUT)
    buffer = memoryview(bytearray(CHUNK))
    while count := source.recv_into(buffer):
        target.sendall(buffer[:count])
        if time.monotonic() >= deadline:
            raise Unfinished(
                f"machine {machine.name!r} has not moved within {TRANSFER_TIMEOUT:g} s",
                cause="its guest writes to its memory faster than it is copied",
                remedy=f"vtk vm pause {machine.name}, move it, and vtk vm resume {machine.name}",
            )


def _outcome(machine: MachineDirectory, slot: str) -> dict[str, Any]:
    """What query-migrate tells once the migration has ended, either way."""
    deadline = time.monotonic() + SETTLE_TIMEOUT
    with conversation(machine, slot) as monitor:
        while True:
            told: dict[str, Any] = monitor.execute("query-migrate")
            if told.get("status", "none") not in UNDER_WAY or time.monotonic() >= deadline:
                return told
            time.sleep(PERIOD)


def _wait_until_loaded(machine: MachineDirectory, there: Conversation) -> None:
    deadline = time.monotonic() + SETTLE_TIMEOUT
    try:
        while there.execute("query-status", timeout=SETTLE_TIMEOUT)["status"] == "inmigrate":
            if time.monotonic() >= deadline:
                raise QemuError(f"the new process of machine {machine.name!r} does not take its state over")
            time.sleep(PERIOD)
    except MonitorSilent as error:  # it ends when it cannot load
        raise _failed(machine, None, "the new process has ended") from error


def _end(machine: MachineDirectory, old: str) -> None:
    """The moment of the move. The old process has given its disks up and has nothing left to lose."""
    if not presence.kill(machine, KILL_TIMEOUT, old):
        raise MonitorSilent(
            f"the old process of machine {machine.name!r} does not end",
            cause="it hangs in the kernel",
            remedy=f"vtk vm show {machine.name}",
        )
    (machine / (presence.PID_FILE + old)).unlink(missing_ok=True)


def _go_back(machine: MachineDirectory, old: str, new: str, running: bool) -> None:
    """The old process is the machine, and goes on; the new one ends."""
    presence.kill(machine, KILL_TIMEOUT, new)
    with contextlib.suppress(MonitorSilent, QemuError), conversation(machine, old) as monitor:
        monitor.ask("migrate_cancel")
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while monitor.execute("query-migrate").get("status", "none") in UNDER_WAY[1:]:
            if time.monotonic() >= deadline:
                break
            time.sleep(PERIOD)
        if running and not monitor.execute("query-status")["running"]:
            monitor.execute("cont")
    presence.forget(machine, new)


def _forward(machine: MachineDirectory, config: MachineConfig, monitor: Conversation) -> None:
    """The guest's ssh port, which the old process has had until it ended."""
    present = monitor.execute("human-monitor-command", {"command-line": "info usernet"})
    if "HOST_FORWARD" in present:
        return
    for _ in range(2):
        line = f"hostfwd_add {NETDEV} {forwarding(config)}"
        if not monitor.execute("human-monitor-command", {"command-line": line}).strip():
            return
        # Another program was faster: as at a start, there is another port.
        config = replace(machine.config(), ssh_port=free_port())
        machine.write_config(config)


def _said(machine: MachineDirectory) -> str:
    """What the new process has said: why it did not take the state over."""
    try:
        return (machine / "qemu.log").read_text(errors="replace").strip()
    except OSError:
        return ""


def _failed(machine: MachineDirectory, old: str | None, cause: str) -> QemuError:
    """`cause`, with what either process says."""
    with contextlib.suppress(MonitorSilent, QemuError):
        if old is not None:
            with conversation(machine, old) as monitor:
                cause = monitor.execute("query-migrate").get("error-desc", cause)
    return QemuError(
        f"machine {machine.name!r} has not moved, and goes on where it was",
        cause,
        remedy=f"vtk vm logs --qemu {machine.name}",
    )
