"""The provider `minivmm`: a machine is a process of the user's in which our own hypervisor runs a guest on KVM.

Its process is asked and told by QMP as QEMU's is. What minivmm cannot do yet is refused with the reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from minivmm.errors import ConfigError, HostError, VtkError
from toolkit.vm import minivmm_outcome, presence
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.errors import MonitorSilent, StateError, Unsupported
from toolkit.vm.provider import Figures, Migration, Snapshot, State, Status

START_TIMEOUT = 60.0  # seconds until the machine is made; 0.1, and a few for a bzImage that is unpacked first
QUIT_TIMEOUT = 3.0  # seconds the process has to end in order before it is killed
KILL_TIMEOUT = 10.0  # seconds the kernel has to take a killed process down
CONSOLE_TIMEOUT = 5.0
REPORT_LIMIT = 64 << 10  # bytes
NO_STATE = "minivmm does not save a machine's state yet"

PACKAGES = Path(__file__).parents[2]
BECOME = "import sys; sys.path.append(sys.argv.pop(1)); from toolkit.vm.minivmm_process import main; main()"
"""Where this package is, and the program of the machine's process; the current directory is nowhere in its path."""

STATES = {"running": State.RUNNING, "paused": State.PAUSED, "prelaunch": State.PAUSED}
"""QMP's RunState of a machine that has not ended (minivmm.control.controlled)."""


class MinivmmProvider:
    """See provider.Provider."""

    def define(self, machine: MachineDirectory) -> None:
        """Raises ConfigError, ImageError for what minivmm has no machine for."""
        from toolkit.vm.minivmm_kind import planned

        config = machine.config()
        planned(machine, config)
        machine.write_config(replace(config, mac="", ssh_port=0))  # it has no network

    def undefine(self, machine: MachineDirectory) -> None:
        """Its directory is all there is of it."""

    def status(self, machine: MachineDirectory) -> Status:
        """Costs 0.1 s when the machine has a process, for QMP is asked."""
        if not presence.is_alive(machine):
            return minivmm_outcome.ended(machine)
        pid, state, cause = presence.process_id(machine), "shutdown", ""
        if not minivmm_outcome.is_kept(machine):
            if pid is None:
                return Status(State.STARTING)
            from toolkit.qemu.errors import QemuError
            from toolkit.vm.monitor import execute

            try:
                state = execute(machine, "query-status")["status"]
            except (MonitorSilent, QemuError) as error:
                state, cause = "silent", error.cause
        if state in STATES:
            return Status(STATES[state], pid, "it has not begun" if state == "prelaunch" else "")
        # Its end was told, or is kept by now, or is the reason why it does not answer: the process is about to end.
        ending = state == "shutdown" or minivmm_outcome.is_kept(machine)
        if presence.wait_for_end(machine, QUIT_TIMEOUT if ending else 0.0):
            return minivmm_outcome.ended(machine)
        return Status(State.SILENT, pid, cause or "the machine has ended, and its process has not")

    def start(self, machine: MachineDirectory, *, paused: bool = False) -> list[str]:
        """Raises HostError, ConfigError, ImageError as the machine's process tells them; StateError, WrongState."""
        with contextlib.ExitStack() as held:
            try:
                running = presence.claim(machine)
                held.callback(os.close, running)
                minivmm_outcome.forget(machine)
                log = held.enter_context(open(machine / "qemu.log", "wb"))
            except OSError as error:
                raise StateError(f"{machine.path} cannot be used", cause=error.strerror or str(error)) from error
            # The sockets listen before the process is there: who connects early waits, and nobody finds them missing.
            qmp, console = (held.enter_context(machine.listen(name)) for name in ("qmp.sock", "console.sock"))
            reading, report = os.pipe2(os.O_CLOEXEC)
            held.callback(os.close, reading)
            inherited = [running, qmp.fileno(), console.fileno(), report]
            orders = json.dumps([str(machine.path), *inherited, paused])
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-c", BECOME, str(PACKAGES), orders],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=inherited,
                    start_new_session=True,  # the terminal's Ctrl-C is not for the machine
                )
            except OSError as error:
                raise HostError(f"{sys.executable} does not start", cause=error.strerror or str(error)) from error
            finally:
                os.close(report)
            told = _read_report(reading)
            if told is None:
                process.kill()
            process.wait()  # the machine is a child of this one, that is left alone by now
        failure = _failure(machine, told)
        if failure is not None:
            if told is None or not presence.wait_for_end(machine, QUIT_TIMEOUT):
                presence.kill(machine, KILL_TIMEOUT)
            presence.forget(machine)
            raise failure
        return []

    def press_power_button(self, machine: MachineDirectory) -> None:
        """Raises Unsupported where no guest can hear it."""
        from toolkit.qemu.errors import QemuError
        from toolkit.vm.monitor import execute

        try:
            execute(machine, "system_powerdown")
        except QemuError as error:
            raise Unsupported(
                f"machine {machine.name!r} cannot be asked to shut down",
                cause=error.words,
                remedy=f"vtk vm kill {machine.name}",
            ) from error

    def kill(self, machine: MachineDirectory) -> None:
        """By QMP's `quit`; by SIGKILL when the process does not hear."""
        from toolkit.qemu.errors import QemuError
        from toolkit.vm.monitor import execute

        with contextlib.suppress(MonitorSilent, QemuError):  # it is ended below
            execute(machine, "quit", timeout=QUIT_TIMEOUT)
        if not (presence.wait_for_end(machine, QUIT_TIMEOUT) or presence.kill(machine, KILL_TIMEOUT)):
            raise MonitorSilent(
                f"the process of machine {machine.name!r} does not end",
                cause="it hangs in the kernel, on a disk that does not answer",
                remedy=f"ps -o pid,stat,wchan -p {presence.process_id(machine) or 'PID'}",
            )
        presence.forget(machine)

    def pause(self, machine: MachineDirectory) -> None:
        from toolkit.vm.monitor import execute

        execute(machine, "stop")

    def resume(self, machine: MachineDirectory) -> None:
        from toolkit.vm.monitor import execute

        execute(machine, "cont")

    def console(self, machine: MachineDirectory) -> socket.socket:
        try:
            return machine.connect("console.sock", CONSOLE_TIMEOUT)
        except OSError as error:
            raise MonitorSilent(
                f"the console of machine {machine.name!r} does not answer",
                cause=error.strerror or str(error),
                remedy=f"vtk vm show {machine.name}",
            ) from error

    def balloon(self, machine: MachineDirectory, size: int) -> None:
        """Raises Unsupported for one that has no balloon: a domain's kernel has."""
        from toolkit.qemu.errors import QemuError
        from toolkit.vm.monitor import execute

        try:
            execute(machine, "balloon", {"value": size})
        except QemuError as error:
            raise _unsupported(machine, f"cannot make do with {size >> 20}M", error.words) from error

    def figures(self, machine: MachineDirectory) -> Figures:
        """Of its process, and KVM's own count of exits since the guest's last reset. Its disks count nothing."""
        from toolkit.vm import qemu_figures

        found = qemu_figures.figures(machine)
        if found.cpu_time is None:
            return found
        return replace(
            found,
            memory=machine.config().memory,
            disk_read=None,
            disk_written=None,
            disk_reads=None,
            disk_writes=None,
        )

    # --- what it cannot do -------------------------------------------------------------------------------------------
    def ssh_address(self, machine: MachineDirectory) -> tuple[str, int]:
        raise _unsupported(machine, "has no ssh", "minivmm has no network device yet", f"vtk vm console {machine.name}")

    def snapshot(self, machine: MachineDirectory, name: str) -> None:
        raise _unsupported(machine, f"cannot keep {name!r}", NO_STATE)

    def restore(self, machine: MachineDirectory, name: str) -> None:
        raise _unsupported(machine, f"cannot go back to {name!r}", NO_STATE)

    def snapshots(self, machine: MachineDirectory) -> list[Snapshot]:
        raise _unsupported(machine, "has no snapshots", NO_STATE)

    def delete_snapshot(self, machine: MachineDirectory, name: str) -> None:
        raise _unsupported(machine, f"has no snapshot {name!r}", NO_STATE)

    def migrate(self, machine: MachineDirectory, destination: str) -> Migration:
        raise _unsupported(machine, f"cannot move to {destination or 'another process'}", NO_STATE)


