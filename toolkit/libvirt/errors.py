"""Errors of machines on libvirt.

HostError
├── LibvirtMissing       libvirt-python is not installed
├── LibvirtDown          no daemon at the URI, or it lets nobody in
├── LibvirtLost          the daemon went away in the middle (a MonitorSilent)
│   └── LibvirtSilent    it is there, and has not answered in time
└── LibvirtRefused       it answered that it cannot; has .code, libvirt's VIR_ERR_ number
    └── DomainMissing    it has no such domain
"""

from __future__ import annotations

from minivmm.errors import HostError
from toolkit.vm.errors import MonitorSilent


class LibvirtMissing(HostError):
    """libvirt-python is not there, or does not fit the host's libvirt."""


class LibvirtDown(HostError):
    """Nobody answers at the URI."""


class LibvirtLost(MonitorSilent):
    """The daemon went away while it was asked."""


class LibvirtSilent(LibvirtLost):
    """The daemon has not answered in time."""


class LibvirtRefused(HostError):
    """The daemon cannot do it."""

    def __init__(self, message: str, code: int, *, cause: str = "", remedy: str = "") -> None:
        super().__init__(message, cause=cause, remedy=remedy)
        self.code = code


class DomainMissing(LibvirtRefused):
    """There is no such domain at the URI."""
