"""The provider `libvirt`: a machine is a domain of a libvirt daemon, on this host or another."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from minivmm.errors import ConfigError, HostError, VtkError
from toolkit.libvirt import forwarding, storage
from toolkit.libvirt.connection import (
    ANSWER_TIMEOUT,
    PROBE_TIMEOUT,
    Connection,
    Domain,
    ask,
    host_of,
    is_local,
    library,
)
from toolkit.libvirt.domain_xml import domain_xml
from toolkit.libvirt.errors import DomainMissing, LibvirtRefused
from toolkit.libvirt.whereabouts import identity, location, settle
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.launch import choose_accelerator
from toolkit.vm.provider import Figures, MachineConfig, Migration, Snapshot, State, Status

STATUS_TIMEOUT = 5.0  # seconds, and as long again to connect: what `list` waits for at most
START_TIMEOUT = 60.0  # seconds; 0.3 to 0.6 on an idle host
KILL_TIMEOUT = 40.0  # seconds: libvirt itself waits up to 15 s for SIGTERM and as long for SIGKILL

Answer = TypeVar("Answer")


class LibvirtProvider:
    """See toolkit.vm.provider.Provider."""

    def define(self, machine: MachineDirectory) -> None:
        """Gives the daemon the domain, and the files where it cannot read this user's."""
        config = machine.config()
        if config.imported:
            return
        ask(config.uri, lambda connection: _refuse_taken_name(connection, config))
        try:
            self._define(machine, config)
        except BaseException:  # Ctrl-C too, while the daemon goes on with it
            with contextlib.suppress(VtkError):
                self.undefine(machine)
            raise

    def _define(self, machine: MachineDirectory, config: MachineConfig) -> None:
        files = storage.place(machine, config)
        hypervisor, cpu = _hypervisor(config)
        key = (machine / "id_ed25519.pub").read_bytes()
        xml = domain_xml(config, files, hypervisor=hypervisor, cpu=cpu, key=key)
        ask(config.uri, lambda connection: connection.defineXML(xml), timeout=PROBE_TIMEOUT)

    def undefine(self, machine: MachineDirectory) -> None:
        """The domain and the files made for it at its host; one that was imported stays as it is."""
        config = settle(machine)
        if config.imported:
            return
        libvirt = library()
        flags = (
            libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        )
        with contextlib.suppress(DomainMissing):
            with_domain(machine, lambda domain: domain.undefineFlags(flags), timeout=PROBE_TIMEOUT)
        storage.remove(machine, config)

    def status(self, machine: MachineDirectory) -> Status:
        """As libvirt has it, with its reason where that says more."""
        from toolkit.libvirt.states import status_of

        config = machine.config()
        try:
            state, reason = with_domain(machine, lambda domain: domain.state(), timeout=STATUS_TIMEOUT)
        except DomainMissing:
            if config.imported:
                return Status(State.DAMAGED, detail=f"its domain is gone from {config.uri}")
            return Status(State.STOPPED, detail=f"not defined at {config.uri}: starting defines it anew")
        except VtkError as error:
            told = "; ".join(filter(None, (error.message, error.cause, error.remedy and f"try: {error.remedy}")))
            return Status(State.SILENT, detail=told)
        return status_of(state, reason)

    def start(self, machine: MachineDirectory, *, paused: bool = False) -> list[str]:
        """Raises LibvirtRefused with libvirt's words, which has QEMU's, and other HostErrors."""
        libvirt = library()
        config = settle(machine)
        try:
            running_on = with_domain(machine, lambda domain: domain.XMLDesc().startswith("<domain type='kvm'"))
        except DomainMissing:
            if config.imported:
                raise
            self._define(machine, config)
            running_on = _hypervisor(config)[0] == "kvm"
        notes = [] if running_on or config.imported or not is_local(config.uri) else _why_emulation(config)
        if not config.imported:
            storage.new_console_log(machine)
        flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        with_domain(machine, lambda domain: domain.createWithFlags(flags), timeout=START_TIMEOUT)
        return notes + self._forward(machine)

    def _forward(self, machine: MachineDirectory) -> list[str]:
        """ssh's port to the guest; another one when it is taken. What was changed is told."""
        config = machine.config()
        if config.imported:
            return []
        port = with_domain(machine, lambda domain: forwarding.forward(domain, config.ssh_port))
        if port in (None, config.ssh_port):
            return []
        machine.write_config(replace(config, ssh_port=port))
        return [f"port {config.ssh_port} is taken by another program: ssh is on {port} now"]

    def press_power_button(self, machine: MachineDirectory) -> None:
        with_domain(machine, lambda domain: domain.shutdownFlags(library().VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN))

    def kill(self, machine: MachineDirectory) -> None:
        """QEMU is asked to end, so that it closes its disks, and killed when it does not."""

        libvirt = library()

        def destroy(domain: Domain) -> None:
            try:
                domain.destroy()
            except libvirt.libvirtError:
                if domain.isActive():  # it has not ended by itself meanwhile
                    raise

        with contextlib.suppress(DomainMissing):
            with_domain(machine, destroy, timeout=KILL_TIMEOUT)

    def pause(self, machine: MachineDirectory) -> None:
        with_domain(machine, lambda domain: domain.suspend())

    def resume(self, machine: MachineDirectory) -> None:
        libvirt = library()

        def resume(domain: Domain) -> None:
            if domain.state()[0] == libvirt.VIR_DOMAIN_PMSUSPENDED:
                domain.pMWakeup()
            else:
                domain.resume()

        with_domain(machine, resume)

    def console(self, machine: MachineDirectory) -> socket.socket:
        from toolkit.libvirt.console import open_console

        return open_console(machine)

    def ssh_address(self, machine: MachineDirectory) -> tuple[str, int]:
        from toolkit.libvirt.reaching import address_of

        return address_of(machine)

    def snapshot(self, machine: MachineDirectory, name: str) -> None:
        from toolkit.libvirt import snapshots

        snapshots.take(machine, name)

    def restore(self, machine: MachineDirectory, name: str) -> None:
        from toolkit.libvirt import snapshots

        snapshots.revert(machine, name)
        self._forward(machine)

    def snapshots(self, machine: MachineDirectory) -> list[Snapshot]:
        from toolkit.libvirt import snapshots

        return snapshots.known(machine)

    def delete_snapshot(self, machine: MachineDirectory, name: str) -> None:
        from toolkit.libvirt import snapshots

        snapshots.delete(machine, name)

    def balloon(self, machine: MachineDirectory, size: int) -> None:
        live = library().VIR_DOMAIN_AFFECT_LIVE
        with_domain(machine, lambda domain: domain.setMemoryFlags(size >> 10, live))

    def migrate(self, machine: MachineDirectory, destination: str) -> Migration:
        from toolkit.libvirt.migration import migrate

        moved = migrate(machine, destination)
        self._forward(machine)
        return moved

    def migration_progress(self, machine: MachineDirectory) -> tuple[int, int]:
        """Bytes transferred, and bytes that remain, of memory and copied disks together."""
        told = with_domain(machine, lambda domain: domain.jobStats(), timeout=STATUS_TIMEOUT)
        return told.get("data_processed", 0), told.get("data_remaining", 0)

    def ask_agent(self, machine: MachineDirectory, questions: list[tuple[str, dict[str, Any]]]) -> list[Any]:
        from toolkit.libvirt.agent import ask_agent

        return ask_agent(machine, questions)

    def figures(self, machine: MachineDirectory) -> Figures:
        from toolkit.libvirt.figures import figures_of

        return figures_of(machine)


