"""The few x86-64 instructions that translated code is made of, as bytes (SDM volume 2).

Each function returns one instruction. Operands are register numbers as the encoding has them; a memory operand is
`base + disp`, or `base + index + disp`. `wide` is REX.W: 64 bits, else 32, whose result clears the upper half.
Instructions repeat all the time, so most functions remember what they returned.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache, lru_cache


class Reg(IntEnum):
    """General registers by number (SDM vol. 2, table 2-2 and 3.1.1.1)."""

    RAX = 0
    RCX = 1
    RDX = 2
    RBX = 3
    RSP = 4
    RBP = 5
    RSI = 6
    RDI = 7
    R8 = 8
    R9 = 9
    R10 = 10
    R11 = 11
    R12 = 12
    R13 = 13
    R14 = 14
    R15 = 15


class Alu(IntEnum):
    """The eight operations of opcodes 00 to 3F, by their place there; /digit of 81 and 83."""

    ADD = 0
    OR = 1
    AND = 4
    SUB = 5
    XOR = 6
    CMP = 7


class Shift(IntEnum):
    """/digit of C1 and D3."""

    SHL = 4
    SHR = 5
    SAR = 7


class Unary(IntEnum):
    """/digit of F7."""

    NOT = 2
    NEG = 3
    MUL = 4
    IMUL = 5
    DIV = 6
    IDIV = 7


class Cond(IntEnum):
    """Condition codes (SDM vol. 1, appendix B)."""

    O = 0  # noqa: E741  the manual's name
    B = 2
    AE = 3
    E = 4
    NE = 5
    A = 7
    S = 8
    P = 10
    NP = 11
    L = 12
    GE = 13
    G = 15


# Loads by RISC-V's names: prefix bytes, opcode bytes, REX.W.
LOADS = {
    "lb": (b"\x0f\xbe", True),  # MOVSX
    "lh": (b"\x0f\xbf", True),
    "lw": (b"\x63", True),  # MOVSXD
    "ld": (b"\x8b", True),  # MOV
    "lbu": (b"\x0f\xb6", False),  # MOVZX
    "lhu": (b"\x0f\xb7", False),
    "lwu": (b"\x8b", False),
}


def _signed8(value: int) -> bool:
    return -128 <= value <= 127


def _le32(value: int) -> bytes:
    return (value & 0xFFFF_FFFF).to_bytes(4, "little")


def _rex(wide: bool, reg: int, index: int, base: int, force: bool = False) -> bytes:
    bits = wide << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3
    return bytes((0x40 | bits,)) if bits or force else b""


def _memory(reg: int, base: int, disp: int) -> bytes:
    """ModRM, SIB and displacement of [base + disp]."""
    low = base & 7
    sib = b"\x24" if low == 4 else b""
    if disp == 0 and low != 5:
        return bytes(((reg & 7) << 3 | low,)) + sib
    if _signed8(disp):
        return bytes((0x40 | (reg & 7) << 3 | low,)) + sib + bytes((disp & 0xFF,))
    return bytes((0x80 | (reg & 7) << 3 | low,)) + sib + _le32(disp)


def _indexed(reg: int, base: int, index: int, disp: int) -> bytes:
    """ModRM, SIB and displacement of [base + index + disp]."""
    modrm, sib = 0x04 | (reg & 7) << 3, (index & 7) << 3 | base & 7
    if disp == 0 and base & 7 != 5:
        return bytes((modrm, sib))
    if _signed8(disp):
        return bytes((0x40 | modrm, sib, disp & 0xFF))
    return bytes((0x80 | modrm, sib)) + _le32(disp)


@cache
def registers(opcode: bytes, reg: int, rm: int, wide: bool = True) -> bytes:
    """An instruction of two registers: reg and r/m of its ModRM byte."""
    return _rex(wide, reg, 0, rm) + opcode + bytes((0xC0 | (reg & 7) << 3 | rm & 7,))


@lru_cache(1 << 14)
def memory(opcode: bytes, reg: int, base: int, disp: int, wide: bool = True) -> bytes:
    """An instruction of a register and [base + disp]."""
    return _rex(wide, reg, 0, base) + opcode + _memory(reg, base, disp)


@lru_cache(1 << 12)
def indexed(opcode: bytes, reg: int, base: int, index: int, disp: int, wide: bool = True) -> bytes:
    """An instruction of a register and [base + index + disp]."""
    return _rex(wide, reg, index, base) + opcode + _indexed(reg, base, index, disp)


# --- moves ---------------------------------------------------------------------------------------------------------
def mov(to: int, source: int, wide: bool = True) -> bytes:
    """Register to register."""
    return registers(b"\x8b", to, source, wide)


@lru_cache(1 << 14)
def mov_imm(to: int, value: int) -> bytes:
    """The shortest that gives the register these 64 bits."""
    value &= (1 << 64) - 1
    if value == 0:
        return registers(b"\x31", to, to, False)
    if value < 1 << 32:
        return _rex(False, 0, 0, to) + bytes((0xB8 | to & 7,)) + _le32(value)
    if value >= (1 << 64) - (1 << 31):
        return registers(b"\xc7", 0, to) + _le32(value)
    return _rex(True, 0, 0, to) + bytes((0xB8 | to & 7,)) + value.to_bytes(8, "little")


def mov_load(to: int, base: int, disp: int, wide: bool = True) -> bytes:
    """Memory to register."""
    return memory(b"\x8b", to, base, disp, wide)


def mov_store(base: int, disp: int, source: int, wide: bool = True) -> bytes:
    """Register to memory."""
    return memory(b"\x89", source, base, disp, wide)


def mov_store_imm32(base: int, disp: int, value: int, wide: bool = False) -> bytes:
    """An immediate to memory: 32 bits, or sign-extended to 64."""
    return memory(b"\xc7", 0, base, disp, wide) + _le32(value)


@lru_cache(1 << 12)
def store_indexed(size: int, base: int, index: int, disp: int, source: int) -> bytes:
    """The low `size` bytes of a register to [base + index + disp]."""
    if size == 1:  # a REX prefix makes 4 to 7 SPL, BPL, SIL, DIL and not AH to BH
        return _rex(False, source, index, base, force=source >= 4) + b"\x88" + _indexed(source, base, index, disp)
    prefix = b"\x66" if size == 2 else b""
    return prefix + indexed(b"\x89", source, base, index, disp, size == 8)


def load(name: str, to: int, base: int) -> bytes:
    """What RISC-V's load `name` does, from [base]."""
    opcode, wide = LOADS[name]
    return memory(opcode, to, base, 0, wide)


