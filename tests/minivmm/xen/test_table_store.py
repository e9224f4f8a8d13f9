"""What faulted is carried out as the processor would have: each instruction is executed natively as well."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable
from typing import Any, NamedTuple

import iced_x86
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iced_x86 import Code, Encoder, Instruction, MemoryOperand, Register

from minivmm.kvm.abi import kvm_regs
from minivmm.x86 import operands
from minivmm.x86.arithmetic import AF, CF, STATUS, ZF
from minivmm.xen.errors import HypercallError
from minivmm.xen.table_store import emulate_load, emulate_store
from tests.minivmm.x86.native import AREA, Processor

DF, RF = 1 << 10, 1 << 16
CODE = 0x7F12_3456_7FF8  # 8 bytes before the end of a page
MACHINE = 0x1234_5000  # machine address of the memory
MIDDLE = mmap.PAGESIZE + 0x800
NAMES = ["rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16))]
DEFINED = dict.fromkeys(("and", "or", "xor", "test"), STATUS & ~AF) | dict.fromkeys(("bts", "btr", "btc"), CF | ZF)

PROCESSOR = Processor()


class Form(NamedTuple):
    """An encoding of an instruction with one operand in memory."""

    mnemonic: str
    size: int  # bytes, of the memory operand
    other: int  # bytes, of the register or immediate; 0: none
    code: Any  # iced_x86.Code
    immediate: bool
    load: bool  # the memory is the source
    lockable: bool


def forms(*, load: bool) -> list[Form]:
    """Every encoding that the iced tables name in these ways, of the instructions that are carried out."""
    found = []
    sizes = (1, 2, 4, 8)
    lockable = ("add", "adc", "sub", "sbb", "and", "or", "xor")
    arithmetic = [*lockable, "mov", "cmp", "test"]

    def add(mnemonic: str, size: int, other: int, suffix: str, immediate: bool, is_load: bool, lock: bool) -> None:
        code = getattr(Code, f"{mnemonic}_{suffix}".upper(), None)
        if code is not None and is_load == load:
            found.append(Form(mnemonic, size, other, code, immediate, is_load, lock))

    for size in sizes:
        bits = 8 * size
        for name in arithmetic:
            reads_only = name in ("cmp", "test")
            locks = name in lockable
            add(name, size, size, f"RM{bits}_R{bits}", False, reads_only, locks)
            add(name, size, size, f"R{bits}_RM{bits}", False, True, False)
            for constant in {8, 16, 32} & {8, bits, 32}:
                add(name, size, constant // 8, f"RM{bits}_IMM{constant}", True, reads_only, locks)
        for name in ("inc", "dec", "neg", "not"):
            add(name, size, 0, f"RM{bits}", False, False, True)
        for name in ("xchg", "xadd", "cmpxchg"):
            add(name, size, size, f"RM{bits}_R{bits}", False, False, True)
        for name in ("bts", "btr", "btc"):
            add(name, size, size, f"RM{bits}_R{bits}", False, False, True)
            add(name, size, 1, f"RM{bits}_IMM8", True, False, True)
        add("movnti", size, size, f"M{bits}_R{bits}", False, False, False)
        for source in sizes:
            for name in ("movzx", "movsx", "movsxd"):
                add(name, source, size, f"R{bits}_RM{8 * source}", False, True, False)
    return found


STORES, LOADS = forms(load=False), forms(load=True)
REGISTERS = {
    8: [getattr(Register, name.upper()) for name in NAMES],
    4: [getattr(Register, f"E{name[1:]}".upper() if name[1:].isalpha() else f"{name}D".upper()) for name in NAMES],
    2: [getattr(Register, name[1:].upper() if name[1:].isalpha() else f"{name}W".upper()) for name in NAMES],
    1: [getattr(Register, f"{name}L".upper()) for name in ("a", "c", "d", "b", "bp", "si", "di", *NAMES[7:])],
}
HIGH_BYTES = [Register.AH, Register.CH, Register.DH, Register.BH]
INTERESTING = st.one_of(
    st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0x7FFF_FFFF, 0x8000_0000, (1 << 63) - 1, 1 << 63]),
    st.sampled_from([(1 << bits) - 1 for bits in (8, 16, 32, 64)]),
    st.integers(0, (1 << 64) - 1),
)


class Pages:
    """The code, and a copy of the memory as it was."""

    def __init__(self, code: bytes, memory: bytes) -> None:
        self.code, self.memory = code, memory

    def read(self, address: int, length: int) -> bytes:
        place = address - PROCESSOR.address
        if 0 <= place <= AREA - length:
            return self.memory[place : place + length]
        place = address - CODE
        if 0 <= place <= len(self.code) - length:
            return self.code[place : place + length]
        raise HypercallError(14, f"nothing at {address:#x}")


class Vcpu:
    """Registers and memory."""

    def __init__(self, code: bytes, regs: kvm_regs) -> None:
        self.pages = Pages(code + b"\x90" * (15 - len(code)), PROCESSOR.memory[:])
        self.regs = kvm_regs.from_buffer_copy(regs)
        self.regs.rip = CODE
        self.regs.rflags |= RF
        self.fs_base = self.gs_base = 0

    def store(self, machine: int, value: int, size: int) -> None:
        assert 0 <= value < 1 << 8 * size
        place = machine - MACHINE
        memory = self.pages.memory
        self.pages.memory = memory[:place] + value.to_bytes(size, "little") + memory[place + size :]


class Case(NamedTuple):
    """An instruction, where its memory is, and the registers."""

    mnemonic: str
    code: bytes
    place: int  # in the memory
    size: int
    regs: kvm_regs


@st.composite
def cases(draw: st.DrawFn, choices: list[Form]) -> Case:
    form = draw(st.sampled_from(choices))
    regs = kvm_regs(*(draw(INTERESTING) for _ in range(16)))
    regs.rflags = draw(st.integers(0, STATUS)) & STATUS | 0x202
    narrow = draw(st.booleans())  # 32-bit addresses
    base_name = draw(st.sampled_from(NAMES))
    base_register = REGISTERS[4 if narrow else 8][NAMES.index(base_name)]
    other = draw(st.sampled_from(REGISTERS[form.other])) if form.other and not form.immediate else Register.NONE
    if form.other == 1 and not form.immediate and base_name[1:].isalpha() and draw(st.booleans()):
        other = draw(st.sampled_from(HIGH_BYTES))  # cannot be named together with R8 to R15
    wide = iced_x86.RegisterExt.full_register(other) if other else Register.NONE
    displacement = draw(st.integers(-0x7000_0000, 0x7000_0000)) if not narrow else draw(st.integers(-128, 127))
    place = MIDDLE + draw(st.integers(0, 63)) * 8
    accessed = place
    if form.mnemonic in ("bts", "btr", "btc") and not form.immediate:
        if wide == getattr(Register, base_name.upper()):
            other = next(one for one in REGISTERS[form.size] if iced_x86.RegisterExt.full_register(one) != wide)
            wide = iced_x86.RegisterExt.full_register(other)
        offset = draw(st.integers(-8 * 0x800, 8 * 0x800 - 1))
        name = NAMES[REGISTERS[8].index(wide)]
        kept = getattr(regs, name) & ~operands.mask(form.size)
        setattr(regs, name, kept | offset & operands.mask(form.size))
        accessed = place + offset // (8 * form.size) * form.size
    setattr(regs, base_name, PROCESSOR.address + place - displacement & (1 << 64) - 1)
    memory = MemoryOperand(base_register, displ=displacement, displ_size=4 if narrow else 8)
    if form.other == 0:
        instruction = Instruction.create_mem(form.code, memory)
    elif form.immediate:
        signed = form.other < form.size or form.other == 4
        bits = 8 * form.other
        value = draw(st.integers(-(1 << bits - 1), (1 << bits - 1) - 1) if signed else st.integers(0, (1 << bits) - 1))
        if form.mnemonic in ("bts", "btr", "btc"):
            value &= 0xFF
        instruction = Instruction.create_mem_i32(form.code, memory, value)
    elif form.load and iced_x86.OpCodeInfo(form.code).op0_kind in _REGISTER_KINDS:
        instruction = Instruction.create_reg_mem(form.code, other, memory)
    else:
        instruction = Instruction.create_mem_reg(form.code, memory, other)
    if form.lockable and draw(st.booleans()):
        instruction.has_lock_prefix = True
    encoder = Encoder(64)
    encoder.encode(instruction, CODE)
    if form.mnemonic == "cmpxchg" and draw(st.booleans()) and base_name != "rax":
        regs.rax = draw(st.just(int.from_bytes(PROCESSOR.memory[accessed : accessed + 8], "little")))
    return Case(form.mnemonic, bytes(encoder.take_buffer()), accessed, form.size, regs)


_REGISTER_KINDS = {
    value for name, value in vars(iced_x86.OpCodeOperandKind).items() if name.endswith("_REG") and name[0] == "R"
}


def same(case: Case, vcpu: Vcpu) -> None:
    """The registers, flags and memory of `vcpu` are the processor's."""
    native = case.regs
    PROCESSOR.execute(case.code, native)
    for name in NAMES:
        assert getattr(vcpu.regs, name) == getattr(native, name), name
    defined = DEFINED.get(case.mnemonic, STATUS)
    assert vcpu.regs.rflags & defined == native.rflags & defined
    assert vcpu.pages.memory == PROCESSOR.memory[:]
    assert vcpu.regs.rip == CODE + len(case.code)
    assert not vcpu.regs.rflags & RF


