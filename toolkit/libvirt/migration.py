"""Live migration of a domain from one daemon to another: libvirt's own, managed from here, QEMU to QEMU.

Where the destination does not read the files of this host, its pool gets them first and the machine's disk is copied
with the memory. A file `migrating` in the machine's directory says where to until config.json does: whoever is killed
in between leaves a machine that is found on either side (`whereabouts`).
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from minivmm.errors import ConfigError, HostError, VtkError
from toolkit.libvirt import storage
from toolkit.libvirt.connection import Connection, ask, checked_uri, host_of, is_local, library
from toolkit.libvirt.domain_xml import Files
from toolkit.libvirt.errors import LibvirtRefused
from toolkit.libvirt.whereabouts import MIGRATING, identity, location, settle
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.ports import LOOPBACK
from toolkit.vm.provider import MachineConfig, Migration

MIGRATION_TIMEOUT = 3600.0  # seconds
ABORT_TIMEOUT = 30.0
UNCONNECTED = ("unable to connect", "refused", "timed out", "No route", "not known", "resolve")
"""In libvirt's words when the source's QEMU does not get through to the destination's."""


def migrate(machine: MachineDirectory, destination: str) -> Migration:
    """Moves the domain to the URI `destination`; when that fails, it goes on where it was.

    Raises ConfigError, LibvirtDown for either side, LibvirtRefused with libvirt's words.
    """
    config = settle(machine)
    if not destination:
        raise ConfigError(
            f"machine {machine.name!r} cannot move within its libvirt",
            cause="libvirt moves a machine from one daemon to another",
            remedy=f"vtk vm migrate {machine.name} --to qemu+ssh://HOST/system",
        )
    target = replace(config, uri=checked_uri(destination))
    if target.uri == config.uri:
        raise ConfigError(f"machine {machine.name!r} is at {config.uri} already")
    copied = not config.imported and not (storage.is_in_place(config.uri) and storage.is_in_place(target.uri))
    files = _prepare(machine, target) if copied else None
    machine.write(MIGRATING, f"{target.uri}\n".encode())
    try:
        moved = _move(machine, config, target, files)
    except BaseException:
        _abort(machine, config)
        if location(machine, config) == config.uri:
            (machine / MIGRATING).unlink(missing_ok=True)
            if copied:
                with contextlib.suppress(VtkError):
                    storage.remove(machine, target)
        raise
    machine.write_config(target)
    (machine / MIGRATING).unlink(missing_ok=True)
    if copied:
        _leave_behind(machine, config)
    return moved


def _prepare(machine: MachineDirectory, target: MachineConfig) -> Files:
    """The files as the destination will have them: its own kernel and seed, and an empty overlay for the disk."""
    if target.disk and storage.is_in_place(target.uri):
        storage.renew_overlay(machine, target)
    storage.remove(machine, target)  # an overlay there is of an attempt that failed
    return storage.place(machine, target)


def _leave_behind(machine: MachineDirectory, config: MachineConfig) -> None:
    """What the source has of a machine that has moved, disk and all, is removed."""
    with contextlib.suppress(VtkError):  # it has moved, whatever is left over
        if config.disk and storage.is_in_place(config.uri):
            storage.renew_overlay(machine, config)
        storage.remove(machine, config)


def _hypervisor(connection: Connection, uuid: str) -> str:
    """kvm, or qemu: TCG (libvirt.org/formatdomain.html)."""
    return ElementTree.fromstring(connection.lookupByUUIDString(uuid).XMLDesc()).get("type", "")


