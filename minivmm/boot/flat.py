"""What the boot protocols for unmodified kernels have in common: where the loader's structures lie, flat segments, and
the registers it all comes down to."""

from __future__ import annotations

from typing import NamedTuple

from minivmm.kvm import abi
from minivmm.memory import GuestMemory
from minivmm.x86 import descriptors

# All below BOOT_END, laid out as Linux's own and Firecracker's loaders do.
GDT = 0x500
COMMAND_LINE = 0x20000
BOOT_END = 0x21000
MAX_COMMAND_LINE = BOOT_END - COMMAND_LINE - 1  # bytes, without the terminating zero

BOOT_CS, BOOT_DS, BOOT_TSS = 0x10, 0x18, 0x20  # selectors


class InitialState(NamedTuple):
    """Registers to enter the guest with. KVM fills in what a protocol does not name (APIC base, CR8)."""

    regs: abi.kvm_regs
    sregs: abi.kvm_sregs


def flat_segments(memory: GuestMemory, code: abi.kvm_segment) -> abi.kvm_sregs:
    """Segment registers with `code` (at BOOT_CS) and flat data, and a GDT in guest memory that says the same."""
    data = descriptors.data(BOOT_DS)
    for segment in (code, data):
        memory.write_u64(GDT + segment.selector, descriptors.gdt_entry(segment))
    sregs = abi.kvm_sregs()
    sregs.cs, sregs.tr = code, descriptors.tss(BOOT_TSS)
    sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = data
    sregs.ldt.unusable = 1
    sregs.gdt.base, sregs.gdt.limit = GDT, BOOT_TSS - 1
    return sregs


def write_command_line(memory: GuestMemory, line: bytes) -> None:
    """Puts the command line where both protocols point the guest to."""
    memory.write(COMMAND_LINE, line + b"\0")
