"""A domain is told of no feature that PV lacks, on any processor, and finds Xen's leaves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivmm.kvm.abi import kvm_cpuid2, kvm_cpuid_entry2
from minivmm.kvm.system import Kvm
from minivmm.xen.cpuid import NOTHING, CpuidPolicy, Leaf

WORD = (1 << 32) - 1
FEATURES = Path("/usr/include/xen/arch-x86/cpufeatureset.h")
# Words of Xen's feature set (cpufeatureset.h): leaf, index, register.
FEATURE_WORDS = {
    0: (1, 0, "edx"),
    1: (1, 0, "ecx"),
    2: (0x8000_0001, 0, "edx"),
    3: (0x8000_0001, 0, "ecx"),
    4: (0xD, 1, "eax"),
    5: (7, 0, "ebx"),
    6: (7, 0, "ecx"),
    7: (0x8000_0007, 0, "edx"),
    8: (0x8000_0008, 0, "ebx"),
    9: (7, 0, "edx"),
    10: (7, 1, "eax"),
    11: (0x8000_0021, 0, "eax"),
}
LEAVES = [*range(0x20), *range(0x8000_0000, 0x8000_0023), 0x4000_0000, 0x4000_0001]


def everything() -> kvm_cpuid2:
    """A processor with every bit set."""
    places = [(leaf, index) for leaf in LEAVES for index in ((0, 1, 2, 3) if leaf in (4, 7, 0xB, 0xD) else (0,))]
    leaves = kvm_cpuid2(nent=len(places))
    for number, (leaf, index) in enumerate(places):
        leaves.entries[number] = kvm_cpuid_entry2(leaf, index, 0, WORD, WORD, WORD, WORD)
    return leaves


POLICY = CpuidPolicy(everything())


@pytest.mark.skipif(not FEATURES.exists(), reason="libxen-dev is not installed")
def test_every_feature_shown_is_one_that_xen_gives_to_pv_guests() -> None:
    pattern = r"XEN_CPUFEATURE\((\w+),\s*(\d+)\*32\+\s*(\d+)\) /\*(.)(.)"
    known = re.findall(pattern, FEATURES.read_text(encoding="utf-8"))
    offered = {(int(word), int(bit)) for _, word, bit, *marks in known if {"A", "a", "|"} & set(marks)}
    assert len(offered) > 60
    for word, (leaf, index, register) in FEATURE_WORDS.items():
        shown = getattr(POLICY.leaf(leaf, index), register)
        # The hypervisor's mark and OSXSAVE, and AMD's copies of leaf 1, which Xen makes rather than names.
        shown &= ~(1 << 31 | 1 << 27) if word == 1 else WORD
        shown &= ~0x0183_F3FF if word == 2 else WORD
        bits = {(word, bit) for bit in range(32) if shown >> bit & 1}
        assert bits <= offered, register


@pytest.mark.parametrize(
    ("leaf", "index", "register", "bits"),
    [
        (1, 0, "edx", {"VME": 1, "PSE": 3, "MCE": 7, "APIC": 9, "SEP": 11, "MTRR": 12, "PGE": 13, "MCA": 14}),
        (1, 0, "edx", {"PSE36": 17, "HTT": 28}),
        (1, 0, "ecx", {"MONITOR": 3, "VMX": 5, "PCID": 17, "x2APIC": 21, "TSC_DEADLINE": 24}),
        (7, 0, "ebx", {"FSGSBASE": 0, "SMEP": 7, "INVPCID": 10, "MPX": 14, "SMAP": 20}),
        (7, 0, "ecx", {"UMIP": 2, "PKU": 3, "LA57": 16, "RDPID": 22}),
        (0x8000_0001, 0, "edx", {"PSE": 3, "APIC": 9, "PGE": 13, "FFXSR": 25, "PAGE1GB": 26, "RDTSCP": 27}),
        (0x8000_0001, 0, "ecx", {"CMP_LEGACY": 1, "SVM": 2, "XOP": 11, "FMA4": 16, "TOPOEXT": 22}),
    ],
)
def test_what_pv_lacks_is_hidden(leaf: int, index: int, register: str, bits: dict[str, int]) -> None:
    shown = getattr(POLICY.leaf(leaf, index), register)
    assert [name for name, bit in bits.items() if shown >> bit & 1] == []


def test_leaves_about_what_is_hidden_are_zero() -> None:
    for leaf in (5, 9, 0xA, 0xB, 0xF, 0x10, 0x12, 0x14, 0x1F, 0x8000_000A, 0x8000_001E, 0x8000_001F):
        assert [POLICY.leaf(leaf, index) for index in range(4)] == [NOTHING] * 4, hex(leaf)


XSAVE, AVX, FMA, AVX2, AVX512F, AVX512BW = 3 << 26, 1 << 28, 1 << 12, 1 << 5, 1 << 16, 1 << 30


@pytest.mark.parametrize(
    ("state", "xcr0", "ecx", "ebx", "area"),
    [
        (0, 1, 0, 0, 0),
        (1, 1, 0, 0, 0),
        (0x3, 0x3, XSAVE, 0, 576),
        (0x7, 0x7, XSAVE | AVX | FMA, AVX2, 832),
        (0x2FF, 0xE7, XSAVE | AVX | FMA, AVX2 | AVX512F | AVX512BW, 2688),
        (0x6_0067, 0x7, XSAVE | AVX | FMA, AVX2, 832),  # a part of AVX-512, and AMX
    ],
)
def test_what_state_user_code_reaches_its_kernel_is_told_to_save(
    state: int, xcr0: int, ecx: int, ebx: int, area: int
) -> None:
    """As on this back end: KVM's leaf 1 has no XSAVE, and leaf 0xD has the state that ring 3 uses all the same."""
    sizes = {2: (256, 576), 3: (64, 960), 5: (64, 1088), 6: (512, 1152), 7: (1024, 1664), 9: (8, 2688)}
    leaves = kvm_cpuid2(nent=3 + len(sizes))
    leaves.entries[0] = kvm_cpuid_entry2(1, 0, 0, 0, 0, FMA, 0)
    leaves.entries[1] = kvm_cpuid_entry2(7, 0, 1, 0, AVX2 | AVX512BW, 0, 0)
    leaves.entries[2] = kvm_cpuid_entry2(0xD, 0, 1, state, 9999, 9999, 0)
    for number, (component, (size, offset)) in enumerate(sizes.items(), 3):
        leaves.entries[number] = kvm_cpuid_entry2(0xD, component, 1, size, offset, 0, 0)
    policy = CpuidPolicy(leaves)
    assert policy.xcr0 == xcr0
    assert policy.leaf(1).ecx & 0x7FFF_FFFF == ecx
    assert policy.leaf(7).ebx == ebx
    assert policy.leaf(0xD) == (Leaf(xcr0, area, area, 0) if area else NOTHING)
    assert policy.may_enable(xcr0) == bool(area)
    assert [policy.leaf(0xD, 0, 0, 3).ebx, policy.leaf(0xD, 9), policy.leaf(0xD, 3)] == [area and 576, NOTHING, NOTHING]


