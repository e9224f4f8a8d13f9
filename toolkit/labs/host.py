"""What an experiment may use of the machine it runs on."""

from __future__ import annotations

import os
from typing import NamedTuple

from toolkit.host import kvm_back_end


class Host(NamedTuple):
    """This machine. An experiment that needs more raises HostError: it is unsupported here."""

    back_end: str
    """Whose KVM it is (toolkit.host)."""
    cpus: int
    deadline: float
    """Seconds that one domain, one machine or one answer of a guest may take."""


DEADLINE = 60.0


def this_host() -> Host:
    """The machine this runs on."""
    return Host(kvm_back_end() or "none", len(os.sched_getaffinity(0)), DEADLINE)