@settings(max_examples=800, deadline=None)
@given(cases(STORES), st.binary(min_size=64, max_size=64))
def test_a_store_does_what_the_processor_does(case: Case, data: bytes) -> None:
    start = case.place & ~63
    if case.mnemonic != "cmpxchg":
        PROCESSOR.memory[start : start + 64] = data
    vcpu = Vcpu(case.code, case.regs)
    assert emulate_store(vcpu, PROCESSOR.address + case.place, MACHINE + case.place, vcpu.store)
    same(case, vcpu)


@settings(max_examples=400, deadline=None)
@given(cases(LOADS), st.binary(min_size=64, max_size=64))
def test_a_load_does_what_the_processor_does(case: Case, data: bytes) -> None:
    start = case.place & ~63
    PROCESSOR.memory[start : start + 64] = data
    vcpu = Vcpu(case.code, case.regs)
    assert emulate_load(vcpu, PROCESSOR.address + case.place, vcpu.pages.read)
    same(case, vcpu)


STRINGS = {"stosb": b"\xaa", "stosw": b"\x66\xab", "stosd": b"\xab", "stosq": b"\x48\xab"}
STRINGS |= {"movsb": b"\xa4", "movsw": b"\x66\xa5", "movsd": b"\xa5", "movsq": b"\x48\xa5"}
SIZES = {"b": 1, "w": 2, "d": 4, "q": 8}


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(STRINGS)),
    st.sampled_from([b"", b"\xf3", b"\x67", b"\xf3\x67"]),
    st.integers(1, 5),
    st.booleans(),
    INTERESTING,
    st.binary(min_size=256, max_size=256),
)
def test_a_string_store_goes_on_element_by_element(
    name: str, prefix: bytes, count: int, down: bool, rax: int, data: bytes
) -> None:
    PROCESSOR.memory[MIDDLE : MIDDLE + 256] = data
    size = SIZES[name[-1]]
    source, target = PROCESSOR.address + MIDDLE + 64, PROCESSOR.address + MIDDLE + 128
    regs = kvm_regs(rax=rax, rcx=count, rsi=source, rdi=target, rflags=0x202 | (DF if down else 0))
    code = prefix + STRINGS[name]
    case = Case(name, code, 0, size, regs)
    vcpu = Vcpu(code, regs)
    for element in range(count if b"\xf3" in prefix else 1):
        assert vcpu.regs.rip == CODE
        at = target + (-size if down else size) * element
        assert emulate_store(vcpu, at, MACHINE + at - PROCESSOR.address, vcpu.store)
    same(case, vcpu)


