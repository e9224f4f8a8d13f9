"""The model-specific registers a PV kernel may read and write, as Xen has them for it. Others are #GP, as is writing a
value that cannot be had (SDM 4 2.1; APM 2 appendix A).

Linux reads and writes MSRs through an exception table, so #GP tells it that a register is not there.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NamedTuple, Protocol

from minivmm.x86.registers import Efer
from minivmm.xen.errors import HypercallError
from minivmm.xen.guest_pointer import canonical

APIC_BASE_AT_RESET = 0xFEE0_0000 | 1 << 11  # enabled
APIC_BASE_BSP = 1 << 8

# What PAT, PCD and PWT mean in a PV domain's entries: WB, WT, UC-, UC, WC, WP (SDM 3A table 11-10). Xen fixes it.
XEN_PAT = 0x0000_0501_0007_0406

MISC_ENABLE = 1 << 0 | 1 << 11 | 1 << 12 | 1 << 23  # fast strings; no BTS, no PEBS, no xTPR
HWCR_TSC_FREQ_SEL = 1 << 24  # the TSC counts at P0's frequency: it is invariant
DE_CFG_LFENCE_SERIALIZE = 1 << 1


class Cpu(Protocol):
    """The CPU of the machine that a vCPU has."""

    def tsc(self) -> int:
        """The time-stamp counter as RDTSC gives it."""

    def set_xcr0(self, value: int) -> bool:
        """XCR0, and CR4.OSXSAVE. False on a software back end, where ring 3 has the host's whatever is set."""


class MsrOwner(Protocol):
    """What registers are kept in. Setting a base raises HypercallError when it is not canonical."""

    index: int
    fs_base: int
    gs_base: int
    gs_base_user: int

    @property
    def cpu(self) -> Cpu:
        """The CPU it has."""


class Msr(NamedTuple):
    """One register. Without `write`, it can be written with the value that it has."""

    name: str
    read: Callable[[MsrOwner], int]
    write: Callable[[MsrOwner, int], None] | None = None


def _set_fs_base(vcpu: MsrOwner, value: int) -> None:
    vcpu.fs_base = value


def _set_gs_base(vcpu: MsrOwner, value: int) -> None:
    vcpu.gs_base = value


def _set_kernel_gs_base(vcpu: MsrOwner, value: int) -> None:
    vcpu.gs_base_user = canonical(value)


def _constant(value: int) -> Callable[[MsrOwner], int]:
    return lambda _vcpu: value


MSRS = {
    0x0000_0010: Msr("IA32_TIME_STAMP_COUNTER", lambda vcpu: vcpu.cpu.tsc()),
    0x0000_001B: Msr("IA32_APIC_BASE", lambda vcpu: APIC_BASE_AT_RESET | (0 if vcpu.index else APIC_BASE_BSP)),
    0x0000_008B: Msr("IA32_BIOS_SIGN_ID", _constant(0)),  # AMD: PATCH_LEVEL
    0x0000_00CE: Msr("MSR_PLATFORM_INFO", _constant(0)),
    0x0000_0140: Msr("MSR_MISC_FEATURES_ENABLES", _constant(0)),
    0x0000_0179: Msr("IA32_MCG_CAP", _constant(0)),
    0x0000_017A: Msr("IA32_MCG_STATUS", _constant(0)),
    0x0000_01A0: Msr("IA32_MISC_ENABLE", _constant(MISC_ENABLE)),
    0x0000_01D9: Msr("IA32_DEBUGCTL", _constant(0)),
    0x0000_0277: Msr("IA32_PAT", _constant(XEN_PAT)),
    0xC000_0080: Msr("EFER", _constant(Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE)),
    0xC000_0100: Msr("FS_BASE", lambda vcpu: vcpu.fs_base, _set_fs_base),
    0xC000_0101: Msr("GS_BASE", lambda vcpu: vcpu.gs_base, _set_gs_base),
    0xC000_0102: Msr("KERNEL_GS_BASE", lambda vcpu: vcpu.gs_base_user, _set_kernel_gs_base),
    0xC001_0010: Msr("SYSCFG", _constant(0)),
    0xC001_0015: Msr("HWCR", _constant(HWCR_TSC_FREQ_SEL)),
    0xC001_1029: Msr("DE_CFG", _constant(DE_CFG_LFENCE_SERIALIZE)),
}


def read(vcpu: MsrOwner, number: int) -> int:
    """RDMSR. Raises HypercallError for a register that is not there."""
    return _known(number).read(vcpu) & (1 << 64) - 1


def write(vcpu: MsrOwner, number: int, value: int) -> None:
    """WRMSR. Raises HypercallError for a register, or a value, that is not to be had."""
    msr = _known(number)
    if msr.write:
        msr.write(vcpu, value)
    elif value != msr.read(vcpu):
        raise HypercallError(errno.EPERM, f"wrmsr {msr.name} <- {value:#x}")


def _known(number: int) -> Msr:
    msr = MSRS.get(number)
    if msr is None:
        raise HypercallError(errno.EPERM, f"MSR {number:#x}")
    return msr
