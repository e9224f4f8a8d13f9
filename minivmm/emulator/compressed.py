"""The C extension (Unprivileged ISA, chapter 16) for RV64: each row expands to one of the base instructions.

An `expansion` names, for each operand of the base instruction, one of the row's own operands or a fixed number.
`nonzero` are the operands that are reserved, or mean another instruction, when they are 0.
"""

from __future__ import annotations

from typing import NamedTuple

from minivmm.emulator.fields import Field, field
from minivmm.emulator.instructions import BY_NAME, Format, Instruction

# Register operands (16.2): full five bits, or three bits for x8 to x15.
RD = field("rd", (7, 5, 0))
RS2 = field("rs2", (2, 5, 0))
RD_P = field("rd", (2, 3, 0), bias=8)  # rd' in the low place
RS2_P = field("rs2", (2, 3, 0), bias=8)
RS1_P = field("rs1", (7, 3, 0), bias=8)

# Immediates: the manual's "imm[5:4|9:6|2|3]" read from the left, as (bit of the parcel, width, bit of the value).
ADDI4SPN = field("imm", (11, 2, 4), (7, 4, 6), (6, 1, 2), (5, 1, 3))
WORD = field("imm", (10, 3, 3), (6, 1, 2), (5, 1, 6))
DOUBLE = field("imm", (10, 3, 3), (5, 2, 6))
IMM = field("imm", (12, 1, 5), (2, 5, 0), signed=True)
SHAMT = field("imm", (12, 1, 5), (2, 5, 0))
ADDI16SP = field("imm", (12, 1, 9), (6, 1, 4), (5, 1, 6), (3, 2, 7), (2, 1, 5), signed=True)
LUI = field("imm", (12, 1, 17), (2, 5, 12), signed=True)
JUMP = field(
    "imm", (12, 1, 11), (11, 1, 4), (9, 2, 8), (8, 1, 10), (7, 1, 6), (6, 1, 7), (3, 3, 1), (2, 1, 5), signed=True
)
BRANCH = field("imm", (12, 1, 8), (10, 2, 3), (5, 2, 6), (3, 2, 1), (2, 1, 5), signed=True)
LWSP = field("imm", (12, 1, 5), (4, 3, 2), (2, 2, 6))
LDSP = field("imm", (12, 1, 5), (5, 2, 3), (2, 3, 6))
SWSP = field("imm", (9, 4, 2), (7, 2, 6))
SDSP = field("imm", (10, 3, 3), (7, 3, 6))

X0, RA, SP = 0, 1, 2


class Compressed(NamedTuple):
    """One 16-bit instruction: a parcel is it when parcel & mask == match and no `nonzero` operand is 0."""

    name: str
    format: Format
    match: int
    mask: int
    base: Instruction
    expansion: tuple[tuple[str, str | int], ...]  # (operand of the base instruction, operand here or number)
    nonzero: tuple[Field, ...]


def _row(
    name: str,
    match: int,
    operands: tuple[Field, ...],
    syntax: str,
    base: str,
    *,
    nonzero: tuple[Field, ...] = (),
    **expansion: str | int,
) -> Compressed:
    mask = 0xFFFF
    for operand in operands:
        mask &= ~operand.mask
    layout = Format(name, operands, syntax)
    return Compressed(name, layout, match, mask, BY_NAME[base], tuple(expansion.items()), nonzero)


def _arithmetic(name: str, match: int, base: str) -> Compressed:
    """CA format: rd' = rd' op rs2'."""
    return _row(name, match, (RS1_P, RS2_P), "rs1,rs2", base, rd="rs1", rs1="rs1", rs2="rs2")


