"""Making a domain that is there already one of vtk's machines: it stays as it is, vtk only knows of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple
from xml.etree import ElementTree

from minivmm.errors import ConfigError
from toolkit.libvirt.connection import Connection, ask, checked_uri, default_uri
from toolkit.libvirt.errors import DomainMissing
from toolkit.libvirt.whereabouts import identity
from toolkit.vm.directory import MachineDirectory, Machines
from toolkit.vm.errors import StateError
from toolkit.vm.provider import MIB, MachineConfig


class Found(NamedTuple):
    """What libvirt has under the name."""

    uuid: str
    xml: str
    memory: int  # bytes
    cpus: int


def import_domain(machines: Machines, domain: str, uri: str, name: str = "", user: str = "") -> MachineDirectory:
    """The machine `name`, which is the domain called `domain`. Raises ConfigError, MachineExists, HostError."""
    uri = checked_uri(uri or default_uri())

    def look(connection: Connection) -> Found:
        there = connection.lookupByName(domain)
        info = there.info()
        return Found(there.UUIDString(), there.XMLDesc(), info[1] << 10, info[3])

    try:
        found = ask(uri, look)
    except DomainMissing as error:
        raise ConfigError(f"there is no domain {domain!r} at {uri}", remedy=f"vtk vm list --uri '{uri}'") from error
    _refuse_known(machines, found)
    mac = ElementTree.fromstring(found.xml).find("devices/interface/mac")
    with machines.new(name or domain) as directory:
        from toolkit.vm.making import new_key

        private_key, public_key = new_key()
        directory.write("id_ed25519", private_key.encode())
        directory.write("id_ed25519.pub", f"{public_key} vtk-{directory.name}\n".encode(), 0o644)
        directory.write("domain", f"{found.uuid}\n".encode())
        directory.write_config(
            MachineConfig(
                name=directory.name,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                provider="libvirt",
                uri=uri,
                imported=True,
                memory=found.memory // MIB * MIB or MIB,
                cpus=max(found.cpus, 1),
                mac="" if mac is None else mac.get("address", ""),
                user=user or "root",
            )
        )
    return directory


def known_domains(machines: Machines) -> dict[str, str]:
    """The machines on libvirt, by the UUID of each one's domain."""
    known = {}
    for name in machines.names():
        try:
            machine = machines.get(name)
            config = machine.config()
            if config.provider == "libvirt":
                known[identity(machine, config)] = name
        except (ConfigError, StateError):  # deleted meanwhile, or damaged
            continue
    return known


def _refuse_known(machines: Machines, found: Found) -> None:
    """Two machines of one domain would each believe that it is theirs. Raises ConfigError."""
    if name := known_domains(machines).get(found.uuid):
        raise ConfigError(f"that domain is machine {name!r} already", remedy=f"vtk vm show {name}")
