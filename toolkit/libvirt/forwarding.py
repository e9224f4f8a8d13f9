"""ssh's port of 127.0.0.1, at the domain's host, to port 22 of the guest: by QEMU's user network.

libvirt 9 has no element for it, so QEMU's monitor is asked once the domain has started. A port another program has is
replaced, and a migrated domain gets it anew.
"""

from __future__ import annotations

import random
import re

from minivmm.errors import HostError
from toolkit.libvirt.connection import Domain, library
from toolkit.libvirt.domain_xml import NETDEV
from toolkit.vm.ports import LOOPBACK

HMP = 1  # VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
DYNAMIC_PORTS = (49152, 65535)  # RFC 6335, 6
TRIES = 20
FORWARDED = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+22\b")


def forward(domain: Domain, wanted: int) -> int | None:
    """The port that leads to the guest's: `wanted` when it is free. None when the domain is gone already."""
    libvirt = library()
    try:
        if found := FORWARDED.search(_monitor(domain, "info usernet")):
            return int(found[1])
        for port in (wanted, *(random.randint(*DYNAMIC_PORTS) for _ in range(TRIES))):
            if not _monitor(domain, f"hostfwd_add {NETDEV} tcp:{LOOPBACK}:{port}-:22").strip():
                return port
    except libvirt.libvirtError:
        if not domain.isActive():
            return None
        raise
    raise HostError(
        "ssh's port cannot be forwarded to the guest",
        cause=f"QEMU could not listen on {wanted} and {TRIES} other ports of {LOOPBACK}",
        remedy="vtk vm console",
    )


def _monitor(domain: Domain, command: str) -> str:
    import libvirt_qemu

    return str(libvirt_qemu.qemuMonitorCommand(domain, command, HMP))