def load_indexed(name: str, to: int, base: int, index: int, disp: int) -> bytes:
    """What RISC-V's load `name` does, from [base + index + disp]."""
    opcode, wide = LOADS[name]
    return indexed(opcode, to, base, index, disp, wide)


def mov_load_indexed(to: int, base: int, index: int, disp: int, wide: bool = True) -> bytes:
    """Memory, [base + index + disp], to register."""
    return indexed(b"\x8b", to, base, index, disp, wide)


def movsxd(to: int, source: int) -> bytes:
    """The low half of a register, sign-extended."""
    return registers(b"\x63", to, source)


@cache
def movzx8(to: int, source: int) -> bytes:
    """The low byte of a register, zero-extended. The REX prefix makes it SPL .. DIL for 4 to 7, not AH .. BH."""
    return _rex(False, to, 0, source, force=True) + b"\x0f\xb6" + bytes((0xC0 | (to & 7) << 3 | source & 7,))


@lru_cache(1 << 14)
def lea(to: int, base: int, disp: int, wide: bool = True) -> bytes:
    """base + disp."""
    return memory(b"\x8d", to, base, disp, wide)


def lea_indexed(to: int, base: int, index: int, disp: int = 0, wide: bool = True) -> bytes:
    """base + index + disp; the index is not RSP."""
    return indexed(b"\x8d", to, base, index, disp, wide)


# --- arithmetic ----------------------------------------------------------------------------------------------------
def alu(operation: Alu, to: int, source: int, wide: bool = True) -> bytes:
    """Register, register."""
    return registers(bytes((operation << 3 | 3,)), to, source, wide)


def alu_load(operation: Alu, to: int, base: int, disp: int, wide: bool = True) -> bytes:
    """Register, memory."""
    return memory(bytes((operation << 3 | 3,)), to, base, disp, wide)


@lru_cache(1 << 14)
def alu_imm(operation: Alu, to: int, value: int, wide: bool = True) -> bytes:
    """Register, sign-extended immediate of up to 32 bits."""
    if _signed8(value):
        return registers(b"\x83", operation, to, wide) + bytes((value & 0xFF,))
    return registers(b"\x81", operation, to, wide) + _le32(value)


