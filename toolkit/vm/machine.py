"""The verbs on one machine: whether the state allows them, under the machine's lock, done by its provider."""

from __future__ import annotations

import contextlib
import functools
import importlib
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from minivmm.errors import ConfigError, VtkError
from toolkit.vm import PROVIDERS, console_log
from toolkit.vm.directory import MachineDirectory, Machines, check_name
from toolkit.vm.errors import StateError, Unfinished, Unsupported, WrongState
from toolkit.vm.provider import (
    AgentProvider,
    Figures,
    MachineConfig,
    Migration,
    ProgressProvider,
    Provider,
    Snapshot,
    State,
    Status,
)

if TYPE_CHECKING:
    from toolkit.vm.agent import GuestFacts

POLL_PERIOD = 0.1  # seconds between looks at a machine that is waited for
LOG_TAIL = 64 << 10  # bytes from the end of the console's log in which the last lines are looked for

REMEDIES = {
    State.STOPPED: "vtk vm start {}",
    State.CRASHED: "vtk vm start {}",
    State.STARTING: "vtk vm wait {} --for running",
    State.RUNNING: "vtk vm stop {}",
    State.PAUSED: "vtk vm resume {}",
    State.PANICKED: "vtk vm logs {}, then vtk vm kill {}",
    State.SILENT: "vtk vm kill {}",
    State.DAMAGED: "vtk vm delete --force {}",
}
"""What to do about a machine that is in the wrong state."""


@functools.cache
def provider_called(name: str) -> Provider:
    """Raises KeyError for a name that is not in PROVIDERS."""
    module, _, kind = PROVIDERS[name].partition(":")
    provider: Provider = getattr(importlib.import_module(module), kind)()
    return provider