def with_domain(
    machine: MachineDirectory, question: Callable[[Domain], Answer], *, timeout: float = ANSWER_TIMEOUT
) -> Answer:
    """What `question` returns for the machine's domain. Raises DomainMissing, and what `ask` raises."""
    config = machine.config()
    uri = location(machine, config)

    def put(connection: Connection) -> Answer:
        return question(connection.lookupByUUIDString(identity(machine, config)))

    try:
        return ask(uri, put, timeout=timeout)
    except DomainMissing as error:
        raise DomainMissing(
            f"machine {machine.name!r} has no domain at {uri}",
            error.code,
            cause="somebody undefined it, or the host was installed anew",
            remedy=f"vtk vm delete {machine.name}" if config.imported else f"vtk vm start {machine.name}",
        ) from error
    except LibvirtRefused as error:
        raise LibvirtRefused(
            f"libvirt at {uri} refuses, for machine {machine.name!r}",
            error.code,
            cause=error.cause,
            remedy=error.remedy or f"vtk vm show {machine.name}",
        ) from error


def _refuse_taken_name(connection: Connection, config: MachineConfig) -> None:
    """A domain of that name may be anybody's. Raises ConfigError."""
    libvirt = library()
    try:
        connection.lookupByName(config.name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise
        return
    raise ConfigError(
        f"there is a domain {config.name!r} at {config.uri} already",
        cause="libvirt has one machine of a name, whoever made it",
        remedy=f"another name, or vtk vm import {config.name} --uri {config.uri} to have that one",
    )


def _hypervisor(config: MachineConfig) -> tuple[str, dict[str, str]]:
    """The domain's type, and its CPU. Raises HostError when KVM was asked for and cannot be used."""
    if is_local(config.uri):
        accelerator, _ = choose_accelerator(config.accelerator)
        kvm = accelerator.value == "kvm"
    else:
        kvm = config.accelerator != "tcg" and _has_kvm(config)
    if not kvm:
        return "qemu", {"mode": "maximum"}
    # Offered by software back ends that then refuse the MSR (toolkit.qemu.microvm.default_cpu).
    return "kvm", {"mode": "host-passthrough", "without": "arch-capabilities"}


def _has_kvm(config: MachineConfig) -> bool:
    """Whether the host's libvirt makes KVM machines. Raises HostError when KVM was asked for and it does not."""
    try:
        ask(
            config.uri,
            lambda connection: connection.getDomainCapabilities(None, "x86_64", "q35", "kvm"),
            timeout=PROBE_TIMEOUT,
        )
    except LibvirtRefused as error:
        if config.accelerator == "kvm":
            raise HostError(
                f"{host_of(config.uri)} cannot run KVM machines", cause=error.cause, remedy="--accel tcg"
            ) from error
        return False
    return True


def _why_emulation(config: MachineConfig) -> list[str]:
    if config.accelerator == "tcg":
        return []
    with contextlib.suppress(HostError):
        return choose_accelerator("auto")[1]
    return []
