"""The values of an instruction's operands: registers of every width, immediates, addresses (SDM 1, 3.4.1 and 3.7.5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from minivmm.kvm.abi import kvm_regs
from minivmm.memory import PAGE_SIZE
from minivmm.x86.instruction import LONGEST_INSTRUCTION, Immediate, Instruction, Memory, Register, decode

WORD = (1 << 64) - 1
DF = 1 << 10  # RFLAGS: the direction of string instructions

Read = Callable[[int, int], bytes]
"""Bytes at a linear address, or an error of the caller's."""


class SegmentBases(NamedTuple):
    """The two bases that are not 0 in 64-bit mode (SDM 1, 3.4.2.1)."""

    fs: int
    gs: int


def fetch(read: Read, rip: int, refused: type[Exception]) -> Instruction | None:
    """The instruction at `rip`. None when there is none or its bytes cannot be read: `read` then raises `refused`."""
    try:
        code = read(rip, LONGEST_INSTRUCTION)
    except refused:
        left = PAGE_SIZE - rip % PAGE_SIZE  # the next page may not be there, and need not be
        if left >= LONGEST_INSTRUCTION:
            return None
        try:
            code = read(rip, left)
        except refused:
            return None
    return decode(code, rip)


def mask(size: int) -> int:
    """All ones in `size` bytes."""
    return (1 << 8 * size) - 1


def get(regs: kvm_regs, register: Register) -> int:
    """The register's value, unsigned."""
    value: int = getattr(regs, register.name)
    return value >> register.shift & mask(register.size)


def put(regs: kvm_regs, register: Register, value: int) -> None:
    """Sets the register. 4 bytes clear the upper half; fewer leave the rest as it is (SDM 1, 3.4.1.1)."""
    if register.size >= 4:
        setattr(regs, register.name, value & mask(register.size))
        return
    kept = getattr(regs, register.name) & ~(mask(register.size) << register.shift)
    setattr(regs, register.name, kept | (value & mask(register.size)) << register.shift)


def value(regs: kvm_regs, operand: Register | Immediate, size: int) -> int:
    """A register or an immediate, as an operand of `size` bytes."""
    return (get(regs, operand) if isinstance(operand, Register) else operand.value) & mask(size)


def address(regs: kvm_regs, operand: Memory, bases: SegmentBases) -> int:
    """The linear address of the operand."""
    total = operand.displacement
    if operand.base_register:
        total += getattr(regs, operand.base_register)
    if operand.index_register:
        total += getattr(regs, operand.index_register) * operand.scale
    total &= mask(operand.address_size)
    if operand.segment == "fs":
        total += bases.fs
    elif operand.segment == "gs":
        total += bases.gs
    return total & WORD


def signed(value: int, size: int) -> int:
    """`value` of `size` bytes as a number in two's complement."""
    sign = 1 << 8 * size - 1
    return (value & sign - 1) - (value & sign)


def step(regs: kvm_regs, name: str, size: int, address_size: int) -> None:
    """Moves a string instruction's RSI or RDI on by one element, down when RFLAGS.DF is set (SDM 1, 7.3.9.1)."""
    register = Register(name, address_size)
    put(regs, register, get(regs, register) + (-size if regs.rflags & DF else size))
