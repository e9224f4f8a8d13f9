"""Errors of the machines that stay.

VtkError
├── ConfigError
│   ├── MachineMissing   there is no machine of that name
│   ├── MachineExists    there is one already
│   └── Unsupported      the machine's provider has no such verb, or not for a machine like this
├── HostError
│   ├── StateError       a machine's directory cannot be used: permissions, a full disk, a damaged file
│   ├── MachineBusy      another vtk is at work on it
│   ├── MonitorSilent    QEMU lives, and does not answer on QMP
│   └── AgentSilent      the guest agent does not answer
├── WrongState           the verb does not fit what the machine is doing
└── Unfinished           what was waited for did not come
    └── Unreachable      ssh: no connection, another host key, no such key
"""

from __future__ import annotations

from minivmm.errors import ConfigError, HostError, VtkError


class MachineMissing(ConfigError):
    """There is no machine of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no machine {name!r}", remedy="vtk vm list")


class MachineExists(ConfigError):
    """There is a machine of that name already."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"there is a machine {name!r} already", remedy=f"another name, or vtk vm delete {name} to have it anew"
        )


class Unsupported(ConfigError):
    """The machine's provider has no such verb, or not for a machine like this one."""


class StateError(HostError):
    """A file of vtk's about a machine cannot be read or written."""


class MachineBusy(HostError):
    """Another vtk is at work on the machine."""


class MonitorSilent(HostError):
    """The machine's process is there, and does not answer."""


class AgentSilent(HostError):
    """There is no guest agent in the machine, or it does not answer."""


class WrongState(VtkError):
    """The verb does not fit what the machine is doing."""


class Unfinished(VtkError):
    """What was waited for did not come: the deadline passed, or it cannot come any more."""


class Unreachable(Unfinished):
    """ssh does not get in."""