# Tables 16.5 to 16.7, one quadrant each. Where an encoding is another instruction for some operand value, that comes
# first. The hints (rd = x0, a shift by 0) are the ordinary instruction, which then does nothing.
COMPRESSED: tuple[Compressed, ...] = (
    # quadrant 0
    _row("c.addi4spn", 0x0000, (RD_P, ADDI4SPN), "rd,sp,imm", "addi", nonzero=(ADDI4SPN,), rd="rd", rs1=SP, imm="imm"),
    _row("c.fld", 0x2000, (RD_P, RS1_P, DOUBLE), "fd,imm(rs1)", "fld", rd="rd", rs1="rs1", imm="imm"),
    _row("c.lw", 0x4000, (RD_P, RS1_P, WORD), "rd,imm(rs1)", "lw", rd="rd", rs1="rs1", imm="imm"),
    _row("c.ld", 0x6000, (RD_P, RS1_P, DOUBLE), "rd,imm(rs1)", "ld", rd="rd", rs1="rs1", imm="imm"),
    _row("c.fsd", 0xA000, (RS2_P, RS1_P, DOUBLE), "fs2,imm(rs1)", "fsd", rs2="rs2", rs1="rs1", imm="imm"),
    _row("c.sw", 0xC000, (RS2_P, RS1_P, WORD), "rs2,imm(rs1)", "sw", rs2="rs2", rs1="rs1", imm="imm"),
    _row("c.sd", 0xE000, (RS2_P, RS1_P, DOUBLE), "rs2,imm(rs1)", "sd", rs2="rs2", rs1="rs1", imm="imm"),
    # quadrant 1
    _row("c.nop", 0x0001, (IMM,), "", "addi", rd=X0, rs1=X0, imm="imm"),
    _row("c.addi", 0x0001, (RD, IMM), "rd,imm", "addi", rd="rd", rs1="rd", imm="imm"),
    _row("c.addiw", 0x2001, (RD, IMM), "rd,imm", "addiw", nonzero=(RD,), rd="rd", rs1="rd", imm="imm"),
    _row("c.li", 0x4001, (RD, IMM), "rd,imm", "addi", rd="rd", rs1=X0, imm="imm"),
    _row("c.addi16sp", 0x6101, (ADDI16SP,), "sp,imm", "addi", nonzero=(ADDI16SP,), rd=SP, rs1=SP, imm="imm"),
    _row("c.lui", 0x6001, (RD, LUI), "rd,imm", "lui", nonzero=(LUI,), rd="rd", imm="imm"),
    _row("c.srli", 0x8001, (RS1_P, SHAMT), "rs1,imm", "srli", rd="rs1", rs1="rs1", shamt="imm"),
    _row("c.srai", 0x8401, (RS1_P, SHAMT), "rs1,imm", "srai", rd="rs1", rs1="rs1", shamt="imm"),
    _row("c.andi", 0x8801, (RS1_P, IMM), "rs1,imm", "andi", rd="rs1", rs1="rs1", imm="imm"),
    _arithmetic("c.sub", 0x8C01, "sub"),
    _arithmetic("c.xor", 0x8C21, "xor"),
    _arithmetic("c.or", 0x8C41, "or"),
    _arithmetic("c.and", 0x8C61, "and"),
    _arithmetic("c.subw", 0x9C01, "subw"),
    _arithmetic("c.addw", 0x9C21, "addw"),
    _row("c.j", 0xA001, (JUMP,), "target", "jal", rd=X0, imm="imm"),
    _row("c.beqz", 0xC001, (RS1_P, BRANCH), "rs1,target", "beq", rs1="rs1", rs2=X0, imm="imm"),
    _row("c.bnez", 0xE001, (RS1_P, BRANCH), "rs1,target", "bne", rs1="rs1", rs2=X0, imm="imm"),
    # quadrant 2
    _row("c.slli", 0x0002, (RD, SHAMT), "rd,imm", "slli", rd="rd", rs1="rd", shamt="imm"),
    _row("c.fldsp", 0x2002, (RD, LDSP), "fd,imm(sp)", "fld", rd="rd", rs1=SP, imm="imm"),
    _row("c.lwsp", 0x4002, (RD, LWSP), "rd,imm(sp)", "lw", nonzero=(RD,), rd="rd", rs1=SP, imm="imm"),
    _row("c.ldsp", 0x6002, (RD, LDSP), "rd,imm(sp)", "ld", nonzero=(RD,), rd="rd", rs1=SP, imm="imm"),
    _row("c.jr", 0x8002, (RD,), "rd", "jalr", nonzero=(RD,), rd=X0, rs1="rd", imm=0),
    _row("c.mv", 0x8002, (RD, RS2), "rd,rs2", "add", nonzero=(RS2,), rd="rd", rs1=X0, rs2="rs2"),
    _row("c.ebreak", 0x9002, (), "", "ebreak"),
    _row("c.jalr", 0x9002, (RD,), "rd", "jalr", nonzero=(RD,), rd=RA, rs1="rd", imm=0),
    _row("c.add", 0x9002, (RD, RS2), "rd,rs2", "add", nonzero=(RS2,), rd="rd", rs1="rd", rs2="rs2"),
    _row("c.fsdsp", 0xA002, (RS2, SDSP), "fs2,imm(sp)", "fsd", rs2="rs2", rs1=SP, imm="imm"),
    _row("c.swsp", 0xC002, (RS2, SWSP), "rs2,imm(sp)", "sw", rs2="rs2", rs1=SP, imm="imm"),
    _row("c.sdsp", 0xE002, (RS2, SDSP), "rs2,imm(sp)", "sd", rs2="rs2", rs1=SP, imm="imm"),
)

BY_NAME_COMPRESSED = {row.name: row for row in COMPRESSED}
