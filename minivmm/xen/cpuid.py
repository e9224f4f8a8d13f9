"""CPUID as a PV domain is told it: the processor's answers, less what PV does not have (SDM 2A CPUID; APM 3 E).

A bit passes when it is named here: a feature nobody thought of is not there. Missing are, and why:

    VME, PSE, PSE36, PGE, PAGE1GB, MTRR, PCID, INVPCID, SMEP, SMAP, UMIP, PKU, LA57    paging and rings are Xen's
    APIC, x2APIC, TSC_DEADLINE, MONITOR, MCE, MCA, SEP, PERFMON, VMX, SVM               devices and modes it lacks
    XSAVE and all that needs it (AVX, AVX2, AVX-512, FMA, F16C, XOP, VAES, ...)         its FPU state is fxsave's
    FSGSBASE                 the hypervisor keeps the bases
    RDTSCP, RDPID            TSC_AUX is not the domain's
    HTT, CMP_LEGACY, TOPOEXT vCPUs are processors, not cores of one

On a software back end CPUID at ring 3 answers with the host's leaves, so a kernel asks with Xen's prefix; on hardware
`kvm_leaves` makes KVM give the same view to everybody.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from minivmm.kvm.abi import KVM_MAX_CPUID_ENTRIES, kvm_cpuid2, kvm_cpuid_entry2

XEN_VERSION = 4 << 16 | 17

EXTENDED, HYPERVISOR_LEAVES = 0x8000_0000, 0x4000_0000
LAST_BASIC, LAST_EXTENDED = 0x16, EXTENDED + 0x21
XEN_SIGNATURE = b"XenVMMXenVMM"
XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD = 1 << 0  # arch-x86/cpuid.h

_INDEX_MATTERS = 1 << 0  # kvm_cpuid_entry2.flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX


class Leaf(NamedTuple):
    """What CPUID leaves in the registers."""

    eax: int
    ebx: int
    ecx: int
    edx: int


NOTHING = Leaf(0, 0, 0, 0)
_WORD = (1 << 32) - 1
_ALL = Leaf(_WORD, _WORD, _WORD, _WORD)


def _bits(**places: int) -> int:
    return sum(1 << place for place in places.values())


_COMMON_EDX = _bits(FPU=0, DE=2, TSC=4, MSR=5, PAE=6, CX8=8, CMOV=15, PAT=16, MMX=23, FXSR=24)
_PASSES: dict[int, dict[int, Leaf]] = {
    0x0: {0: _ALL},
    0x1: {
        0: Leaf(
            _WORD,
            0xFF00,  # the line size of CLFLUSH
            _bits(SSE3=0, PCLMULQDQ=1, SSSE3=9, CX16=13, SSE4_1=19, SSE4_2=20, MOVBE=22, POPCNT=23, AES=25, RDRAND=30),
            _COMMON_EDX | _bits(CLFSH=19, SSE=25, SSE2=26),
        )
    },
    0x2: {0: _ALL},  # caches, Intel's way
    0x4: {index: Leaf(0x3FFF, _WORD, _WORD, _WORD) for index in range(5)},  # and without who shares them
    0x6: {0: Leaf(_bits(ARAT=2), 0, 0, 0)},
    0x7: {
        0: Leaf(
            1,
            _bits(BMI1=3, BMI2=8, ERMS=9, RDSEED=18, ADX=19, CLFLUSHOPT=23, CLWB=24, SHA=29),
            0,
            _bits(FSRM=4),
        ),
        1: Leaf(_bits(FZRM=10, FSRS=11, FSRCS=12), 0, 0, 0),
    },
    0x15: {0: _ALL},  # the TSC is the host's
    0x16: {0: _ALL},
    EXTENDED: {0: _ALL},
    EXTENDED + 0x1: {
        0: Leaf(
            _WORD,
            _WORD,
            _bits(LAHF_LM=0, ABM=5, SSE4A=6, MISALIGNSSE=7, PREFETCHW=8),
            _COMMON_EDX | _bits(SYSCALL=11, NX=20, MMXEXT=22, LM=29),
        )
    },
    **{EXTENDED + number: {0: _ALL} for number in (2, 3, 4, 5, 6)},  # the processor's name; caches, AMD's way
    EXTENDED + 0x7: {0: Leaf(0, 0, 0, _bits(ITSC=8))},
    EXTENDED + 0x8: {0: Leaf(0xFFFF, _bits(CLZERO=0), 0, 0)},  # EAX: widths of addresses
    EXTENDED + 0x19: {0: _ALL},  # TLBs of 1 GiB pages
    EXTENDED + 0x1A: {0: _ALL},
    EXTENDED + 0x21: {0: Leaf(_bits(LFENCE_SERIALIZING=2, NULL_SELECTOR_CLEARS_BASE=6), 0, 0, 0)},
}
_HYPERVISOR = 1 << 31  # leaf 1 ECX
_APIC_ID_SHIFT = 24  # leaf 1 EBX


class CpuidPolicy:
    """The filtered view of `host`: the leaves KVM supports (KVM_GET_SUPPORTED_CPUID), or any others."""

    def __init__(self, host: kvm_cpuid2) -> None:
        self._leaves: dict[tuple[int, int], Leaf] = {}
        for entry in host.entries[: min(host.nent, KVM_MAX_CPUID_ENTRIES)]:
            passes = _PASSES.get(entry.function, {}).get(entry.index)
            if passes is not None:
                answer = (entry.eax, entry.ebx, entry.ecx, entry.edx)
                self._leaves[entry.function, entry.index] = Leaf(
                    *(word & mask for word, mask in zip(answer, passes, strict=True))
                )
        self._amend()

    def _amend(self) -> None:
        leaves = self._leaves
        for first, last in ((0, LAST_BASIC), (EXTENDED, LAST_EXTENDED)):
            highest = leaves.get((first, 0), NOTHING)
            leaves[first, 0] = highest._replace(eax=min(highest.eax, last))
        version = leaves.get((1, 0), NOTHING)
        leaves[1, 0] = version._replace(ebx=version.ebx | 1 << 16, ecx=version.ecx | _HYPERVISOR)  # one processor
        signature = struct.unpack("<III", XEN_SIGNATURE)
        leaves[HYPERVISOR_LEAVES, 0] = Leaf(HYPERVISOR_LEAVES + 2, *signature)
        leaves[HYPERVISOR_LEAVES + 1, 0] = Leaf(XEN_VERSION, 0, 0, 0)
        # EAX and EBX would be hypercall pages by MSR: a PV kernel has its page from its notes.
        leaves[HYPERVISOR_LEAVES + 2, 0] = Leaf(0, 0, XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD, 0)

    def leaf(self, function: int, index: int = 0, vcpu: int = 0) -> Leaf:
        """What CPUID answers on the vCPU of that number. A leaf that is not there is zero. Takes any 32-bit numbers."""
        answer = self._leaves.get((function, index if function in _INDEXED else 0), NOTHING)
        if function == 1:
            return answer._replace(ebx=answer.ebx | (2 * vcpu & 0xFF) << _APIC_ID_SHIFT)
        return answer

    def kvm_leaves(self, vcpu: int = 0) -> kvm_cpuid2:
        """The same view for KVM_SET_CPUID2."""
        leaves = kvm_cpuid2(nent=len(self._leaves))
        for place, (function, index) in enumerate(sorted(self._leaves)):
            flags = _INDEX_MATTERS if function in _INDEXED else 0
            leaves.entries[place] = kvm_cpuid_entry2(function, index, flags, *self.leaf(function, index, vcpu))
        return leaves


_INDEXED = frozenset(function for function, indices in _PASSES.items() if len(indices) > 1)
