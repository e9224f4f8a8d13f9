"""RV64IMAFD, Zicsr, Zifencei and the privileged instructions, as one table: encoding, operands, assembler syntax.

Names of fields, formats and opcodes are the manuals': Unprivileged ISA 20191213 (chapter 24 lists the encodings) and
Privileged Architecture 1.12. The compressed instructions are in compressed.py and expand to rows of this table. Who
uses it: the decoder, the assembler and disassembler, the interpreter, the translator.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from minivmm.emulator.fields import Field, field

# --- operands: 2.2 and 2.3, figures 2.2 to 2.4 ----------------------------------------------------------------------
RD = field("rd", (7, 5, 0))
RS1 = field("rs1", (15, 5, 0))
RS2 = field("rs2", (20, 5, 0))
IMM_I = field("imm", (20, 12, 0), signed=True)
IMM_S = field("imm", (7, 5, 0), (25, 7, 5), signed=True)
IMM_B = field("imm", (8, 4, 1), (25, 6, 5), (7, 1, 11), (31, 1, 12), signed=True)
IMM_U = field("imm", (12, 20, 12), signed=True)
IMM_J = field("imm", (21, 10, 1), (20, 1, 11), (12, 8, 12), (31, 1, 20), signed=True)
SHAMT = field("shamt", (20, 6, 0))  # 5.2: six bits on RV64
SHAMT_W = field("shamt", (20, 5, 0))
CSR = field("csr", (20, 12, 0))
UIMM = field("uimm", (15, 5, 0))  # 9.1: the five-bit immediate of csrrwi, csrrsi, csrrci
PRED = field("pred", (24, 4, 0))  # 2.7
SUCC = field("succ", (20, 4, 0))
FM = field("fm", (28, 4, 0))
AQ = field("aq", (26, 1, 0))  # 8.1
RL = field("rl", (25, 1, 0))
RS3 = field("rs3", (27, 5, 0))  # 11.6: the R4 format
RM = field("rm", (12, 3, 0))  # 11.2: the rounding mode
RNE, RTZ, RDN, RUP, RMM, DYNAMIC = 0, 1, 2, 3, 4, 7  # table 11.1


class Format(NamedTuple):
    """An instruction format: its operands, and how they are written (an operand's name stands for its value).

    fd, fs1, fs2 and fs3 stand for rd, rs1, rs2 and rs3 as floating-point registers.
    """

    name: str
    operands: tuple[Field, ...]
    syntax: str = ""


R = Format("R", (RD, RS1, RS2), "rd,rs1,rs2")
I = Format("I", (RD, RS1, IMM_I), "rd,rs1,imm")  # noqa: E741  the manual's name
I_LOAD = Format("I", (RD, RS1, IMM_I), "rd,imm(rs1)")
I_SHIFT = Format("I", (RD, RS1, SHAMT), "rd,rs1,shamt")
I_SHIFT_W = Format("I", (RD, RS1, SHAMT_W), "rd,rs1,shamt")
I_CSR = Format("I", (RD, CSR, RS1), "rd,csr,rs1")
I_CSR_UIMM = Format("I", (RD, CSR, UIMM), "rd,csr,uimm")
I_FENCE = Format("I", (FM, PRED, SUCC, RS1, RD), "pred,succ")
I_FENCE_I = Format("I", (RD, RS1, IMM_I))
I_NONE = Format("I", ())
S = Format("S", (RS1, RS2, IMM_S), "rs2,imm(rs1)")
B = Format("B", (RS1, RS2, IMM_B), "rs1,rs2,target")
U = Format("U", (RD, IMM_U), "rd,imm")
J = Format("J", (RD, IMM_J), "rd,target")
R_AMO = Format("R", (RD, RS1, RS2, AQ, RL), "rd,rs2,(rs1)")
R_LR = Format("R", (RD, RS1, AQ, RL), "rd,(rs1)")
R_SFENCE = Format("R", (RS1, RS2), "rs1,rs2")
# Floating point (chapters 11 and 12). rm is written behind the others, unless it is the assembler's own choice.
I_FLOAD = Format("I", (RD, RS1, IMM_I), "fd,imm(rs1)")
S_FSTORE = Format("S", (RS1, RS2, IMM_S), "fs2,imm(rs1)")
R4_F = Format("R4", (RD, RS1, RS2, RS3, RM), "fd,fs1,fs2,fs3")
R_F = Format("R", (RD, RS1, RS2, RM), "fd,fs1,fs2")
R_F_ONE = Format("R", (RD, RS1, RM), "fd,fs1")
R_F_PLAIN = Format("R", (RD, RS1, RS2), "fd,fs1,fs2")
R_F_COMPARE = Format("R", (RD, RS1, RS2), "rd,fs1,fs2")
R_F_TO_X = Format("R", (RD, RS1, RM), "rd,fs1")
R_X_TO_F = Format("R", (RD, RS1, RM), "fd,rs1")
R_F_BITS = Format("R", (RD, RS1), "rd,fs1")  # also fclass
R_BITS_F = Format("R", (RD, RS1), "fd,rs1")


class Opcode(IntEnum):
    """inst[6:0] of the major opcodes (table 24.1)."""

    LOAD = 0b0000011
    LOAD_FP = 0b0000111
    MISC_MEM = 0b0001111
    OP_IMM = 0b0010011
    AUIPC = 0b0010111
    OP_IMM_32 = 0b0011011
    STORE = 0b0100011
    STORE_FP = 0b0100111
    AMO = 0b0101111
    OP = 0b0110011
    LUI = 0b0110111
    OP_32 = 0b0111011
    MADD = 0b1000011
    MSUB = 0b1000111
    NMSUB = 0b1001011
    NMADD = 0b1001111
    OP_FP = 0b1010011
    BRANCH = 0b1100011
    JALR = 0b1100111
    JAL = 0b1101111
    SYSTEM = 0b1110011


class Instruction(NamedTuple):
    """One instruction: a word is it when word & mask == match."""

    name: str
    format: Format
    match: int
    mask: int


FUNCT3, FUNCT6, FUNCT7, FUNCT5, FUNCT12, FMT = (
    field("funct3", (12, 3, 0)),
    field("funct6", (26, 6, 0)),
    field("funct7", (25, 7, 0)),
    field("funct5", (27, 5, 0)),
    field("funct12", (20, 12, 0)),
    field("fmt", (25, 2, 0)),  # 11.6, table 11.2
)
_OPCODE_MASK = 0x7F


def _row(name: str, layout: Format, opcode: Opcode, *fixed: tuple[Field, int]) -> Instruction:
    """An instruction whose `fixed` fields have the given values, and whose other bits are operands or must be 0."""
    match, mask = int(opcode), 0xFFFF_FFFF
    for part, value in fixed:
        match |= part.insert(value)
    for operand in layout.operands:
        mask &= ~operand.mask
    return Instruction(name, layout, match, mask)


def _rows(layout: Format, opcode: Opcode, names: str) -> Iterator[Instruction]:
    """Instructions that differ in funct3 alone: names in its order, `-` where there is none."""
    for funct3, name in enumerate(names.split()):
        if name != "-":
            yield _row(name, layout, opcode, (FUNCT3, funct3))


def _register(opcode: Opcode, funct7: int, names: str) -> Iterator[Instruction]:
    """Register-register instructions of one funct7, in the order of funct3."""
    for funct3, name in enumerate(names.split()):
        if name != "-":
            yield _row(name, R, opcode, (FUNCT3, funct3), (FUNCT7, funct7))


def _atomic(funct5: int, name: str, layout: Format = R_AMO) -> Iterator[Instruction]:
    """The word and the doubleword form of an atomic."""
    for funct3, suffix in ((0b010, ".w"), (0b011, ".d")):
        yield _row(name + suffix, layout, Opcode.AMO, (FUNCT3, funct3), (FUNCT5, funct5))


FMTS = {"s": 0b00, "d": 0b01}


def _float(funct5: int, name: str, layout: Format, *fixed: tuple[Field, int]) -> Iterator[Instruction]:
    """The single and the double form of an instruction of OP-FP; `{}` in its name is the letter."""
    for letter, fmt in FMTS.items():
        yield _row(name.format(letter), layout, Opcode.OP_FP, (FUNCT5, funct5), (FMT, fmt), *fixed)


def _fused(opcode: Opcode, name: str) -> Iterator[Instruction]:
    for letter, fmt in FMTS.items():
        yield _row(f"{name}.{letter}", R4_F, opcode, (FMT, fmt))


def _to_integer(funct5: int, name: str, layout: Format) -> Iterator[Instruction]:
    """Conversions to and from the four kinds of integer, which rs2 tells (11.7, 12.5)."""
    for rs2, kind in enumerate(("w", "wu", "l", "lu")):
        yield from _float(funct5, name.replace("INT", kind), layout, (RS2, rs2))


def _system(funct12: int, name: str) -> Instruction:
    return _row(name, I_NONE, Opcode.SYSTEM, (FUNCT12, funct12))


INSTRUCTIONS: tuple[Instruction, ...] = (
    # RV32I and RV64I (chapters 2 and 5)
    _row("lui", U, Opcode.LUI),
    _row("auipc", U, Opcode.AUIPC),
    _row("jal", J, Opcode.JAL),
    _row("jalr", I_LOAD, Opcode.JALR, (FUNCT3, 0)),
    *_rows(B, Opcode.BRANCH, "beq bne - - blt bge bltu bgeu"),
    *_rows(I_LOAD, Opcode.LOAD, "lb lh lw ld lbu lhu lwu"),
    *_rows(S, Opcode.STORE, "sb sh sw sd"),
    *_rows(I, Opcode.OP_IMM, "addi - slti sltiu xori - ori andi"),
    _row("slli", I_SHIFT, Opcode.OP_IMM, (FUNCT3, 0b001), (FUNCT6, 0b000000)),
    _row("srli", I_SHIFT, Opcode.OP_IMM, (FUNCT3, 0b101), (FUNCT6, 0b000000)),
    _row("srai", I_SHIFT, Opcode.OP_IMM, (FUNCT3, 0b101), (FUNCT6, 0b010000)),
    *_register(Opcode.OP, 0b0000000, "add sll slt sltu xor srl or and"),
    *_register(Opcode.OP, 0b0100000, "sub - - - - sra - -"),
    _row("addiw", I, Opcode.OP_IMM_32, (FUNCT3, 0b000)),
    _row("slliw", I_SHIFT_W, Opcode.OP_IMM_32, (FUNCT3, 0b001), (FUNCT7, 0b0000000)),
    _row("srliw", I_SHIFT_W, Opcode.OP_IMM_32, (FUNCT3, 0b101), (FUNCT7, 0b0000000)),
    _row("sraiw", I_SHIFT_W, Opcode.OP_IMM_32, (FUNCT3, 0b101), (FUNCT7, 0b0100000)),
    *_register(Opcode.OP_32, 0b0000000, "addw sllw - - - srlw - -"),
    *_register(Opcode.OP_32, 0b0100000, "subw - - - - sraw - -"),
    # 2.7: reserved fm, rd and rs1 are to be ignored, so they are operands nobody uses. Zifencei (chapter 3) likewise.
    _row("fence", I_FENCE, Opcode.MISC_MEM, (FUNCT3, 0b000)),
    _row("fence.i", I_FENCE_I, Opcode.MISC_MEM, (FUNCT3, 0b001)),
    _system(0b000000000000, "ecall"),
    _system(0b000000000001, "ebreak"),
    # Zicsr (chapter 9)
    *_rows(I_CSR, Opcode.SYSTEM, "- csrrw csrrs csrrc"),
    *_rows(I_CSR_UIMM, Opcode.SYSTEM, "- - - - - csrrwi csrrsi csrrci"),
    # M (chapter 7)
    *_register(Opcode.OP, 0b0000001, "mul mulh mulhsu mulhu div divu rem remu"),
    *_register(Opcode.OP_32, 0b0000001, "mulw - - - divw divuw remw remuw"),
    # A (chapter 8)
    *_atomic(0b00010, "lr", R_LR),
    *_atomic(0b00011, "sc"),
    *_atomic(0b00001, "amoswap"),
    *_atomic(0b00000, "amoadd"),
    *_atomic(0b00100, "amoxor"),
    *_atomic(0b01100, "amoand"),
    *_atomic(0b01000, "amoor"),
    *_atomic(0b10000, "amomin"),
    *_atomic(0b10100, "amomax"),
    *_atomic(0b11000, "amominu"),
    *_atomic(0b11100, "amomaxu"),
    # F and D (chapters 11 and 12)
    _row("flw", I_FLOAD, Opcode.LOAD_FP, (FUNCT3, 0b010)),
    _row("fld", I_FLOAD, Opcode.LOAD_FP, (FUNCT3, 0b011)),
    _row("fsw", S_FSTORE, Opcode.STORE_FP, (FUNCT3, 0b010)),
    _row("fsd", S_FSTORE, Opcode.STORE_FP, (FUNCT3, 0b011)),
    *_fused(Opcode.MADD, "fmadd"),
    *_fused(Opcode.MSUB, "fmsub"),
    *_fused(Opcode.NMSUB, "fnmsub"),
    *_fused(Opcode.NMADD, "fnmadd"),
    *_float(0b00000, "fadd.{}", R_F),
    *_float(0b00001, "fsub.{}", R_F),
    *_float(0b00010, "fmul.{}", R_F),
    *_float(0b00011, "fdiv.{}", R_F),
    *_float(0b01011, "fsqrt.{}", R_F_ONE, (RS2, 0)),
    *_float(0b00100, "fsgnj.{}", R_F_PLAIN, (FUNCT3, 0b000)),
    *_float(0b00100, "fsgnjn.{}", R_F_PLAIN, (FUNCT3, 0b001)),
    *_float(0b00100, "fsgnjx.{}", R_F_PLAIN, (FUNCT3, 0b010)),
    *_float(0b00101, "fmin.{}", R_F_PLAIN, (FUNCT3, 0b000)),
    *_float(0b00101, "fmax.{}", R_F_PLAIN, (FUNCT3, 0b001)),
    _row("fcvt.s.d", R_F_ONE, Opcode.OP_FP, (FUNCT5, 0b01000), (FMT, 0b00), (RS2, 1)),
    _row("fcvt.d.s", R_F_ONE, Opcode.OP_FP, (FUNCT5, 0b01000), (FMT, 0b01), (RS2, 0)),
    *_float(0b10100, "fle.{}", R_F_COMPARE, (FUNCT3, 0b000)),
    *_float(0b10100, "flt.{}", R_F_COMPARE, (FUNCT3, 0b001)),
    *_float(0b10100, "feq.{}", R_F_COMPARE, (FUNCT3, 0b010)),
    *_to_integer(0b11000, "fcvt.INT.{}", R_F_TO_X),
    *_to_integer(0b11010, "fcvt.{}.INT", R_X_TO_F),
    _row("fmv.x.w", R_F_BITS, Opcode.OP_FP, (FUNCT5, 0b11100), (FMT, 0b00), (RS2, 0), (FUNCT3, 0)),
    _row("fmv.x.d", R_F_BITS, Opcode.OP_FP, (FUNCT5, 0b11100), (FMT, 0b01), (RS2, 0), (FUNCT3, 0)),
    *_float(0b11100, "fclass.{}", R_F_BITS, (RS2, 0), (FUNCT3, 1)),
    _row("fmv.w.x", R_BITS_F, Opcode.OP_FP, (FUNCT5, 0b11110), (FMT, 0b00), (RS2, 0), (FUNCT3, 0)),
    _row("fmv.d.x", R_BITS_F, Opcode.OP_FP, (FUNCT5, 0b11110), (FMT, 0b01), (RS2, 0), (FUNCT3, 0)),
    # Privileged 1.12, chapter 5 (figure 5.1)
    _system(0b0001000_00010, "sret"),
    _system(0b0011000_00010, "mret"),
    _system(0b0001000_00101, "wfi"),
    _row("sfence.vma", R_SFENCE, Opcode.SYSTEM, (FUNCT7, 0b0001001)),
)

BY_NAME = {instruction.name: instruction for instruction in INSTRUCTIONS}

FLOATING = frozenset(row.name for row in INSTRUCTIONS if re.search("f[ds]", row.format.syntax))
"""Instructions that use a floating-point register."""
