"""What a domain has used: libvirt's statistics (virConnectGetAllDomainStats)."""

from __future__ import annotations

from typing import Any

from toolkit.libvirt.connection import Domain, library
from toolkit.libvirt.provider import STATUS_TIMEOUT, with_domain
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.provider import Figures

NANOSECONDS = 1e-9


def figures_of(machine: MachineDirectory) -> Figures:
    """Costs one question. Nothing is known of a domain that is not up. Raises HostError."""
    return figures(with_domain(machine, _statistics, timeout=STATUS_TIMEOUT))


def _statistics(domain: Domain) -> dict[str, Any]:
    libvirt = library()
    if not domain.isActive():
        return {}
    wanted = (
        libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
        | libvirt.VIR_DOMAIN_STATS_BALLOON
        | libvirt.VIR_DOMAIN_STATS_BLOCK
        | libvirt.VIR_DOMAIN_STATS_INTERFACE
    )
    # A domain that is busy tells what is known without asking its QEMU.
    found = domain.connect().domainListGetStats([domain], wanted, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT)
    return found[0][1] if found else {}


def figures(told: dict[str, Any]) -> Figures:
    """From typed parameters, sizes in KiB and times in ns there."""
    cpu = told.get("cpu.time")
    return Figures(
        cpu_time=None if cpu is None else cpu * NANOSECONDS,
        memory=_bytes(told.get("balloon.maximum")),
        balloon=_bytes(told.get("balloon.current")),
        available=_bytes(told.get("balloon.usable")),
        resident=_bytes(told.get("balloon.rss")),
        disk_read=_sum(told, "block", "rd.bytes"),
        disk_written=_sum(told, "block", "wr.bytes"),
        disk_reads=_sum(told, "block", "rd.reqs"),
        disk_writes=_sum(told, "block", "wr.reqs"),
        net_received=_sum(told, "net", "rx.bytes"),
        net_sent=_sum(told, "net", "tx.bytes"),
    )


def _bytes(kib: int | None) -> int | None:
    return None if kib is None else kib << 10


def _sum(told: dict[str, Any], kind: str, name: str) -> int | None:
    """Over all devices; None where no device tells."""
    values = [value for key, value in told.items() if key.startswith(f"{kind}.") and key.endswith(f".{name}")]
    return sum(values) if values else None
