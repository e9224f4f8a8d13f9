"""A PV kernel's privileged instructions are carried out as Xen does, and user code gets none of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivmm.deprivileged.events import Trap, Vector
from minivmm.kvm.abi import kvm_cpuid2, kvm_cpuid_entry2, kvm_regs
from minivmm.x86.registers import Cr0, Cr4, Xcr0
from minivmm.xen.abi import EMULATE_PREFIX
from minivmm.xen.cpuid import CpuidPolicy
from minivmm.xen.errors import HypercallError
from minivmm.xen.msr import HWCR_TSC_FREQ_SEL, MSRS, XEN_PAT
from minivmm.xen.privileged import STRING_ELEMENTS, emulate

CODE, DATA = 0x1000, 0x2000
CR0 = Cr0.PG | Cr0.AM | Cr0.WP | Cr0.NE | Cr0.ET | Cr0.MP | Cr0.PE
RF = 1 << 16
TSC = 0x1234_5678_9ABC_DEF0
GP = Trap(Vector.GP, 0, 0, CODE)
UD = Trap(Vector.UD, 0, 0, CODE)
CPUID = b"\x0f\xa2"
LEAF_0 = 0x4000_0000


class Memory:
    """A page of code and a page of data."""

    def __init__(self) -> None:
        self.bytes = bytearray(0x1000)

    def read(self, address: int, length: int) -> bytes:
        if not DATA - 0x1000 <= address <= DATA + 0x1000 - length:
            raise HypercallError(14, f"nothing at {address:#x}")
        if address < DATA:
            return (self.code + bytes(0x1000))[address - CODE :][:length]
        return bytes(self.bytes[address - DATA : address - DATA + length])

    def write(self, address: int, data: bytes) -> None:
        if not DATA <= address <= DATA + 0x1000 - len(data):
            raise HypercallError(14, f"nothing at {address:#x}")
        self.bytes[address - DATA : address - DATA + len(data)] = data

    code = b""


class Ports:
    """Ports that remember what was written, and count what is read."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int, int]] = []
        self.reads = 0

    def read(self, port: int, size: int) -> int:
        self.reads += 1
        return (port << 8 | self.reads) & (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> None:
        self.written.append((port, size, value))


class Cpu:
    """The CPU's own."""

    def __init__(self) -> None:
        self.xcr0: list[int] = []

    def tsc(self) -> int:
        return TSC

    def set_xcr0(self, value: int) -> bool:
        self.xcr0.append(value)
        return True


class Vcpu:
    """A vCPU that does nothing but remember."""

    def __init__(self, code: bytes, **registers: int) -> None:
        self.regs = kvm_regs(rip=CODE, rflags=0x202 | RF, **registers)
        self.pages = Memory()
        self.pages.code = code
        self.ports = Ports()
        self.cpu = Cpu()
        self.cpuid = CpuidPolicy(kvm_cpuid2())
        self.index = 0
        self.in_kernel = True
        self.iopl = self.kernel_ring = 1
        self.cr0, self.cr4, self.cr3 = CR0, 0x620, 0x5000
        self.xcr0 = Xcr0.X87
        self.fault_address = 0xDEAD_0000
        self.debug_registers = [1, 2, 3, 4, 0, 0, 0xFFFF_0FF0, 0x400]
        self.fs_base, self.gs_base, self.gs_base_user = 0x100, 0x200, 0x300
        self.blocked = False

    def load_cr3(self, value: int) -> None:
        if value & 0xFFF:
            raise HypercallError(22, "no table")
        self.cr3 = value

    def set_task_switched(self, value: bool) -> None:
        self.cr0 = self.cr0 | Cr0.TS if value else self.cr0 & ~Cr0.TS

    def set_debug_register(self, number: int, value: int) -> None:
        self.debug_registers[number] = value

    def block(self) -> None:
        self.blocked = True


def done(code: str, **registers: int) -> Vcpu:
    """A kernel that executed `code` and went on after it."""
    vcpu = Vcpu(bytes.fromhex(code), **registers)
    assert emulate(vcpu, GP)
    assert vcpu.regs.rip == CODE + len(bytes.fromhex(code))
    assert not vcpu.regs.rflags & RF
    return vcpu


def refused(vcpu: Vcpu, trap: Trap = GP) -> bool:
    """Whether the exception is the domain's own, and nothing was changed."""
    before = bytes(vcpu.regs), vcpu.cr0, vcpu.cr3, vcpu.cr4, list(vcpu.debug_registers), vcpu.blocked
    try:
        if emulate(vcpu, trap):
            return False
    except HypercallError:
        pass
    return before == (bytes(vcpu.regs), vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.debug_registers, vcpu.blocked)


def test_control_registers_read_as_the_kernel_left_them() -> None:
    for code, value in {"0f20c3": CR0, "0f20d3": 0xDEAD_0000, "0f20db": 0x5000, "0f20e3": 0x620}.items():
        assert done(code).regs.rbx == value


def test_of_cr0_only_ts_changes() -> None:
    for ts in (0, Cr0.TS):
        assert done("0f22c0", rax=CR0 | ts).cr0 == CR0 | ts
    assert done("0f01f0", rax=0xFFFB).cr0 == CR0 | Cr0.TS  # lmsw ax: what is above its four bits means nothing
    vcpu = done("0f01f0", rax=Cr0.TS | Cr0.MP)  # lmsw cannot clear PE
    assert vcpu.cr0 == CR0 | Cr0.TS
    for changed in (Cr0.PG, Cr0.WP, Cr0.MP, 1 << 2, 1 << 63):
        assert refused(Vcpu(bytes.fromhex("0f22c0"), rax=CR0 ^ changed))
    vcpu = Vcpu(bytes.fromhex("0f06"))  # clts
    vcpu.cr0 |= Cr0.TS
    assert emulate(vcpu, GP)
    assert vcpu.cr0 == CR0


def test_lmsw_reads_memory() -> None:
    vcpu = Vcpu(bytes.fromhex("0f013425") + DATA.to_bytes(4, "little"))
    vcpu.pages.bytes[:2] = b"\x0b\x00"
    assert emulate(vcpu, GP)
    assert vcpu.cr0 == CR0 | Cr0.TS


def test_other_control_registers_are_written_or_refused() -> None:
    assert done("0f22d0", rax=77).fault_address == 77
    assert done("0f22d8", rax=0x7000).cr3 == 0x7000
    assert done("0f22e0", rax=0x6A0).cr4 == 0x6A0
    assert refused(Vcpu(bytes.fromhex("0f22d8"), rax=0x7001))
    for hidden in (13, 16, 17, 18, 20, 21, 22):  # VMXE, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP, PKE
        assert refused(Vcpu(bytes.fromhex("0f22e0"), rax=1 << hidden))
    assert refused(Vcpu(bytes.fromhex("440f22c0")))  # cr8
    assert refused(Vcpu(bytes.fromhex("440f20c0")))


def test_debug_registers_4_and_5_are_6_and_7_unless_cr4_says_no() -> None:
    assert done("0f21d0").regs.rax == 3
    assert done("0f21e0").regs.rax == 0xFFFF_0FF0
    assert done("0f23e8", rax=0x401).debug_registers[7] == 0x401
    assert done("0f23c0", rax=0x1234).debug_registers[0] == 0x1234
    vcpu = Vcpu(bytes.fromhex("0f21e0"))
    vcpu.cr4 |= 1 << 3
    assert refused(vcpu)


@pytest.mark.parametrize(
    ("number", "value"),
    [
        (0x10, TSC),
        (0x1B, 0xFEE0_0900),
        (0x277, XEN_PAT),
        (0xC000_0080, 0xD01),
        (0xC000_0100, 0x100),
        (0xC000_0101, 0x200),
        (0xC000_0102, 0x300),
        (0xC001_0015, HWCR_TSC_FREQ_SEL),
    ],
)
def test_known_registers_are_read(number: int, value: int) -> None:
    vcpu = done("0f32", rcx=0xFFFF_FFFF_0000_0000 | number, rax=(1 << 64) - 1, rdx=(1 << 64) - 1)
    assert (vcpu.regs.rdx, vcpu.regs.rax) == (value >> 32, value & 0xFFFF_FFFF)


def test_bases_are_written_and_what_is_constant_may_be_written_as_it_is() -> None:
    high, low = 0xFFFF_8880, 0x1234_5678
    junk = 0xFFFF_FFFF << 32
    for number, name in {0xC000_0100: "fs_base", 0xC000_0101: "gs_base", 0xC000_0102: "gs_base_user"}.items():
        vcpu = done("0f30", rcx=number, rdx=junk | high, rax=junk | low)
        assert getattr(vcpu, name) == high << 32 | low
    assert refused(Vcpu(b"\x0f\x30", rcx=0xC000_0102, rdx=1 << 31))  # not canonical
    done("0f30", rcx=0xC000_0080, rax=0xD01)
    assert refused(Vcpu(b"\x0f\x30", rcx=0xC000_0080, rax=0x101))


@given(st.integers(0, (1 << 32) - 1).filter(lambda number: number not in MSRS))
def test_unknown_registers_are_the_kernels_own_fault(number: int) -> None:
    assert refused(Vcpu(b"\x0f\x32", rcx=number))
    assert refused(Vcpu(b"\x0f\x30", rcx=number))


def test_hlt_sleeps_and_invalidations_are_nothing() -> None:
    assert done("f4").blocked
    for code in ("0f08", "0f09", "0f013f"):
        assert not done(code).blocked


def test_cli_and_sti_do_nothing_when_iopl_allows_them() -> None:
    done("fa")
    done("fb")
    for code in (b"\xfa", b"\xfb"):
        vcpu = Vcpu(code)
        vcpu.iopl = 0
        assert refused(vcpu)


def test_ports_are_read_and_written_in_all_widths() -> None:
    junk = 0x1111_1111_1111_1111
    assert done("e442", rax=junk).regs.rax == junk & ~0xFF | 1
    assert done("66ed", rax=junk, rdx=0xFFFF_0042).regs.rax == junk & ~0xFFFF | 0x4201
    assert done("ed", rax=junk, rdx=0x42).regs.rax == 0x4201
    assert done("e661", rax=junk).ports.written == [(0x61, 1, 0x11)]
    assert done("66ef", rax=junk, rdx=0x1CF8).ports.written == [(0x1CF8, 2, 0x1111)]
    assert done("ef", rax=junk, rdx=0xCF8).ports.written == [(0xCF8, 4, 0x1111_1111)]


def test_strings_go_through_a_port_element_by_element() -> None:
    vcpu = Vcpu(b"\xf3\x66\x6f", rcx=3, rsi=DATA, rdx=0x10)  # rep outsw
    vcpu.pages.bytes[:6] = b"abcdef"
    assert emulate(vcpu, GP)
    assert vcpu.ports.written == [(0x10, 2, int.from_bytes(pair, "little")) for pair in (b"ab", b"cd", b"ef")]
    assert (vcpu.regs.rcx, vcpu.regs.rsi, vcpu.regs.rip) == (0, DATA + 6, CODE + 3)
    vcpu = done("6c", rcx=3, rdi=DATA + 5, rdx=0x10)  # insb
    assert (vcpu.pages.bytes[5], vcpu.regs.rdi, vcpu.regs.rcx) == (1, DATA + 6, 3)
    assert done("f36c", rcx=0, rdi=0, rdx=0x10).ports.reads == 0


def test_a_string_stops_at_what_cannot_be_had() -> None:
    vcpu = Vcpu(b"\xf3\x6c", rcx=10, rdi=DATA + 0x1000 - 4, rdx=0x10)
    assert emulate(vcpu, GP)
    assert (vcpu.regs.rcx, vcpu.regs.rdi, vcpu.regs.rip) == (6, DATA + 0x1000, CODE)
    vcpu.regs.rflags |= RF
    assert refused(vcpu)
    assert vcpu.ports.reads == 4


def test_a_long_string_is_executed_in_parts() -> None:
    vcpu = Vcpu(b"\xf3\x6e", rcx=(1 << 64) - 1, rsi=DATA, rdx=0x10)
    vcpu.pages.bytes = bytearray(0x10000)
    vcpu.pages.read = lambda address, length: b"\xf3\x6e".ljust(15) if address < DATA else bytes(length)  # type: ignore[method-assign]
    assert emulate(vcpu, GP)
    assert (vcpu.regs.rip, vcpu.regs.rsi) == (CODE, DATA + STRING_ELEMENTS)


def test_cpuid_behind_the_prefix_is_the_filtered_one_in_both_modes() -> None:
    for in_kernel in (True, False):
        vcpu = Vcpu(EMULATE_PREFIX + CPUID, rax=0xFFFF_FFFF_0000_0000 | LEAF_0, rcx=(1 << 64) - 1)
        vcpu.in_kernel = in_kernel
        assert emulate(vcpu, UD)
        assert vcpu.regs.rbx.to_bytes(8, "little") == b"XenV" + bytes(4)
        assert vcpu.regs.rip == CODE + 7


@pytest.mark.parametrize("code", [b"\x0f\x0b", EMULATE_PREFIX, EMULATE_PREFIX + b"\xf4", b"\x0f\x0bxeN" + CPUID])
def test_another_undefined_instruction_is_the_domains_own(code: bytes) -> None:
    assert refused(Vcpu(code), UD)


def test_the_tsc_is_readable_where_it_traps() -> None:
    vcpu = done("0f31")
    assert vcpu.regs.rdx << 32 | vcpu.regs.rax == TSC
    assert done("0f01f9", rcx=7).regs.rcx == 0  # rdtscp
    vcpu = Vcpu(b"\x0f\x31")
    vcpu.cr4 |= 1 << 2  # TSD
    vcpu.in_kernel = False
    assert refused(vcpu)


def with_avx() -> CpuidPolicy:
    """A processor with x87, SSE and AVX state."""
    leaves = kvm_cpuid2(nent=2)
    leaves.entries[0] = kvm_cpuid_entry2(0xD, 0, 1, 0x207, 2696, 2696, 0)
    leaves.entries[1] = kvm_cpuid_entry2(0xD, 2, 1, 256, 576, 0, 0)
    return CpuidPolicy(leaves)


def test_a_kernel_enables_extended_state_in_two_steps() -> None:
    vcpu = Vcpu(b"\x0f\x22\xe0\x0f\x01\xd1\x0f\x0bxen\x0f\xa2", rax=Cr4.PAE | Cr4.OSXSAVE, rcx=0, rdx=0)
    vcpu.cpuid = with_avx()
    assert emulate(vcpu, GP)  # mov cr4, rax
    assert (vcpu.cr4, vcpu.cpu.xcr0) == (Cr4.PAE | Cr4.OSXSAVE, [Xcr0.X87])
    vcpu.regs.rax = 7
    assert emulate(vcpu, GP)  # xsetbv
    assert (vcpu.xcr0, vcpu.cpu.xcr0[-1]) == (7, 7)
    vcpu.regs.rax = 0xD
    assert emulate(vcpu, UD)  # cpuid
    assert (vcpu.regs.rax, vcpu.regs.rbx, vcpu.regs.rcx) == (7, 832, 832)


@pytest.mark.parametrize("value", [0, 2, 4, 5, 0x207, 0xE7, 1 << 63, 8, 0x17])
def test_no_other_extended_state_is_enabled(value: int) -> None:
    vcpu = Vcpu(b"\x0f\x01\xd1", rax=value & 0xFFFF_FFFF, rdx=value >> 32)
    vcpu.cpuid = with_avx()
    vcpu.cr4 |= Cr4.OSXSAVE
    assert refused(vcpu)
    assert (vcpu.xcr0, vcpu.cpu.xcr0) == (Xcr0.X87, [])


def test_xsetbv_needs_xsave_and_cr4s_leave_and_register_0() -> None:
    vcpu = Vcpu(b"\x0f\x01\xd1", rax=3)
    assert refused(vcpu)
    vcpu.cr4 |= Cr4.OSXSAVE
    assert refused(vcpu)
    vcpu.cpuid = with_avx()
    vcpu.regs.rcx = 1
    assert refused(vcpu)
    vcpu.regs.rcx = 0
    assert emulate(vcpu, GP)


FORBIDDEN = {
    "rdpmc": "0f33",
    "iretq": "48cf",
    "sysretq": "480f07",
    "swapgs": "0f01f8",
    "lgdt": "0f0117",
    "ltr": "0f00d8",
    "mov to memory": "488907",
    "mov ds": "8ed8",
    "int 0x80": "cd80",
    "not an instruction": "06",
    "vmcall": "0f01c1",
    "far jump": "48ff2f",
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_xen_does_not_emulate_is_the_kernels_own_fault(name: str) -> None:
    vcpu = Vcpu(bytes.fromhex(FORBIDDEN[name]))
    vcpu.iopl = 3
    assert refused(vcpu)


KERNELS_ONLY = [
    "0f20c0",
    "0f22c0",
    "0f22d8",
    "0f21c0",
    "0f23c0",
    "0f06",
    "0f01f0",
    "0f32",
    "0f30",
    "f4",
    "0f08",
    "0f09",
]
BY_IOPL = ["fa", "fb", "e442", "e642", "ed", "ef", "6c", "6e"]


@pytest.mark.parametrize("code", [*KERNELS_ONLY, "0f013f", *BY_IOPL])
def test_user_code_has_no_privileges(code: str) -> None:
    vcpu = Vcpu(bytes.fromhex(code), rcx=0xC000_0100, rax=CR0, rdi=DATA, rsi=DATA)
    vcpu.in_kernel, vcpu.iopl = False, 2
    assert refused(vcpu)


@pytest.mark.parametrize("code", BY_IOPL)
def test_user_code_has_ports_with_iopl_3(code: str) -> None:
    vcpu = Vcpu(bytes.fromhex(code), rdi=DATA, rsi=DATA)
    vcpu.in_kernel, vcpu.iopl = False, 3
    assert emulate(vcpu, GP)


@settings(max_examples=500)
@given(st.binary(max_size=20), st.lists(st.integers(0, (1 << 64) - 1), min_size=16, max_size=16), st.booleans())
def test_bytes_of_any_kind_raise_nothing_untyped(code: bytes, registers: list[int], in_kernel: bool) -> None:
    vcpu = Vcpu(code)
    vcpu.regs = kvm_regs(*registers, CODE, 0x202)
    vcpu.in_kernel = in_kernel
    for trap in (GP, UD):
        try:
            emulate(vcpu, trap)
        except HypercallError:
            continue
