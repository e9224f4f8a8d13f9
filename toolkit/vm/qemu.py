"""The provider `qemu`: a machine is a QEMU process of the user's, that outlives the vtk which started it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

from minivmm.errors import HostError, ImageError
from toolkit.host import kvm_back_end
from toolkit.qemu.errors import QemuError, QemuMissing
from toolkit.qemu.find import find_qemu
from toolkit.qemu.microvm import Accelerator
from toolkit.vm import presence
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.errors import MonitorSilent, StateError, Unsupported
from toolkit.vm.ports import LOOPBACK, free_port, is_free
from toolkit.vm.provider import Figures, MachineConfig, Migration, Snapshot, State, Status
from toolkit.vm.q35 import arguments, sockets

START_TIMEOUT = 30.0  # seconds until QEMU has set the machine up; 0.1 to 0.3 on an idle machine
QUIT_TIMEOUT = 3.0  # seconds QEMU has to close its disks before it is killed
KILL_TIMEOUT = 10.0  # seconds the kernel has to take a killed process down
CONSOLE_TIMEOUT = 5.0

STATES = {
    "running": State.RUNNING,
    "inmigrate": State.STARTING,
    "guest-panicked": State.PANICKED,
    "internal-error": State.CRASHED,
    "shutdown": State.STOPPED,
}
"""QMP's RunState; every other one (paused, suspended, io-error, …) is a machine that stands still."""


