"""The provider `qemu`: a machine is a QEMU process of the user's, that outlives the vtk which started it."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import replace
from typing import Any

from toolkit.qemu.errors import QemuError
from toolkit.vm import presence
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.errors import AgentSilent, MachineBusy, MonitorSilent, Unsupported, WrongState
from toolkit.vm.launch import KILL_TIMEOUT, choose_accelerator, launch
from toolkit.vm.ports import LOOPBACK, free_port, is_free
from toolkit.vm.provider import Figures, MachineConfig, Migration, Snapshot, State, Status
from toolkit.vm.q35 import BALLOON, Launch

QUIT_TIMEOUT = 3.0  # seconds QEMU has to close its disks before it is killed
END_TIMEOUT = 3.0  # seconds that a process which is ending is waited for, before that is told
CONSOLE_TIMEOUT = 5.0
SHUTDOWN = "shutdown"  # QMP's RunState of a process that is about to end (there is no -no-shutdown)

STATES = {
    "running": State.RUNNING,
    "inmigrate": State.STARTING,
    "guest-panicked": State.PANICKED,
    "internal-error": State.PANICKED,  # its process is there, and is to be ended
}
"""QMP's RunState; every other one (paused, suspended, io-error, …) is a machine that stands still."""


class QemuProvider:
    """See provider.Provider."""

    def status(self, machine: MachineDirectory) -> Status:
        """Costs 0.1 s when the machine has a process, for QMP is asked; END_TIMEOUT at most when that is ending."""
        deadline = time.monotonic() + END_TIMEOUT
        pid = None
        while (slot := presence.slot_of(machine)) is not None:
            expected, pid = presence.is_expected(machine, slot), presence.process_id(machine, slot)
            if pid is not None:
                status = _asked(machine, slot, pid)
                if status is not None:
                    return status
            elif expected:
                return Status(State.STARTING)
            if time.monotonic() >= deadline:
                return Status(State.SILENT, pid, "the machine has ended, and its process has not")
            time.sleep(presence.POLL_PERIOD)
        return _ended(machine)

    def start(self, machine: MachineDirectory, *, paused: bool = False) -> list[str]:
        """Raises QemuMissing, QemuError with QEMU's words, ImageError, StateError, WrongState."""
        config = machine.config()
        accelerator, notes = choose_accelerator(config.accelerator)
        if not is_free(config.ssh_port):
            taken = config.ssh_port
            config = replace(config, ssh_port=free_port())
            machine.write_config(config)
            notes.append(f"port {taken} is taken by another program: ssh is on {config.ssh_port} now")
        launch(machine, config, Launch(accelerator, paused=paused))
        return notes

    def press_power_button(self, machine: MachineDirectory) -> None:
        from toolkit.vm.monitor import execute

        execute(machine, "system_powerdown")

    def kill(self, machine: MachineDirectory) -> None:
        """By QMP's `quit`, which leaves the disk's file whole; by SIGKILL when QEMU does not hear."""
        from toolkit.vm.monitor import execute

        with contextlib.suppress(MonitorSilent, QemuError):
            self._settled(machine)
        with contextlib.suppress(MonitorSilent, QemuError):  # it is ended below
            execute(machine, "quit", timeout=QUIT_TIMEOUT)
        gone = presence.wait_for_end(machine, QUIT_TIMEOUT) or presence.kill(machine, KILL_TIMEOUT)
        if not gone:
            raise MonitorSilent(
                f"the process of machine {machine.name!r} does not end",
                cause="it hangs in the kernel, on a disk or a network that does not answer",
                remedy=f"ps -o pid,stat,wchan -p {presence.process_id(machine) or 'PID'}",
            )
        presence.forget(machine)

    def pause(self, machine: MachineDirectory) -> None:
        from toolkit.vm.monitor import execute

        self._settled(machine)
        execute(machine, "stop")

    def resume(self, machine: MachineDirectory) -> None:
        from toolkit.vm.monitor import execute

        self._settled(machine)
        execute(machine, "cont")

    def define(self, machine: MachineDirectory) -> None:
        """Its directory is all there is of it."""

    def undefine(self, machine: MachineDirectory) -> None:
        """Its directory is all there is of it."""

    def ssh_address(self, machine: MachineDirectory) -> tuple[str, int]:
        if presence.incoming(machine) is not None:  # it moves, or a vtk was killed while it did
            with contextlib.suppress(MachineBusy, MonitorSilent, QemuError), machine.locked("ssh"):
                self._settled(machine)
        return LOOPBACK, machine.config().ssh_port

    def snapshot(self, machine: MachineDirectory, name: str) -> None:
        from toolkit.vm import snapshots

        snapshots.keep(machine, self._settled(machine), name)

    def restore(self, machine: MachineDirectory, name: str) -> None:
        from toolkit.vm import snapshots

        snapshots.restore(machine, self._settled(machine), name)

    def snapshots(self, machine: MachineDirectory) -> list[Snapshot]:
        from toolkit.vm import snapshots

        return snapshots.found(machine, machine.config())

    def delete_snapshot(self, machine: MachineDirectory, name: str) -> None:
        from toolkit.vm import snapshots

        snapshots.delete(machine, self._settled(machine), name)

    def balloon(self, machine: MachineDirectory, size: int) -> None:
        """Raises WrongState when no driver of the guest's is at the device."""
        from toolkit.vm.monitor import conversation

        self._settled(machine)
        with conversation(machine) as monitor:
            device = monitor.ask("x-query-virtio-status", {"path": f"/machine/peripheral/{BALLOON}/virtio-backend"})
            if device is not None and not any("DRIVER_OK" in word for word in device["status"]["statuses"]):
                raise WrongState(
                    f"nothing in machine {machine.name!r} hears its balloon",
                    cause="its guest has no driver for it (Linux: virtio_balloon), or has not loaded it yet",
                    remedy=f"vtk vm wait {machine.name} --for ssh",
                )
            monitor.execute("balloon", {"value": size})

    def migrate(self, machine: MachineDirectory, destination: str) -> Migration:
        """To a new process of the QEMU that is installed now. Raises Unsupported for a destination."""
        if destination:
            raise Unsupported(
                f"machine {machine.name!r} cannot go to {destination!r}",
                cause="a machine of the provider qemu has its files here, and moves between processes of this host",
                remedy=f"vtk vm migrate {machine.name}",
            )
        from toolkit.vm import migration

        return migration.migrate(machine, machine.config())

    def migration_progress(self, machine: MachineDirectory) -> tuple[int, int]:
        """See provider.ProgressProvider."""
        from toolkit.vm import migration

        return migration.progress(machine)

    def figures(self, machine: MachineDirectory) -> Figures:
        from toolkit.vm import qemu_figures

        return qemu_figures.figures(machine)

    def ask_agent(self, machine: MachineDirectory, questions: list[tuple[str, dict[str, Any]]]) -> list[Any]:
        """See provider.AgentProvider. Tells at once when nobody has opened the port."""
        from toolkit.vm import agent
        from toolkit.vm.monitor import conversation
        from toolkit.vm.qemu_figures import agent_is_there

        with conversation(machine) as monitor:
            there = agent_is_there(monitor)
        if not there:
            raise AgentSilent(
                f"there is no guest agent in machine {machine.name!r}",
                cause="no program in it has opened the agent's port",
                remedy="install qemu-guest-agent in it; images built by vtk have it",
            )
        return agent.ask(machine, questions)

    def _settled(self, machine: MachineDirectory) -> MachineConfig:
        """Its configuration, once nothing is left of a move that was broken off. The caller holds the lock."""
        if presence.incoming(machine) is not None:
            from toolkit.vm import migration

            migration.settle(machine, machine.config())
        return machine.config()

    def console(self, machine: MachineDirectory) -> socket.socket:
        try:
            return machine.connect(presence.file_name(machine, "console.sock"), CONSOLE_TIMEOUT)
        except OSError as error:
            raise MonitorSilent(
                f"the console of machine {machine.name!r} does not answer",
                cause=error.strerror or str(error),
                remedy=f"vtk vm show {machine.name}",
            ) from error


def _asked(machine: MachineDirectory, slot: str, pid: int) -> Status | None:
    """What QEMU says; None when its process is ending, or has handed the machine over to another."""
    from toolkit.vm.monitor import execute

    try:
        answer = execute(machine, "query-status")["status"]
    except (MonitorSilent, QemuError) as error:
        if (presence.slot_of(machine), presence.process_id(machine, slot)) != (slot, pid):
            return None
        return Status(State.SILENT, pid, machine.holder() or error.cause)
    if answer == SHUTDOWN:
        return None
    state = STATES.get(answer, State.PAUSED)
    return Status(state, pid, "" if answer == state.value else f"QEMU: {answer}")


def _ended(machine: MachineDirectory) -> Status:
    if presence.left_behind(machine):
        return Status(State.CRASHED, detail="its process was killed or died, or the host went down under it")
    return Status(State.STOPPED)