def _move(machine: MachineDirectory, config: MachineConfig, target: MachineConfig, files: Files | None) -> Migration:
    libvirt = library()
    there = ask(target.uri, lambda connection: connection)
    flags = libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    if ask(config.uri, lambda connection: _hypervisor(connection, identity(machine, config))) == "kvm":
        flags |= libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_AUTO_CONVERGE
    # else it stands still for all of the move: TCG may miss what is written meanwhile (toolkit.vm.migration).
    if files is not None and files.disk:
        flags |= libvirt.VIR_MIGRATE_NON_SHARED_INC
    elif is_local(config.uri) and is_local(target.uri):
        flags |= libvirt.VIR_MIGRATE_UNSAFE  # one kernel, one page cache: what the one wrote, the other reads

    def move(connection: Connection) -> Any:
        domain = connection.lookupByUUIDString(identity(machine, config))
        parameters = _parameters(domain, target, files)
        try:
            return domain.migrate3(there, parameters, flags)
        except libvirt.libvirtError as error:
            words = error.get_error_message() or ""
            if flags & libvirt.VIR_MIGRATE_NON_SHARED_INC or not any(each in words for each in UNCONNECTED):
                raise
        # The daemons carry it for their QEMUs, through the connection that the source makes to the destination.
        parameters.pop(libvirt.VIR_MIGRATE_PARAM_URI, None)
        parameters.pop(libvirt.VIR_MIGRATE_PARAM_LISTEN_ADDRESS, None)
        domain.migrateToURI3(
            target.uri, parameters, flags | libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_TUNNELLED
        )
        return there.lookupByUUIDString(identity(machine, config))

    try:
        arrived = ask(config.uri, move, timeout=MIGRATION_TIMEOUT)
    except LibvirtRefused as error:
        raise LibvirtRefused(
            f"machine {machine.name!r} does not move to {host_of(target.uri)}: it goes on at {host_of(config.uri)}",
            error.code,
            cause=error.cause,
            remedy=f"vtk vm snapshot {machine.name} --list, and --delete each: libvirt does not carry them"
            if "snapshots" in error.cause
            else error.remedy or f"vtk vm show {machine.name}",
        ) from error
    told: dict[str, int] = {}
    with contextlib.suppress(HostError):
        told = ask(target.uri, lambda _: arrived.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED))
    return Migration(
        duration=told.get("time_elapsed", 0) / 1000,
        downtime=told.get("downtime", 0) / 1000,
        transferred=told.get("memory_processed", 0) + told.get("disk_processed", 0),
    )


def _parameters(domain: Any, target: MachineConfig, files: Files | None) -> dict[str, str | list[str]]:
    libvirt = library()
    parameters: dict[str, str | list[str]] = {}
    if is_local(target.uri):
        parameters[libvirt.VIR_MIGRATE_PARAM_URI] = f"tcp://{LOOPBACK}"
        parameters[libvirt.VIR_MIGRATE_PARAM_LISTEN_ADDRESS] = LOOPBACK
    elif (host := host_of(target.uri)) and host != target.uri:
        parameters[libvirt.VIR_MIGRATE_PARAM_URI] = f"tcp://{host}"
    if files is not None:
        migratable = libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE
        now = domain.XMLDesc(migratable)
        later = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
        parameters[libvirt.VIR_MIGRATE_PARAM_DEST_XML] = with_files(now, files)
        parameters[libvirt.VIR_MIGRATE_PARAM_PERSIST_XML] = with_files(later, files)
        if files.disk:
            parameters[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = ["vda"]
    return parameters


def with_files(xml: str, files: Files) -> str:
    """The domain with its files where another host has them; nothing that the guest sees is another."""
    domain = ElementTree.fromstring(xml)
    for tag, path in (("kernel", files.kernel), ("initrd", files.initrd)):
        element = domain.find(f"os/{tag}")
        if element is not None and path:
            element.text = path
    for target, path in (("vda", files.disk), ("vdb", files.seed)):
        disk = _disk(domain, target)
        if disk is None or not path:
            continue
        source, backing = disk.find("source"), disk.find("backingStore")
        if source is not None:
            source.attrib.clear()
            source.set("file", path)
            for child in list(source):
                source.remove(child)
        if backing is not None:
            disk.remove(backing)
    # QEMU's console is logged where this user can read it, or not at all.
    for serial in (*domain.findall("devices/serial"), *domain.findall("devices/console")):
        log = serial.find("log")
        if log is not None:
            serial.remove(log)
        if files.console_log:
            SubElement(serial, "log", file=files.console_log, append="on")
    return ElementTree.tostring(domain, encoding="unicode")


def _disk(domain: Element, target: str) -> Element | None:
    for disk in domain.findall("devices/disk"):
        element = disk.find("target")
        if element is not None and element.get("dev") == target:
            return disk
    return None


def _abort(machine: MachineDirectory, config: MachineConfig) -> None:
    """Ends what may still be going on: the user's Ctrl-C is not libvirt's."""
    libvirt = library()

    def abort(connection: Connection) -> None:
        with contextlib.suppress(libvirt.libvirtError):  # no job, or no domain any more
            connection.lookupByUUIDString(identity(machine, config)).abortJob()

    with contextlib.suppress(VtkError):
        ask(config.uri, abort, timeout=ABORT_TIMEOUT)
