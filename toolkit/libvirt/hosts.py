"""The domains of several hosts as one list: all are asked at the same time, and one that is down holds nobody up."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from minivmm.errors import VtkError
from toolkit.libvirt.connection import Connection, ask, checked_uri, host_of, library
from toolkit.libvirt.states import status_of
from toolkit.vm.provider import Status

HOST_TIMEOUT = 10.0  # seconds a host has, and as long again for the connection to be made


class Listed(NamedTuple):
    """A domain of a host."""

    name: str
    uuid: str
    status: Status
    cpus: int
    memory: int  # bytes


class HostList(NamedTuple):
    """What a host answered."""

    uri: str
    host: str
    domains: Sequence[Listed] = ()
    failure: VtkError | None = None  # why it did not


def ask_hosts(uris: Sequence[str]) -> list[HostList]:
    """In the order of `uris`. Raises ConfigError for one that cannot be, LibvirtMissing."""
    library()
    uris = [checked_uri(uri) for uri in dict.fromkeys(uris)]
    with ThreadPoolExecutor(max(len(uris), 1)) as pool:
        return list(pool.map(_ask_host, uris))


def _ask_host(uri: str) -> HostList:
    try:
        name, domains = ask(uri, _domains, timeout=HOST_TIMEOUT)
    except VtkError as error:
        return HostList(uri, host_of(uri), failure=error)
    return HostList(uri, name, domains)


def _domains(connection: Connection) -> tuple[str, list[Listed]]:
    libvirt = library()
    found = []
    for domain in connection.listAllDomains():
        try:
            state, reason = domain.state()
            info = domain.info()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:  # gone meanwhile
                continue
            raise
        listed = Listed(domain.name(), domain.UUIDString(), status_of(state, reason), info[3], info[1] << 10)
        found.append(listed)
    return connection.getHostname(), sorted(found)
