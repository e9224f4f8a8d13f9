"""What a caller who wants to see every exit is shown: one small record an exit, after it was served."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from minivmm.kvm.abi import KVM_EXIT_IO_OUT, Exit, Run
from minivmm.kvm.vcpu import Vcpu


class PortAccess(NamedTuple):
    """KVM_EXIT_IO: `data` is what the guest wrote, or what it was given."""

    vcpu: int
    port: int
    size: int  # bytes an access
    is_write: bool
    data: bytes  # size * count bytes: more than one access for `rep ins`


class MmioAccess(NamedTuple):
    """KVM_EXIT_MMIO: `value` is what the guest stored, or what it was given."""

    vcpu: int
    address: int  # guest-physical
    size: int
    is_write: bool
    value: int


class OtherExit(NamedTuple):
    """Any other reason."""

    vcpu: int
    reason: Exit


ExitRecord = PortAccess | MmioAccess | OtherExit
Observer = Callable[[ExitRecord], None]


def record(vcpu: Vcpu, reason: int) -> ExitRecord:
    """The record of the exit that kvm_run holds. PIO and MMIO reads must have been served already."""
    run64 = vcpu.run64
    if reason == Exit.IO:
        access = run64[Run.IO // 8]
        size, count, data = access >> 8 & 0xFF, access >> 32, run64[Run.IO_DATA_OFFSET // 8]
        return PortAccess(
            vcpu.id,
            access >> 16 & 0xFFFF,
            size,
            access & 0xFF == KVM_EXIT_IO_OUT,
            bytes(vcpu.run_bytes[data : data + size * count]),
        )
    if reason == Exit.MMIO:
        size = vcpu.run32[Run.MMIO_LEN // 4]
        value = run64[Run.MMIO_DATA // 8] & (1 << 8 * size) - 1
        return MmioAccess(vcpu.id, run64[Run.MMIO_PHYS_ADDR // 8], size, bool(vcpu.run_bytes[Run.MMIO_IS_WRITE]), value)
    return OtherExit(vcpu.id, Exit(reason))