class Machine:
    """A machine that is there."""

    def __init__(self, directory: MachineDirectory) -> None:
        self.directory = directory
        self.name = directory.name

    def config(self) -> MachineConfig:
        """Raises StateError when it is damaged, MachineMissing when it is gone."""
        return self.directory.config()

    def status(self) -> Status:
        """What it is doing. Never raises."""
        console_log.bound(self.directory / "console.log")
        try:
            return self._provider().status(self.directory)
        except VtkError as error:
            return Status(State.DAMAGED, detail=error.cause or error.message)

    def start(self, *, paused: bool = False) -> list[str]:
        """Returns what the person should know. Raises WrongState, MachineBusy, HostError, ImageError."""
        with self.directory.locked(f"start {self.name}"):
            self._require(State.STOPPED, State.CRASHED)
            return self._provider().start(self.directory, paused=paused)

    def stop(self, timeout: float) -> None:
        """Presses the power button and waits. Raises Unfinished when the guest has not ended by then."""
        with self.directory.locked(f"stop {self.name}"):
            self._require(State.RUNNING)
            self._provider().press_power_button(self.directory)
        deadline = time.monotonic() + timeout
        while (status := self.status()).state.is_up:
            if status.state not in (State.RUNNING, State.SILENT):  # silent: its process is closing what it has open
                raise Unfinished(
                    f"machine {self.name!r} does not power off",
                    cause=f"it is {status.state.value} now",
                    remedy=REMEDIES[status.state].replace("{}", self.name),
                )
            if time.monotonic() >= deadline:
                raise Unfinished(
                    f"machine {self.name!r} has not powered off within {timeout:g} s",
                    cause=status.detail or "no operating system in it has heard the power button (ACPI)",
                    remedy=f"vtk vm kill {self.name}",
                )
            time.sleep(POLL_PERIOD)

    def kill(self) -> None:
        """Ends it now. Raises WrongState, MachineBusy, MonitorSilent."""
        with self.directory.locked(f"kill {self.name}"):
            if not self.status().state.is_up:
                self._require(*(state for state in State if state.is_up))
            self._provider().kill(self.directory)

    def pause(self) -> None:
        """Raises WrongState, MachineBusy, HostError."""
        with self.directory.locked(f"pause {self.name}"):
            self._require(State.RUNNING)
            self._provider().pause(self.directory)

    def resume(self) -> None:
        """Raises WrongState, MachineBusy, HostError."""
        with self.directory.locked(f"resume {self.name}"):
            self._require(State.PAUSED)
            self._provider().resume(self.directory)

    def delete(self, machines: Machines, *, force: bool = False) -> None:
        """Removes it and its disk; with `force` also when it runs or is damaged. Raises WrongState, MachineBusy.

        One that was imported is forgotten only: it is there as it was, running or not.
        """
        with self.directory.locked(f"delete {self.name}"):
            if self._is_imported():
                machines.remove(self.directory)
                return
            provider = provider_called("qemu")  # the one that needs nothing but the directory
            if force:
                with contextlib.suppress(StateError):
                    provider = self._provider()
                if provider.status(self.directory).state.is_up:
                    provider.kill(self.directory)
            else:
                self._require(State.STOPPED, State.CRASHED, remedy=f"vtk vm delete --force {self.name}")
                provider = self._provider()
            provider.undefine(self.directory)
            machines.remove(self.directory)

    def ssh_address(self) -> tuple[str, int]:
        """Host and port at which its guest's ssh server answers. Raises StateError, Unsupported."""
        return self._provider().ssh_address(self.directory)

    def snapshot(self, name: str) -> None:
        """Keeps this moment. Raises ConfigError for a name that cannot be or is taken, WrongState, HostError."""
        check_name(name, "a snapshot")
        with self.directory.locked(f"snapshot {self.name}"):
            self._require(State.STOPPED, State.CRASHED, State.RUNNING, State.PAUSED)
            if name in {known.name for known in self._provider().snapshots(self.directory)}:
                raise ConfigError(
                    f"machine {self.name!r} has a snapshot {name!r} already",
                    remedy=f"another name, or vtk vm snapshot {self.name} --delete {name}",
                )
            self._provider().snapshot(self.directory, name)

    def restore(self, name: str) -> None:
        """Goes back to a snapshot. Raises ConfigError for one that is not there, WrongState, HostError."""
        with self.directory.locked(f"restore {self.name}"):
            self._require(State.STOPPED, State.CRASHED, State.RUNNING, State.PAUSED, State.PANICKED)
            self._require_snapshot(name)
            self._provider().restore(self.directory, name)

    def snapshots(self) -> list[Snapshot]:
        """In the order they were made. Raises HostError, Unsupported."""
        with self.directory.locked(f"snapshot {self.name}"):
            return self._provider().snapshots(self.directory)

    def delete_snapshot(self, name: str) -> None:
        """Raises ConfigError for one that is not there, WrongState, HostError."""
        with self.directory.locked(f"snapshot {self.name}"):
            self._require(State.STOPPED, State.CRASHED, State.RUNNING, State.PAUSED)
            self._require_snapshot(name)
            self._provider().delete_snapshot(self.directory, name)

    def balloon(self, size: int) -> None:
        """Asks the guest to make do with `size` bytes. Raises ConfigError for more than it has, WrongState."""
        with self.directory.locked(f"balloon {self.name}"):
            self._require(State.RUNNING, State.PAUSED)
            if not 0 < size <= self.config().memory:
                raise ConfigError(
                    f"machine {self.name!r} cannot make do with {size} bytes",
                    cause=f"its balloon leaves it something, and no more than the {self.config().memory >> 20}M it has",
                )
            self._provider().balloon(self.directory, size)

    def migrate(self, destination: str = "") -> Migration:
        """Moves it, running, to another process. Raises WrongState, HostError, ConfigError; it stays where it was
        then."""
        with self.directory.locked(f"migrate {self.name}"):
            self._require(State.RUNNING, State.PAUSED)
            return self._provider().migrate(self.directory, destination)

    def figures(self) -> Figures:
        """What it has used; nothing known of one that is not up. Raises HostError."""
        return self._provider().figures(self.directory)

    def migration_progress(self) -> tuple[int, int] | None:
        """Bytes transferred, and bytes that remain; None where the provider does not tell. Raises HostError."""
        provider = self._provider()
        return provider.migration_progress(self.directory) if isinstance(provider, ProgressProvider) else None

    def guest_facts(self) -> GuestFacts:
        """What the guest says of itself. Raises WrongState, Unsupported, AgentSilent, MachineBusy, MonitorSilent."""
        from toolkit.vm import agent

        provider = self._provider()
        if not isinstance(provider, AgentProvider):
            raise Unsupported(
                f"the guest agent of machine {self.name!r} cannot be reached",
                cause=f"its provider, {self.config().provider}, has no way to it",
            )
        self._require(State.RUNNING)
        return agent.facts(provider.ask_agent(self.directory, agent.FACTS))

    @contextlib.contextmanager
    def console(self) -> Iterator[socket.socket]:
        """The connection to the serial console, held by one at a time. Raises WrongState, MachineBusy, HostError."""
        with self.directory.held("console.lock", f"the console of machine {self.name!r}"):
            self._require(State.STARTING, State.RUNNING, State.PAUSED, State.PANICKED)
            with self._provider().console(self.directory) as connection:
                yield connection

    def last_lines(self, count: int) -> list[str]:
        """The last lines of the console."""
        try:
            with open(self.directory / "console.log", "rb") as file:
                file.seek(max(0, file.seek(0, 2) - LOG_TAIL))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return []
        return text.splitlines()[-count:] if count else []

    def _is_imported(self) -> bool:
        try:
            return self.config().imported
        except StateError:
            return False

    def _provider(self) -> Provider:
        config = self.config()
        if config.provider not in PROVIDERS:
            raise StateError(
                f"machine {self.name!r} is damaged", cause=f"config.json: no provider {config.provider!r} in this vtk"
            )
        return provider_called(config.provider)

    def _require_snapshot(self, name: str) -> None:
        if name not in {known.name for known in self._provider().snapshots(self.directory)}:
            raise ConfigError(
                f"machine {self.name!r} has no snapshot {name!r}", remedy=f"vtk vm snapshot {self.name} --list"
            )

    def _require(self, *states: State, remedy: str = "") -> Status:
        """Raises WrongState when it is in none of `states`."""
        status = self.status()
        if status.state in states:
            return status
        raise WrongState(
            f"machine {self.name!r} is {status.state.value}",
            cause=status.detail,
            remedy=remedy or REMEDIES[status.state].replace("{}", self.name),
        )


def find(machines: Machines, name: str) -> Machine:
    """Raises ConfigError for a name that cannot be, MachineMissing."""
    return Machine(machines.get(name))


def everyone(machines: Machines) -> list[tuple[Machine, Status]]:
    """All machines and what they are doing, asked at the same time: one that is silent holds nobody up."""
    from concurrent.futures import ThreadPoolExecutor

    found = []
    for name in machines.names():
        with contextlib.suppress(ConfigError):  # deleted meanwhile
            found.append(find(machines, name))
    if not found:
        return []
    with ThreadPoolExecutor(min(len(found), 8)) as pool:
        return list(zip(found, pool.map(Machine.status, found), strict=True))
