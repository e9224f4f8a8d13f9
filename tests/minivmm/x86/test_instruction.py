"""Instructions come apart into what the SDM calls them, whatever the bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivmm.kvm.abi import kvm_regs
from minivmm.x86.instruction import Immediate, Instruction, Memory, Register, Special, decode
from minivmm.x86.operands import SegmentBases, address, fetch, get, put, signed

RIP = 0xFFFF_FFFF_8100_0FF8
NO_BASES = SegmentBases(0, 0)


def decoded(code: str, bitness: int = 64) -> Instruction:
    instruction = decode(bytes.fromhex(code), RIP & (1 << bitness) - 1, bitness)
    assert instruction is not None
    return instruction


@pytest.mark.parametrize(
    ("code", "mnemonic", "operands"),
    [
        ("0f22d8", "mov", (Special("cr3"), Register("rax", 8))),
        ("410f20c0", "mov", (Register("r8", 8), Special("cr0"))),
        ("66ef", "out", (Register("rdx", 2), Register("rax", 2))),
        ("88e3", "mov", (Register("rbx", 1), Register("rax", 1, 8))),
        ("4488ff", "mov", (Register("rdi", 1), Register("r15", 1))),
        ("4883c8ff", "or", (Register("rax", 8), Immediate((1 << 64) - 1))),
        ("f0480fb10f", "cmpxchg", (Memory("ds", "rdi", None, 1, 0, 8, 8), Register("rcx", 8))),
        ("65488b042508000000", "mov", (Register("rax", 8), Memory("gs", None, None, 1, 8, 8, 8))),
        ("0f0138", "invlpg", (Memory("ds", "rax", None, 1, 0, 0, 8),)),
        ("67488b04cb", "mov", (Register("rax", 8), Memory("ds", "rbx", "rcx", 8, 0, 8, 4))),
        ("f348a5", "movsq", (Memory("es", "rdi", None, 1, 0, 8, 8), Memory("ds", "rsi", None, 1, 0, 8, 8))),
        ("c5f877", "vzeroupper", ()),
    ],
)
def test_each_part_has_its_name(code: str, mnemonic: str, operands: tuple[object, ...]) -> None:
    instruction = decoded(code)
    assert (instruction.mnemonic, instruction.operands) == (mnemonic, operands)
    assert instruction.length == len(code) // 2
    assert instruction.lock == code.startswith("f0")


def test_a_32_bit_segment_reads_the_same_bytes_differently() -> None:
    assert decoded("48", 32).mnemonic == "dec"
    assert decoded("8b07", 32).operands[1] == Memory("ds", "rdi", None, 1, 0, 4, 4)
    assert decoded("678b07", 32).operands[1] == Memory("ds", "rbx", None, 1, 0, 4, 2)


@pytest.mark.parametrize("code", ["", "0f", "48", "06", "66" * 15, "f0488b07", "f04889d8"])
def test_what_is_no_instruction_is_none(code: str) -> None:
    assert decode(bytes.fromhex(code), RIP) is None


@given(st.binary(max_size=20), st.integers(0, (1 << 64) - 1), st.sampled_from([16, 32, 64]))
def test_any_bytes_decode_or_do_not(code: bytes, rip: int, bitness: int) -> None:
    instruction = decode(code, rip, bitness)
    assert instruction is None or 1 <= instruction.length <= min(15, len(code))


def test_addresses_add_up_modulo_their_size() -> None:
    regs = kvm_regs(rbx=(1 << 64) - 16, rcx=3, rdi=0x1000)
    sums = {
        "8b44cb10": 24,  # [rbx + rcx * 8 + 0x10]
        "678b44cb08": 16,  # [ebx + ecx * 8 + 8]
        "8b05f0ffffff": RIP + 6 - 16,  # [rip - 16]
        "678b05f0ffffff": RIP + 7 - 16 & 0xFFFF_FFFF,
        "8b0425f8ffffff": (1 << 64) - 8,  # [-8]
        "648b07": 0x1000 + 0x7000,  # fs:[rdi]
        "65678b03": 0xFFFF_FFF0 - 0x10,  # gs:[ebx]
    }
    for code, expected in sums.items():
        memory = decoded(code).operands[1]
        assert isinstance(memory, Memory)
        assert address(regs, memory, SegmentBases(0x7000, (1 << 64) - 0x10)) == expected, code


def test_parts_of_registers_are_read_and_written_as_such() -> None:
    regs = kvm_regs(rax=0x1122_3344_5566_7788)
    assert [get(regs, Register("rax", size)) for size in (1, 2, 4, 8)] == [0x88, 0x7788, 0x5566_7788, regs.rax]
    assert get(regs, Register("rax", 1, 8)) == 0x77
    put(regs, Register("rax", 1, 8), 0x1FF)
    put(regs, Register("rax", 1), 0xEE)
    assert regs.rax == 0x1122_3344_5566_FFEE
    put(regs, Register("rax", 2), -1)
    assert regs.rax == 0x1122_3344_5566_FFFF
    put(regs, Register("rax", 4), -1)
    assert regs.rax == 0xFFFF_FFFF
    assert (signed(0x80, 1), signed(0x7F, 1), signed((1 << 64) - 1, 8)) == (-128, 127, -1)


@pytest.mark.parametrize(("left", "found"), [(15, True), (3, True), (2, False), (0, False)])
def test_an_instruction_is_fetched_at_the_end_of_what_is_mapped(left: int, found: bool) -> None:
    end = (RIP | 0xFFF) + 1
    memory = bytes.fromhex("0f22d8") + bytes(12)

    def read(start: int, length: int) -> bytes:
        if start + length > end:
            raise LookupError(start)
        return memory[:length]

    assert (fetch(read, end - left, LookupError) is not None) == found
