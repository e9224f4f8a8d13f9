"""What every boot protocol comes down to: the first vCPU's registers."""

from __future__ import annotations

from typing import NamedTuple

from minivmm.kvm import abi


class InitialState(NamedTuple):
    """Registers to enter the guest with. KVM fills in what a protocol does not name (APIC base, CR8)."""

    regs: abi.kvm_regs
    sregs: abi.kvm_sregs
