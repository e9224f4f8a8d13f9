"""The scalar SSE2 instructions that floating point is made of, as bytes (SDM volume 2).

XMM0 to XMM2 are used, and their numbers are what `to` and `source` are. `prefix` says which of the scalar formats
an instruction works on: SINGLE or DOUBLE.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from pathlib import Path

from minivmm.emulator.translator import x86

XMM0, XMM1, XMM2 = 0, 1, 2
SINGLE, DOUBLE = b"\xf3", b"\xf2"

Prefix = bytes


class Sse(IntEnum):
    """Opcodes of two-operand arithmetic, behind 0F."""

    SQRT = 0x51
    ADD = 0x58
    MUL = 0x59
    CVT = 0x5A  # to the other format
    SUB = 0x5C
    MIN = 0x5D
    DIV = 0x5E
    MAX = 0x5F


class Packed(IntEnum):
    """Bit-wise operations (ANDPD, ORPD)."""

    AND = 0x54
    OR = 0x56


class Fma(IntEnum):
    """VFMADD213 and its kin, opcodes of the scalar forms: to = source * to + addend."""

    MADD = 0xA9
    MSUB = 0xAB
    NMADD = 0xAD
    NMSUB = 0xAF


@cache
def features() -> frozenset[str]:
    """What this processor has beyond x86-64: the `flags` of its first core."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


# --- moves ----------------------------------------------------------------------------------------------------------
def load(prefix: Prefix, to: int, base: int, disp: int) -> bytes:
    """MOVSS, MOVSD from memory; the rest of the register becomes 0."""
    return prefix + x86.memory(b"\x0f\x10", to, base, disp, False)


def store(prefix: Prefix, base: int, disp: int, source: int) -> bytes:
    """MOVSS, MOVSD to memory."""
    return prefix + x86.memory(b"\x0f\x11", source, base, disp, False)


def from_general(to: int, source: int, wide: bool) -> bytes:
    """MOVQ, MOVD from a general register."""
    return b"\x66" + x86.registers(b"\x0f\x6e", to, source, wide)


def to_general(to: int, source: int, wide: bool) -> bytes:
    """MOVQ, MOVD to a general register."""
    return b"\x66" + x86.registers(b"\x0f\x7e", source, to, wide)


def clear(to: int) -> bytes:
    """XORPS: nothing is waited for that was in the register."""
    return x86.registers(b"\x0f\x57", to, to, False)


# --- arithmetic -----------------------------------------------------------------------------------------------------
def operate(prefix: Prefix, operation: Sse, to: int, source: int) -> bytes:
    """Register, register."""
    return prefix + x86.registers(bytes((0x0F, operation)), to, source, False)


def operate_load(prefix: Prefix, operation: Sse, to: int, base: int, disp: int) -> bytes:
    """Register, memory."""
    return prefix + x86.memory(bytes((0x0F, operation)), to, base, disp, False)


def bitwise(operation: Packed, to: int, source: int) -> bytes:
    """Register, register."""
    return b"\x66" + x86.registers(bytes((0x0F, operation)), to, source, False)


def fused(prefix: Prefix, operation: Fma, to: int, source: int, addend: int) -> bytes:
    """to = source * to + addend, rounded once; VEX.LIG.66.0F38 (SDM vol. 2, 2.3.5)."""
    wide = prefix == DOUBLE
    vex = bytes((0xC4, 0xE2, wide << 7 | (~source & 15) << 3 | 1, operation))
    return vex + x86.registers(b"", to, addend, False)


def compare(prefix: Prefix, one: int, other: int, quiet: bool) -> bytes:
    """UCOMIS, or COMIS, for which a quiet NaN is invalid too. Unordered sets ZF, PF and CF."""
    opcode = b"\x0f\x2e" if quiet else b"\x0f\x2f"
    return (b"\x66" if prefix == DOUBLE else b"") + x86.registers(opcode, one, other, False)


# --- conversions ----------------------------------------------------------------------------------------------------
def to_integer(prefix: Prefix, to: int, source: int, wide: bool, truncate: bool) -> bytes:
    """CVTT.2SI, CVT.2SI: the highest bit alone where the integer does not hold the result."""
    return prefix + x86.registers(b"\x0f\x2c" if truncate else b"\x0f\x2d", to, source, wide)


def from_integer(prefix: Prefix, to: int, source: int, wide: bool) -> bytes:
    """CVTSI2.: of a general register."""
    return prefix + x86.registers(b"\x0f\x2a", to, source, wide)


# --- the control and status register ----------------------------------------------------------------------------------
def load_control(base: int, disp: int) -> bytes:
    """LDMXCSR."""
    return x86.memory(b"\x0f\xae", 2, base, disp, False)


def store_control(base: int, disp: int) -> bytes:
    """STMXCSR."""
    return x86.memory(b"\x0f\xae", 3, base, disp, False)
