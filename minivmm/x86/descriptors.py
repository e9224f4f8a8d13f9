"""Segment descriptors (SDM 3A 3.4.5), kept as KVM's kvm_segment and turned into the 8 bytes of a GDT entry."""

from __future__ import annotations

from minivmm.kvm.abi import kvm_segment

CODE_ACCESSED = 0xB  # execute/read, accessed
DATA_ACCESSED = 0x3  # read/write, accessed
TSS_AVAILABLE = 0x9  # 64-bit (or 32-bit) TSS
TSS_BUSY = 0xB  # 64-bit (or 32-bit) TSS, busy
LDT = 0x2
FLAT_LIMIT = 0xFFFFFFFF


def code64(selector: int, dpl: int = 0) -> kvm_segment:
    """A flat 64-bit code segment."""
    return kvm_segment(0, FLAT_LIMIT, selector, CODE_ACCESSED, 1, dpl, 0, 1, 1, 1)


def code32(selector: int, dpl: int = 0) -> kvm_segment:
    """A flat 32-bit code segment."""
    return kvm_segment(0, FLAT_LIMIT, selector, CODE_ACCESSED, 1, dpl, 1, 1, 0, 1)


def data(selector: int, dpl: int = 0) -> kvm_segment:
    """A flat read/write data segment."""
    return kvm_segment(0, FLAT_LIMIT, selector, DATA_ACCESSED, 1, dpl, 1, 1, 0, 1)


def tss(selector: int, base: int = 0, limit: int = 0x67) -> kvm_segment:
    """A busy TSS: KVM wants one in TR before it enters a guest."""
    return kvm_segment(base, limit, selector, TSS_BUSY, 1)


def gdt_entry(segment: kvm_segment) -> int:
    """The descriptor's low 8 bytes (SDM 3A figure 3-8)."""
    limit = segment.limit >> 12 if segment.g else segment.limit
    entry: int = (
        limit & 0xFFFF
        | (segment.base & 0xFFFFFF) << 16
        | segment.type << 40
        | segment.s << 44
        | segment.dpl << 45
        | segment.present << 47
        | (limit >> 16 & 0xF) << 48
        | segment.avl << 52
        | segment.l << 53
        | segment.db << 54
        | segment.g << 55
        | (segment.base >> 24 & 0xFF) << 56
    )
    return entry


def segment(selector: int, descriptor: int) -> kvm_segment:
    """What a segment register holds once `selector`, which names `descriptor`, is loaded: the inverse of gdt_entry."""
    granular = descriptor >> 55 & 1
    limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF_0000
    return kvm_segment(
        base=descriptor >> 16 & 0xFF_FFFF | descriptor >> 32 & 0xFF00_0000,
        limit=limit << 12 | 0xFFF if granular else limit,
        selector=selector,
        type=descriptor >> 40 & 0xF,
        s=descriptor >> 44 & 1,
        dpl=descriptor >> 45 & 3,
        present=descriptor >> 47 & 1,
        avl=descriptor >> 52 & 1,
        l=descriptor >> 53 & 1,
        db=descriptor >> 54 & 1,
        g=granular,
    )
