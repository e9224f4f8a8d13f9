"""Where a domain's ssh server answers, seen from here."""

from __future__ import annotations

from toolkit.libvirt.connection import Domain, host_of, is_local, library
from toolkit.libvirt.provider import with_domain
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.errors import Unsupported
from toolkit.vm.ports import LOOPBACK

SSH_PORT = 22


def address_of(machine: MachineDirectory) -> tuple[str, int]:
    """A port of this host: that of the machine here, or one that is carried to the domain's host by ssh.

    That of an imported domain is its guest's own. Raises Unsupported where none is known, HostError.
    """
    config = machine.config()
    if config.imported:
        return _guests_own(machine), SSH_PORT
    if is_local(config.uri):
        return LOOPBACK, config.ssh_port
    from toolkit.libvirt.tunnel import local_port

    return LOOPBACK, local_port(config.uri, config.ssh_port)


def _guests_own(machine: MachineDirectory) -> str:
    """From the DHCP leases of libvirt's networks, else from the guest agent. Raises Unsupported."""
    libvirt = library()

    def addresses(domain: Domain) -> list[str]:
        found = []
        sources = (
            libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
            libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT,
            libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP,
        )
        for source in sources:
            try:
                interfaces = domain.interfaceAddresses(source)
            except libvirt.libvirtError:  # no such network, no agent: the next may know
                continue
            for interface in interfaces.values():
                found += [
                    each["addr"] for each in interface["addrs"] or () if each["type"] == libvirt.VIR_IP_ADDR_TYPE_IPV4
                ]
        return [address for address in found if not address.startswith("127.")]

    found = with_domain(machine, addresses)
    if not found:
        uri = machine.config().uri
        raise Unsupported(
            f"the address of machine {machine.name!r} is not known",
            cause="it was imported, no network of libvirt's has given it one, and no guest agent answers",
            remedy=f"on {host_of(uri)}: virsh -c {uri} domifaddr {machine.name}; or vtk vm console {machine.name}",
        )
    return found[0]