REFUSED = {
    "push [rdi]": b"\xff\x37",
    "cmpxchg16b [rdi]": b"\x48\x0f\xc7\x0f",
    "cmpxchg8b [rdi]": b"\x0f\xc7\x0f",
    "movups [rdi], xmm0": b"\x0f\x11\x07",
    "movsd [rdi], xmm0": b"\xf2\x0f\x11\x07",
    "mov [rdi], ds": b"\x8c\x1f",
    "shl [rdi], 1": b"\x48\xd1\x27",
    "sgdt [rdi]": b"\x0f\x01\x07",
    "fst [rdi]": b"\xdd\x17",
    "no instruction": b"\x06",
    "rex after rex, cut off": b"\x48" * 15,
    "a load": b"\x48\x8b\x07",
    "a jump": b"\xeb\xfe",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_the_domains_own_fault(name: str) -> None:
    regs = kvm_regs(rdi=PROCESSOR.address + MIDDLE, rflags=0x202)
    vcpu = Vcpu(REFUSED[name], regs)
    assert not emulate_store(vcpu, PROCESSOR.address + MIDDLE, MACHINE + MIDDLE, never)
    unchanged(vcpu, regs)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=20), st.sampled_from([emulate_store, emulate_load]), st.data())
def test_bytes_of_any_kind_raise_nothing_untyped(
    code: bytes, emulate: Callable[..., bool], data: st.DataObject
) -> None:
    regs = kvm_regs(*(data.draw(st.sampled_from([0, PROCESSOR.address + MIDDLE, (1 << 64) - 1])) for _ in range(16)))
    vcpu = Vcpu(code, regs)
    with contextlib.suppress(HypercallError):
        if emulate is emulate_store:
            emulate(vcpu, PROCESSOR.address + MIDDLE, MACHINE + MIDDLE, vcpu.store)
        else:
            emulate(vcpu, PROCESSOR.address + MIDDLE, vcpu.pages.read)