class QemuProvider:
    """See provider.Provider."""

    def status(self, machine: MachineDirectory) -> Status:
        """Costs 0.1 s when the machine has a process, for QMP is asked."""
        if not presence.is_alive(machine):
            return _ended(machine)
        from toolkit.vm.monitor import execute

        pid = presence.process_id(machine)
        if pid is None:
            return Status(State.STARTING)
        try:
            answer = execute(machine, "query-status")["status"]
        except MonitorSilent as error:
            return Status(State.SILENT, pid, error.cause) if presence.is_alive(machine) else _ended(machine)
        except QemuError as error:
            return Status(State.SILENT, pid, error.words)
        state = STATES.get(answer, State.PAUSED)
        return Status(state, pid, "" if answer == state.value else f"QEMU: {answer}")

    def start(self, machine: MachineDirectory, *, paused: bool = False) -> list[str]:
        """Raises QemuMissing, QemuError with QEMU's words, ImageError, StateError, WrongState."""
        config = machine.config()
        binary = find_qemu("x86_64")
        accelerator, notes = choose_accelerator(config.accelerator)
        if accelerator.value not in binary.accelerators:
            raise QemuMissing(
                f"{binary.path} has no accelerator {accelerator.value}",
                cause=f"it was built with {', '.join(binary.accelerators)}",
                remedy="sudo apt install qemu-system-x86",
            )
        for file in (config.kernel, config.initrd, config.disk):
            _check_readable(file)
        if not is_free(config.ssh_port):
            taken = config.ssh_port
            config = replace(config, ssh_port=free_port())
            machine.write_config(config)
            notes.append(f"port {taken} is taken by another program: ssh is on {config.ssh_port} now")
        try:
            running = presence.claim(machine)
        except OSError as error:
            raise StateError(f"{machine / 'running'} cannot be used", cause=error.strerror or str(error)) from error
        try:
            line = arguments(binary.path, machine, config, accelerator, paused=paused)
            self._spawn(machine, config, line, running)
        finally:
            os.close(running)
        return notes

    def _spawn(self, machine: MachineDirectory, config: MachineConfig, line: list[str], running: int) -> None:
        """Returns when QEMU has set the machine up: its first process ends then (-daemonize)."""
        (machine / "qemu.pid").unlink(missing_ok=True)
        if (machine / "console.log").exists():
            (machine / "console.log").replace(machine / "console.log.1")
        # The sockets listen before QEMU is there: who connects early waits, and nobody finds them missing.
        with machine.listen("qmp.sock") as qmp, machine.listen("console.sock") as console:
            line = [*line, *sockets(machine, qmp=qmp.fileno(), console=console.fileno())]
            with open(machine / "qemu.log", "wb+") as log:
                try:
                    done = subprocess.run(
                        line,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        cwd=machine.path,
                        pass_fds=(qmp.fileno(), console.fileno(), running),
                        start_new_session=True,  # the terminal's Ctrl-C is not for QEMU
                        timeout=START_TIMEOUT,
                        check=False,
                    )
                except OSError as error:
                    raise QemuError(f"{line[0]} does not start", error.strerror or str(error)) from error
                except subprocess.TimeoutExpired as error:
                    presence.kill(machine, KILL_TIMEOUT)
                    raise QemuError(
                        f"QEMU has not set machine {config.name!r} up within {START_TIMEOUT:g} s",
                        remedy=f"vtk vm logs --qemu {config.name}",
                    ) from error
                log.seek(0)
                words = log.read().decode(errors="replace").strip()
        if done.returncode != 0:
            words = words or f"it ended with status {done.returncode}"
            raise QemuError(f"QEMU does not start machine {config.name!r}", words)

    def press_power_button(self, machine: MachineDirectory) -> None:
        from toolkit.vm.monitor import execute

        execute(machine, "system_powerdown")

    def kill(self, machine: MachineDirectory) -> None:
        """By QMP's `quit`, which leaves the disk's file whole; by SIGKILL when QEMU does not hear."""
        from toolkit.vm.monitor import execute

        with contextlib.suppress(MonitorSilent, QemuError):  # it is ended below
            execute(machine, "quit", timeout=QUIT_TIMEOUT)
        gone = presence.wait_for_end(machine, QUIT_TIMEOUT) or presence.kill(machine, KILL_TIMEOUT)
        if not gone:
            raise MonitorSilent(
                f"the process of machine {machine.name!r} does not end",
                cause="it hangs in the kernel, on a disk or a network that does not answer",
                remedy=f"ps -o pid,stat,wchan -p {presence.process_id(machine) or 'PID'}",
            )
        (machine / "qemu.pid").unlink(missing_ok=True)

    def pause(self, machine: MachineDirectory) -> None:
        from toolkit.vm.monitor import execute

        execute(machine, "stop")

    def resume(self, machine: MachineDirectory) -> None:
        from toolkit.vm.monitor import execute

        execute(machine, "cont")

    def define(self, machine: MachineDirectory) -> None:
        """Its directory is all there is of it."""

    def undefine(self, machine: MachineDirectory) -> None:
        """Its directory is all there is of it."""

    def ssh_address(self, machine: MachineDirectory) -> tuple[str, int]:
        return LOOPBACK, machine.config().ssh_port

    def snapshot(self, machine: MachineDirectory, name: str) -> None:
        raise Unsupported(f"machine {machine.name!r} cannot keep {name!r}")

    def restore(self, machine: MachineDirectory, name: str) -> None:
        raise Unsupported(f"machine {machine.name!r} cannot go back to {name!r}")

    def snapshots(self, machine: MachineDirectory) -> list[Snapshot]:
        raise Unsupported(f"machine {machine.name!r} has none")

    def delete_snapshot(self, machine: MachineDirectory, name: str) -> None:
        raise Unsupported(f"machine {machine.name!r} has no {name!r}")

    def balloon(self, machine: MachineDirectory, size: int) -> None:
        raise Unsupported(f"machine {machine.name!r} cannot give {size}")

    def migrate(self, machine: MachineDirectory, destination: str) -> Migration:
        raise Unsupported(f"machine {machine.name!r} cannot go to {destination!r}")

    def figures(self, machine: MachineDirectory) -> Figures:
        raise Unsupported(f"machine {machine.name!r} has no figures")

    def console(self, machine: MachineDirectory) -> socket.socket:
        try:
            return machine.connect("console.sock", CONSOLE_TIMEOUT)
        except OSError as error:
            raise MonitorSilent(
                f"the console of machine {machine.name!r} does not answer",
                cause=error.strerror or str(error),
                remedy=f"vtk vm show {machine.name}",
            ) from error


def choose_accelerator(asked: str) -> tuple[Accelerator, list[str]]:
    """Who executes the guest, and why not KVM. Raises HostError when KVM was asked for and cannot be used."""
    if asked == "tcg":
        return Accelerator.TCG, []
    from minivmm.kvm.system import Kvm

    try:
        Kvm().close()
    except HostError as error:
        if asked == "kvm":
            raise
        return Accelerator.TCG, [f"running under emulation (TCG): {error.message}"]
    back_end = kvm_back_end()
    if asked == "kvm" or back_end in ("vmx", "svm"):
        return Accelerator.KVM, []
    reason = f"under this host's {back_end or 'unknown'} KVM a whole operating system is slower still (--accel kvm)"
    return Accelerator.TCG, [f"running under emulation (TCG): {reason}"]


def _ended(machine: MachineDirectory) -> Status:
    if presence.left_behind(machine):
        return Status(State.CRASHED, detail="its process was killed or died, or the host went down under it")
    return Status(State.STOPPED)


def _check_readable(file: str) -> None:
    if not file:
        return
    try:
        with Path(file).open("rb"):
            return
    except OSError as error:
        raise ImageError(file, "cannot be read", cause=error.strerror or str(error)) from error