def test_xens_leaves_say_who_it_is() -> None:
    leaf = POLICY.leaf(0x4000_0000)
    signature = b"".join(word.to_bytes(4, "little") for word in leaf[1:])
    assert (leaf.eax, signature) == (0x4000_0002, b"XenVMMXenVMM")
    assert POLICY.leaf(0x4000_0001).eax == 4 << 16 | 17
    assert POLICY.leaf(0x4000_0002).ecx == 1
    assert POLICY.leaf(1).ecx >> 31 == 1


def test_each_vcpu_is_a_processor_of_its_own() -> None:
    assert [POLICY.leaf(1, 0, vcpu).ebx >> 24 for vcpu in range(4)] == [0, 2, 4, 6]
    assert POLICY.leaf(1).ebx >> 16 & 0xFF == 1


@given(st.integers(0, WORD), st.integers(0, WORD), st.integers(0, 127))
def test_any_leaf_is_four_words(leaf: int, index: int, vcpu: int) -> None:
    assert all(0 <= word <= WORD for word in POLICY.leaf(leaf, index, vcpu))


def test_an_empty_host_gives_nothing_but_xen() -> None:
    policy = CpuidPolicy(kvm_cpuid2())
    assert policy.leaf(0) == policy.leaf(0x8000_0001) == NOTHING
    assert policy.leaf(0x4000_0000).eax == 0x4000_0002


@pytest.mark.kvm
def test_this_host_offers_what_a_64_bit_kernel_needs_and_kvm_takes_the_view() -> None:
    with Kvm() as kvm:
        policy = CpuidPolicy(kvm.supported_cpuid())
        needed = 1 << 6 | 1 << 8 | 1 << 15 | 1 << 24 | 1 << 25 | 1 << 26  # PAE, CX8, CMOV, FXSR, SSE, SSE2
        assert policy.leaf(1).edx & needed == needed
        needed = 1 << 11 | 1 << 20 | 1 << 29  # SYSCALL, NX, LM
        assert policy.leaf(0x8000_0001).edx & needed == needed
        vm = kvm.create_vm()
        vcpu = vm.create_vcpu(0)
        try:
            vcpu.set_cpuid(policy.kvm_leaves())
        finally:
            vcpu.close()
            vm.close()