def test_an_access_elsewhere_is_not_the_one_that_faulted() -> None:
    regs = kvm_regs(rdi=PROCESSOR.address + MIDDLE, rflags=0x202)
    vcpu = Vcpu(b"\x48\x89\x07", regs)  # mov [rdi], rax
    for wrong in (-8, -1, 1, 8):
        assert not emulate_store(vcpu, PROCESSOR.address + MIDDLE + wrong, MACHINE + MIDDLE + wrong, never)
    unchanged(vcpu, regs)


@pytest.mark.parametrize("code", [b"\x48\x87\x07", b"\xf0\x48\x0f\xc1\x07", b"\xf3\x48\xab", b"\xf0\x48\x0f\xab\x07"])
def test_a_refused_store_changes_nothing(code: bytes) -> None:
    regs = kvm_regs(rdi=PROCESSOR.address + MIDDLE, rcx=3, rax=5, rflags=0x202)
    vcpu = Vcpu(code, regs)
    with pytest.raises(HypercallError):
        emulate_store(vcpu, PROCESSOR.address + MIDDLE, MACHINE + MIDDLE, refuse)
    unchanged(vcpu, regs)


def test_a_store_relative_to_gs_and_one_relative_to_rip_find_their_place() -> None:
    target = PROCESSOR.address + MIDDLE
    vcpu = Vcpu(b"\x65\x48\x89\x47\x10", kvm_regs(rdi=0x100, rax=7))  # mov gs:[rdi + 0x10], rax
    vcpu.gs_base = target - 0x110
    assert emulate_store(vcpu, target, MACHINE + MIDDLE, vcpu.store)
    vcpu = Vcpu(b"\x48\xc7\x05\x10\0\0\0\xff\xff\xff\xff", kvm_regs())  # mov qword [rip + 0x10], -1
    stored: list[tuple[int, int, int]] = []
    vcpu.pages.code += bytes(64)
    assert emulate_store(vcpu, CODE + 11 + 0x10, MACHINE, lambda *store: stored.append(store))
    assert stored == [(MACHINE, (1 << 64) - 1, 8)]


def never(machine: int, value: int, size: int) -> None:
    raise AssertionError((machine, value, size))


def refuse(machine: int, value: int, size: int) -> None:
    raise HypercallError(22, f"refused {machine:#x} {value:#x} {size}")


def unchanged(vcpu: Vcpu, regs: kvm_regs) -> None:
    regs.rip, regs.rflags = CODE, regs.rflags | RF
    assert bytes(vcpu.regs) == bytes(regs)
