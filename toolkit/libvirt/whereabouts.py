"""At which libvirt a machine is, also when whoever was moving it was killed."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

from toolkit.libvirt.connection import Connection, ask, library
from toolkit.libvirt.domain_xml import domain_id
from toolkit.libvirt.errors import DomainMissing
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.errors import StateError
from toolkit.vm.provider import MachineConfig

MIGRATING = "migrating"  # the file that says where to
LOOK_TIMEOUT = 5.0  # seconds


def identity(machine: MachineDirectory, config: MachineConfig) -> str:
    """The UUID of the machine's domain: the one it was imported with, or that of the domain vtk makes."""
    if not config.imported:
        return domain_id(config)
    try:
        return (machine / "domain").read_text().strip()
    except OSError as error:
        raise StateError(
            f"machine {machine.name!r} is damaged", cause="the file `domain` cannot be read", remedy="import it anew"
        ) from error


def location(machine: MachineDirectory, config: MachineConfig) -> str:
    """The URI: config.json's, unless the machine was on its way and has arrived. Raises HostError.

    As long as the source has it up, it is there: the destination's is an empty shell, that libvirt removes when the
    one who manages the migration is gone. The other way round once the source stands still for the last of the memory.
    """
    try:
        destination = (machine / MIGRATING).read_text().strip()
    except OSError:
        return config.uri
    source = _look(machine, config, config.uri)
    if source is _Found.UP:
        return config.uri
    target = _look(machine, config, destination)
    if target is _Found.UP or (source is _Found.MISSING and target is not _Found.MISSING):
        return destination
    return config.uri


class _Found(Enum):
    UP = "up"
    BETWEEN = "between"  # stands still, or is being filled, for the migration
    OFF = "off"
    MISSING = "missing"


def _look(machine: MachineDirectory, config: MachineConfig, uri: str) -> _Found:
    libvirt = library()

    def look(connection: Connection) -> _Found:
        state, reason = connection.lookupByUUIDString(identity(machine, config)).state()
        if state == libvirt.VIR_DOMAIN_SHUTOFF:
            return _Found.OFF
        between = (libvirt.VIR_DOMAIN_PAUSED_MIGRATION, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)
        if state == libvirt.VIR_DOMAIN_NOSTATE or (state == libvirt.VIR_DOMAIN_PAUSED and reason in between):
            return _Found.BETWEEN
        return _Found.UP

    try:
        return ask(uri, look, timeout=LOOK_TIMEOUT)
    except DomainMissing:
        return _Found.MISSING


def settle(machine: MachineDirectory) -> MachineConfig:
    """The machine's configuration with the URI it is at, written down. The caller holds the machine's lock."""
    config = machine.config()
    if (machine / MIGRATING).exists():
        config = replace(config, uri=location(machine, config))
        machine.write_config(config)
        (machine / MIGRATING).unlink(missing_ok=True)
    return config
