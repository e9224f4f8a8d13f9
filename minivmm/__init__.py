"""minivmm: a small, scriptable hypervisor on Linux KVM. Standard library only.

    from minivmm import Machine, Outcome

    with Machine("kernel.elf", memory=64 << 20) as machine:
        result = machine.run(timeout=5)
    print(result.outcome, result.exits, result.console.decode())

The names below load what they need when first used: `import minivmm` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minivmm.boot.loader import Boot
    from minivmm.emulator.machine import RiscvMachine
    from minivmm.errors import VtkError
    from minivmm.machine import Machine
    from minivmm.outcome import Outcome, RunResult
    from minivmm.virtio.block import Disk
    from minivmm.xen.machine import XenMachine

__all__ = ["Boot", "Disk", "Machine", "Outcome", "RiscvMachine", "RunResult", "VtkError", "XenMachine"]

_HOMES = {
    "Boot": "minivmm.boot.loader",
    "Disk": "minivmm.virtio.block",
    "Machine": "minivmm.machine",
    "Outcome": "minivmm.outcome",
    "RiscvMachine": "minivmm.emulator.machine",
    "RunResult": "minivmm.outcome",
    "VtkError": "minivmm.errors",
    "XenMachine": "minivmm.xen.machine",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'minivmm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
