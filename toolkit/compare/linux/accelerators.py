"""Who can execute the guest's instructions here: TCG, and KVM where a whole Linux is worth running under it."""

from __future__ import annotations

from minivmm.errors import HostError
from toolkit.compare.techniques import Obstacle
from toolkit.host import Host, State
from toolkit.qemu.find import INSTALL, find_qemu
from toolkit.qemu.microvm import Accelerator

ACCELERATORS = (Accelerator.TCG, Accelerator.KVM)


def obstacle(accelerator: Accelerator, host: Host) -> Obstacle | None:
    """What stands in the way of a Linux guest under `accelerator`; None when it should work."""
    try:
        binary = find_qemu("x86_64")
    except HostError as error:
        return Obstacle(": ".join(filter(None, (error.message, error.cause))), error.remedy)
    if accelerator.value not in binary.accelerators:
        return Obstacle(f"{binary.path} was built without {accelerator.value}", INSTALL["x86_64"])
    if accelerator is Accelerator.TCG:
        return None
    kvm, hardware = host["kvm"], host["kvm-hw"]
    if kvm.state is State.MISSING:
        return Obstacle(f"KVM cannot be used: {kvm.value}", kvm.remedy)
    if hardware.state is not State.OK:
        reason = (
            f"this host's KVM ({hardware.value}) interprets guest kernels: a whole Linux is slower so than under TCG"
        )
        return Obstacle(reason, hardware.remedy)
    return None