@lru_cache(1 << 12)
def alu_memory_imm(operation: Alu, base: int, disp: int, value: int, wide: bool = True) -> bytes:
    """Memory, sign-extended immediate of up to 32 bits."""
    if _signed8(value):
        return memory(b"\x83", operation, base, disp, wide) + bytes((value & 0xFF,))
    return memory(b"\x81", operation, base, disp, wide) + _le32(value)


def compare_zero(one: int, other: int, wide: bool = True) -> bytes:
    """TEST register, register: of one with itself, as CMP with 0."""
    return registers(b"\x85", one, other, wide)


@cache
def shift_imm(operation: Shift, to: int, count: int, wide: bool = True) -> bytes:
    """By a number."""
    return registers(b"\xc1", operation, to, wide) + bytes((count,))


def shift_cl(operation: Shift, to: int, wide: bool = True) -> bytes:
    """By CL, modulo 64 or 32."""
    return registers(b"\xd3", operation, to, wide)


def unary(operation: Unary, register: int, wide: bool = True) -> bytes:
    """NOT, NEG, and multiplication and division of RDX:RAX."""
    return registers(b"\xf7", operation, register, wide)


@lru_cache(1 << 10)
def indexed_imm(base: int, index: int, disp: int, value: int) -> bytes:
    """MOV of a sign-extended immediate to the 64 bits at [base + index + disp]."""
    return indexed(b"\xc7", 0, base, index, disp) + _le32(value)


def imul(to: int, source: int, wide: bool = True) -> bytes:
    """to *= source."""
    return registers(b"\x0f\xaf", to, source, wide)


def imul_load(to: int, base: int, disp: int, wide: bool = True) -> bytes:
    """to *= memory."""
    return memory(b"\x0f\xaf", to, base, disp, wide)


def cqo(wide: bool = True) -> bytes:
    """The sign of RAX into RDX."""
    return b"\x48\x99" if wide else b"\x99"


def bit_reset(register: int, bit: int, wide: bool = True) -> bytes:
    """BTR: the bit becomes 0."""
    return registers(b"\x0f\xba", 6, register, wide) + bytes((bit,))


def bit_complement(register: int, bit: int, wide: bool = True) -> bytes:
    """BTC: the bit becomes the other."""
    return registers(b"\x0f\xba", 7, register, wide) + bytes((bit,))


def cmov(condition: Cond, to: int, source: int, wide: bool = True) -> bytes:
    """Register to register, when the condition holds."""
    return registers(bytes((0x0F, 0x40 | condition)), to, source, wide)


@cache
def compare_bits(register: int, value: int) -> bytes:
    """TEST register, immediate of 32 bits."""
    return registers(b"\xf7", 0, register, False) + _le32(value)


@lru_cache(1 << 10)
def compare_bits_memory(base: int, disp: int, value: int) -> bytes:
    """TEST memory, immediate of 32 bits."""
    return memory(b"\xf7", 0, base, disp, False) + _le32(value)


@cache
def setcc(condition: Cond, to: int) -> bytes:
    """1 or 0 into the low byte."""
    return _rex(False, 0, 0, to, force=to >= 4) + bytes((0x0F, 0x90 | condition, 0xC0 | to & 7))


# --- jumps: relative ones end in 32 bits that count from their own end ------------------------------------------------
JMP = b"\xe9"
CALL = b"\xe8"


def jcc(condition: Cond) -> bytes:
    """The opcode of a conditional jump; the displacement follows."""
    return bytes((0x0F, 0x80 | condition))


def jmp_register(register: int) -> bytes:
    """To the address in a register."""
    return _rex(False, 0, 0, register) + bytes((0xFF, 0xE0 | register & 7))


def jmp_indexed(base: int, index: int, disp: int) -> bytes:
    """To the address in [base + index + disp]."""
    return indexed(b"\xff", 4, base, index, disp, False)


def push(register: int) -> bytes:
    """PUSH."""
    return _rex(False, 0, 0, register) + bytes((0x50 | register & 7,))


def pop(register: int) -> bytes:
    """POP."""
    return _rex(False, 0, 0, register) + bytes((0x58 | register & 7,))


RET = b"\xc3"
