"""Descriptor tables and segment bases: set_gdt, MMUEXT_SET_LDT, update_descriptor, set_segment_base.

A vCPU's GDT and LDT are copies of the checked frames, which stay the guest's to read and are nobody's to write.
"""

from __future__ import annotations

import struct
from errno import EINVAL

from minivmm.memory import PAGE_SIZE
from minivmm.xen.abi import FIRST_RESERVED_GDT_ENTRY
from minivmm.xen.errors import HypercallError
from minivmm.xen.frame_words import ENTRIES
from minivmm.xen.guest_pointer import canonical
from minivmm.xen.hypercall_abi import SegmentBase
from minivmm.xen.vcpu import VirtualCpu

MAX_LDT_ENTRIES = 8192


def set_gdt(vcpu: VirtualCpu, frame_list: int, entries: int) -> int:
    """xen.h: the frames hold `entries` descriptors of this vCPU's GDT."""
    entries &= 0xFFFF_FFFF
    if entries > FIRST_RESERVED_GDT_ENTRY:
        raise HypercallError(EINVAL, f"a GDT of {entries} entries reaches Xen's own")
    pages = -(-entries // ENTRIES)
    mfns = struct.unpack(f"<{pages}Q", vcpu.pages.read(frame_list, 8 * pages))
    load_gdt(vcpu, list(mfns), entries)
    return 0


def load_gdt(vcpu: VirtualCpu, mfns: list[int], entries: int) -> None:
    """These frames are the vCPU's GDT. Raises HypercallError."""
    core = vcpu.core
    core.tables.set_gdt(vcpu.domain.domid, mfns, entries, vcpu.index)
    vcpu.cpu.load_gdt(_content(vcpu, mfns)[: 8 * entries])


def set_ldt(vcpu: VirtualCpu, address: int, entries: int) -> None:
    """MMUEXT_SET_LDT: `entries` descriptors at the page-aligned virtual address. Raises HypercallError."""
    if entries > MAX_LDT_ENTRIES or address % PAGE_SIZE:
        raise HypercallError(EINVAL, f"an LDT of {entries} entries at {address:#x}")
    mfns = []
    for page in range(-(-entries // ENTRIES)):
        machine = vcpu.pages.translate(canonical(address + page * PAGE_SIZE))
        if machine is None:
            raise HypercallError(EINVAL, f"the LDT at {address:#x} is not mapped")
        mfns.append(machine // PAGE_SIZE)
    vcpu.core.tables.set_ldt(vcpu.domain.domid, mfns, vcpu.index)
    vcpu.cpu.load_ldt(_content(vcpu, mfns)[: 8 * entries])


def _content(vcpu: VirtualCpu, mfns: list[int]) -> bytes:
    return b"".join(vcpu.core.memory.read(mfn * PAGE_SIZE, PAGE_SIZE) for mfn in mfns)


def update_descriptor(vcpu: VirtualCpu, address: int, descriptor: int) -> int:
    """xen.h: one descriptor at machine address `address`, checked, in every GDT and LDT it is part of."""
    core, domid = vcpu.core, vcpu.domain.domid
    core.tables.update_descriptor(domid, address, descriptor)
    mfn, stored = address // PAGE_SIZE, core.memory.read_u64(address)
    for other in vcpu.domain.vcpus:
        gdt = core.tables.gdts.get((domid, other.index), ())
        for page, frame in enumerate(gdt):
            if frame == mfn:
                other.cpu.store_descriptor(page * ENTRIES + address % PAGE_SIZE // 8, stored)
        ldt = core.tables.ldts.get((domid, other.index), ())
        if mfn in ldt:
            other.cpu.load_ldt(_content(other, list(ldt)))
    return 0


def set_segment_base(vcpu: VirtualCpu, which: int, base: int) -> int:
    """arch-x86/xen-x86_64.h: the bases of FS and GS, which `mov` cannot set beyond 32 bits."""
    match which:
        case SegmentBase.FS:
            vcpu.cpu.fs_base = canonical(base)
        case SegmentBase.GS_USER:
            vcpu.gs_base_user = canonical(base)
        case SegmentBase.GS_KERNEL:
            vcpu.cpu.gs_base = canonical(base)
        case SegmentBase.GS_USER_SEL:
            _load_user_gs(vcpu, base & 0xFFFF)
        case _:
            raise HypercallError(EINVAL, f"set_segment_base {which} is not there")
    return 0


def _load_user_gs(vcpu: VirtualCpu, selector: int) -> None:
    """Between two swapgs: GS is loaded, the kernel's base stays. A selector that cannot be loaded is the null one."""
    kernel_base = vcpu.cpu.gs_base
    base = vcpu.cpu.load_gs(selector)
    vcpu.gs_base_user = base if base is not None else vcpu.cpu.load_gs(0) or 0
    vcpu.cpu.gs_base = kernel_base
