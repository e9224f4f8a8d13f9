"""Snapshots of a domain, inside its qcow2 disk: libvirt's internal ones, with the memory when the domain is up."""

from __future__ import annotations

from datetime import UTC, datetime
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from minivmm.errors import ImageError
from toolkit.libvirt.connection import Domain, library
from toolkit.libvirt.provider import with_domain
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.errors import Unsupported
from toolkit.vm.provider import Snapshot

MEMORY_TIMEOUT = 600.0  # seconds to write a machine's memory to its disk, or to read it


def take(machine: MachineDirectory, name: str) -> None:
    """Raises Unsupported for a machine without a disk, which has nowhere to keep it."""
    config = machine.config()
    if not config.imported and not config.disk:
        raise Unsupported(
            f"machine {machine.name!r} cannot keep a snapshot",
            cause="libvirt keeps it in the machine's qcow2 disk, and it has none",
            remedy=f"vtk vm create NAME --provider libvirt --disk FILE, or the provider qemu for {machine.name}",
        )
    snapshot = Element("domainsnapshot")
    SubElement(snapshot, "name").text = name
    xml = ElementTree.tostring(snapshot, encoding="unicode")
    # No ATOMIC: internal snapshots are one command of QEMU's, which undoes what it cannot end.
    with_domain(machine, lambda domain: domain.snapshotCreateXML(xml, 0), timeout=MEMORY_TIMEOUT)


def revert(machine: MachineDirectory, name: str) -> None:
    """To its memory and disk; a machine that was off then is off afterwards."""
    libvirt = library()

    def go_back(domain: Domain) -> None:
        snapshot = domain.snapshotLookupByName(name)
        # FORCE: QEMU may have to start anew, for a snapshot from before it was started.
        domain.revertToSnapshot(snapshot, libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_FORCE)

    with_domain(machine, go_back, timeout=MEMORY_TIMEOUT)


def delete(machine: MachineDirectory, name: str) -> None:
    with_domain(machine, lambda domain: domain.snapshotLookupByName(name).delete(0), timeout=MEMORY_TIMEOUT)


def known(machine: MachineDirectory) -> list[Snapshot]:
    """In the order they were made; sizes where the disk can be looked at from here."""
    documents = with_domain(machine, lambda domain: [found.getXMLDesc() for found in domain.listAllSnapshots()])
    sizes = _sizes(machine)
    found = []
    for document in documents:
        snapshot = ElementTree.fromstring(document)
        name = snapshot.findtext("name") or ""
        created = int(snapshot.findtext("creationTime") or 0)
        memory = snapshot.find("memory")
        has_memory = memory is not None and memory.get("snapshot") != "no"
        when = datetime.fromtimestamp(created, UTC).isoformat(timespec="seconds")
        found.append((created, Snapshot(name, when, has_memory, sizes.get(name, 0))))
    return [snapshot for _, snapshot in sorted(found, key=lambda pair: pair[0])]


def _sizes(machine: MachineDirectory) -> dict[str, int]:
    """Bytes of memory and CPU state, by the snapshot's name."""
    from toolkit.images.errors import ImageBuildFailed, ToolMissing
    from toolkit.images.overlay import info

    disk = machine / "disk.qcow2"
    if not disk.exists():
        return {}
    try:
        return {told["name"]: int(told["vm-state-size"]) for told in info(disk).get("snapshots", ())}
    except (ImageError, ImageBuildFailed, ToolMissing):
        return {}
