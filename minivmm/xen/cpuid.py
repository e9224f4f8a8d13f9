"""CPUID as a PV domain is told it: the processor's answers, less what PV does not have (SDM 2A CPUID; APM 3 E).

A bit passes when it is named here: a feature nobody thought of is not there. Missing are, and why:

    VME, PSE, PSE36, PGE, PAGE1GB, MTRR, PCID, INVPCID, SMEP, SMAP, UMIP, PKU, LA57    paging and rings are Xen's
    APIC, x2APIC, TSC_DEADLINE, MONITOR, MCE, MCA, SEP, PERFMON, VMX, SVM               devices and modes it lacks
    XSAVES, and extended state of other kinds than x87, SSE, AVX and AVX-512            nobody here knows it
    FSGSBASE                 the hypervisor keeps the bases
    RDTSCP, RDPID            TSC_AUX is not the domain's
    HTT, CMP_LEGACY, TOPOEXT vCPUs are processors, not cores of one

On a software back end CPUID and XGETBV at ring 3 answer for the host, whatever KVM is told, so a kernel asks with Xen's
prefix, and user code uses AVX when the host has it. XSAVE and AVX are therefore shown whenever KVM's leaf 0xD knows of
such state: what user code can reach, its kernel must be told to save. OSXSAVE is shown from the start, as Xen does. On
hardware `kvm_leaves` makes KVM give the same view to everybody.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from minivmm.kvm.abi import KVM_MAX_CPUID_ENTRIES, kvm_cpuid2, kvm_cpuid_entry2
from minivmm.x86.registers import Xcr0

XEN_VERSION = 4 << 16 | 17

EXTENDED, HYPERVISOR_LEAVES = 0x8000_0000, 0x4000_0000
LAST_BASIC, LAST_EXTENDED = 0x16, EXTENDED + 0x21
XEN_SIGNATURE = b"XenVMMXenVMM"
XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD = 1 << 0  # arch-x86/cpuid.h

XSAVE_LEAF = 0xD
LEGACY_AND_HEADER = 576  # bytes of an XSAVE area before the first extended component (SDM 1 13.4)

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
    XSAVE_LEAF: {
        0: Leaf(Xcr0.X87 | Xcr0.SSE | Xcr0.AVX | Xcr0.AVX512, 0, 0, 0),
        1: Leaf(_bits(XSAVEOPT=0), 0, 0, 0),
        **{component: Leaf(_WORD, _WORD, 0, 0) for component in (2, 5, 6, 7)},  # its size and place
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
_XSAVE = _bits(XSAVE=26, OSXSAVE=27)  # leaf 1 ECX
_WITH_AVX = {
    (1, 0): Leaf(0, 0, _bits(FMA=12, F16C=29), 0),
    (7, 0): Leaf(0, _bits(AVX2=5), _bits(VAES=9, VPCLMUL=10), 0),
}
_WITH_AVX512 = {(7, 0): Leaf(0, _bits(DQ=17, CD=28, BW=30, VL=31), 0, 0)}
_AVX, _AVX512F = 1 << 28, 1 << 16  # leaf 1 ECX; leaf 7 EBX
_APIC_ID_SHIFT = 24  # leaf 1 EBX


class CpuidPolicy:
    """The filtered view of `host`: the leaves KVM supports (KVM_GET_SUPPORTED_CPUID), or any others."""

    def __init__(self, host: kvm_cpuid2) -> None:
        self._leaves: dict[tuple[int, int], Leaf] = {}
        self._host: dict[tuple[int, int], Leaf] = {}
        for entry in host.entries[: min(host.nent, KVM_MAX_CPUID_ENTRIES)]:
            place = entry.function, entry.index
            self._host[place] = Leaf(entry.eax, entry.ebx, entry.ecx, entry.edx)
            if entry.index in _PASSES.get(entry.function, {}):
                self._show(place, _PASSES[entry.function][entry.index])
        self._amend()
        self.xcr0 = self._extend()
        """The state components that its kernel may enable."""

    def _show(self, place: tuple[int, int], passes: Leaf) -> None:
        """Adds those bits of the host's leaf."""
        shown, has = self._leaves.get(place, NOTHING), self._host.get(place, NOTHING)
        self._leaves[place] = Leaf(*(old | word & mask for old, word, mask in zip(shown, has, passes, strict=True)))

    def _extend(self) -> int:
        """Shows XSAVE with the components there are, and the instructions whose state they are. Returns the set."""
        leaves = self._leaves
        state = leaves.get((XSAVE_LEAF, 0), NOTHING).eax
        if not state & Xcr0.SSE:
            for place in [place for place in leaves if place[0] == XSAVE_LEAF]:
                del leaves[place]
            return Xcr0.X87
        if state & Xcr0.AVX512 != Xcr0.AVX512 or not state & Xcr0.AVX:
            state &= ~Xcr0.AVX512
        ecx, ebx = _XSAVE, 0
        if state & Xcr0.AVX:
            ecx |= _AVX
            for place, passes in _WITH_AVX.items():
                self._show(place, passes)
        if state & Xcr0.AVX512:
            ebx |= _AVX512F
            for place, passes in _WITH_AVX512.items():
                self._show(place, passes)
        version, features = leaves[1, 0], leaves.get((7, 0), NOTHING)
        leaves[1, 0] = version._replace(ecx=version.ecx | ecx)
        leaves[7, 0] = features._replace(ebx=features.ebx | ebx)
        leaves[XSAVE_LEAF, 0] = Leaf(state, self._area(state), self._area(state), 0)
        return state

    def _area(self, state: int) -> int:
        """Bytes of an XSAVE area with these components, in the standard format."""
        components = (self._leaves.get((XSAVE_LEAF, number), NOTHING) for number in (2, 5, 6, 7) if state >> number & 1)
        return max((component.eax + component.ebx for component in components), default=LEGACY_AND_HEADER)

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

    def leaf(self, function: int, index: int = 0, vcpu: int = 0, xcr0: int = 0) -> Leaf:
        """What CPUID answers on the vCPU of that number and XCR0 (0: all that is to be had).

        A leaf that is not there is zero. Takes any 32-bit numbers.
        """
        answer = self._leaves.get((function, index if function in _INDEXED else 0), NOTHING)
        if function == 1:
            return answer._replace(ebx=answer.ebx | (2 * vcpu & 0xFF) << _APIC_ID_SHIFT)
        if function == XSAVE_LEAF and index == 0 and answer.eax and xcr0:
            return answer._replace(ebx=self._area(xcr0 & answer.eax))
        return answer

    def may_enable(self, xcr0: int) -> bool:
        """Whether XSETBV takes this value (SDM 1 13.3)."""
        avx512 = xcr0 & Xcr0.AVX512
        return (
            bool(self.xcr0 & Xcr0.SSE and xcr0 & Xcr0.X87)
            and not xcr0 & ~self.xcr0
            and not (xcr0 & Xcr0.AVX and not xcr0 & Xcr0.SSE)
            and not (avx512 and (avx512 != Xcr0.AVX512 or not xcr0 & Xcr0.AVX))
        )

    def kvm_leaves(self, vcpu: int = 0) -> kvm_cpuid2:
        """The same view for KVM_SET_CPUID2."""
        leaves = kvm_cpuid2(nent=len(self._leaves))
        for place, (function, index) in enumerate(sorted(self._leaves)):
            flags = _INDEX_MATTERS if function in _INDEXED else 0
            leaves.entries[place] = kvm_cpuid_entry2(function, index, flags, *self.leaf(function, index, vcpu))
        return leaves


_INDEXED = frozenset(function for function, indices in _PASSES.items() if len(indices) > 1)
