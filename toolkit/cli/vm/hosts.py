"""`vtk vm list --uri`: the machines of several hosts as one list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from toolkit.cli.vm.asked import machines, print_columns, print_json
from toolkit.telling import told_when_long

if TYPE_CHECKING:
    from toolkit.libvirt.hosts import HostList


def list_hosts(uris: Sequence[str], as_json: bool) -> None:
    """Prints them. A host that does not answer is told of, and raised only when none answers."""
    from toolkit.libvirt.hosts import ask_hosts
    from toolkit.libvirt.importing import known_domains

    with told_when_long(f"asking {len(uris)} hosts"):
        hosts = ask_hosts(uris)
    ours = known_domains(machines())
    if as_json:
        print_json({"hosts": [_facts(host, ours) for host in hosts]})
    else:
        _print(hosts, ours)
    failures = [host.failure for host in hosts if host.failure is not None]
    if len(failures) == len(hosts):
        raise failures[0]
    for failure in failures if not as_json else ():
        click.echo(f"vtk: {failure}", err=True)


def _print(hosts: list[HostList], ours: dict[str, str]) -> None:
    rows: list[tuple[str, ...]] = [("HOST", "NAME", "STATE", "CPUS", "MEMORY", "MACHINE")]
    for host in hosts:
        if host.failure is not None:
            rows.append((host.host, "-", "no answer", "-", "-", "-"))
        for domain in host.domains:
            memory = f"{domain.memory >> 20}M"
            name = ours.get(domain.uuid, "-")
            rows.append((host.host, domain.name, domain.status.state.value, str(domain.cpus), memory, name))
    print_columns(rows)


def _facts(host: HostList, ours: dict[str, str]) -> dict[str, object]:
    return {
        "uri": host.uri,
        "host": host.host,
        "error": None if host.failure is None else {"message": host.failure.message, "cause": host.failure.cause},
        "domains": [
            {
                "name": domain.name,
                "uuid": domain.uuid,
                "state": domain.status.state.value,
                "detail": domain.status.detail,
                "cpus": domain.cpus,
                "memory": domain.memory,
                "machine": ours.get(domain.uuid),
            }
            for domain in host.domains
        ],
    }