def _unsupported(machine: MachineDirectory, what: str, cause: str, remedy: str = "") -> Unsupported:
    return Unsupported(
        f"machine {machine.name!r} {what}", cause=cause, remedy=remedy or "vtk vm create NAME --provider qemu …"
    )


# --- starting --------------------------------------------------------------------------------------------------------
def _read_report(pipe: int) -> bytes | None:
    """All that the machine's process reports until it closes the pipe; None when START_TIMEOUT passes first."""
    deadline, told = time.monotonic() + START_TIMEOUT, b""
    while select.select([pipe], [], [], max(deadline - time.monotonic(), 0))[0]:
        data = os.read(pipe, REPORT_LIMIT)
        if not data:
            return told
        told += data
    return None


def _failure(machine: MachineDirectory, told: bytes | None) -> VtkError | None:
    """What the report says went wrong; a process that dies, or hangs, reports nothing."""
    if told:
        report = json.loads(told)
        kind = HostError if report.get("host") else ConfigError
        return kind(report["message"], cause=report["cause"], remedy=report["remedy"]) if report else None
    what = f"within {START_TIMEOUT:g} s" if told is None else "and has ended"
    words = (machine / "qemu.log").read_text(errors="replace").strip().splitlines()
    return HostError(
        f"the process of machine {machine.name!r} has not set it up {what}",
        cause=words[-1] if words else "it said nothing",
        remedy=f"vtk vm logs --qemu {machine.name}",
    )
