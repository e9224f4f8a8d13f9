"""From the bits of an instruction to what it is: one look-up, and the operands taken out as the table says."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from minivmm.emulator.compressed import COMPRESSED, Compressed
from minivmm.emulator.instructions import INSTRUCTIONS, Instruction


class Decoded(NamedTuple):
    """An instruction with its operands; those it does not have are 0.

    `imm` holds whichever immediate the format has: imm (sign-extended, in bytes, in place), shamt or uimm.
    """

    name: str  # the base instruction's mnemonic
    instruction: Instruction
    rd: int
    rs1: int
    rs2: int
    imm: int
    csr: int
    rs3: int
    rm: int
    size: int  # bytes: 2 or 4
    raw: int  # the bits as fetched, `size` bytes of them
    compressed: Compressed | None


class IllegalInstruction(ValueError):
    """These bits are no instruction of this machine: reserved, or of an extension it does not have."""

    def __init__(self, bits: int, size: int) -> None:
        super().__init__(f"{bits:#0{2 + 2 * size}x} is no instruction")
        self.bits = bits
        self.size = size  # bytes looked at


def is_compressed(word: int) -> bool:
    """Whether a parcel is a whole instruction (1.5: the two lowest bits of a longer one are 11)."""
    return word & 3 != 3


# By inst[6:2] and funct3, which separate all but a handful; the rest is a comparison each. An instruction without
# funct3 (U, J) stands under all eight.
_BY_OPCODE: list[list[Instruction]] = [[] for _ in range(1 << 8)]
for _instruction in INSTRUCTIONS:
    for _key in range(1 << 8):
        _word = (_key >> 3) << 2 | (_key & 7) << 12
        _looked_at = _instruction.mask & 0x707C
        if _word & _looked_at == _instruction.match & _looked_at:
            _BY_OPCODE[_key].append(_instruction)


# The same by quadrant and funct3 (16.8), of which every compressed instruction has its own.
_BY_PARCEL: list[list[Compressed]] = [
    [row for row in COMPRESSED if row.match & 0xE003 == (key & 7) << 13 | key >> 3] for key in range(1 << 5)
]


@lru_cache(maxsize=1 << 14)
def decode(word: int) -> Decoded:
    """The instruction in `word`: 32 bits, or a 16-bit parcel alone or with anything above it.

    Raises IllegalInstruction.
    """
    if word & 3 != 3:
        return _decode_parcel(word & 0xFFFF)
    for instruction in _BY_OPCODE[word >> 2 << 3 & 0xF8 | word >> 12 & 7]:
        if word & instruction.mask == instruction.match:
            operands = {operand.name: operand.extract(word) for operand in instruction.format.operands}
            return _decoded(instruction, operands, 4, word, None)
    raise IllegalInstruction(word, 4)


def _decode_parcel(parcel: int) -> Decoded:
    for row in _BY_PARCEL[(parcel & 3) << 3 | parcel >> 13]:
        if parcel & row.mask == row.match and all(operand.extract(parcel) for operand in row.nonzero):
            own = {operand.name: operand.extract(parcel) for operand in row.format.operands}
            operands = {name: own[what] if isinstance(what, str) else what for name, what in row.expansion}
            return _decoded(row.base, operands, 2, parcel, row)
    raise IllegalInstruction(parcel, 2)


def _decoded(
    instruction: Instruction, operands: dict[str, int], size: int, raw: int, compressed: Compressed | None
) -> Decoded:
    get = operands.get
    immediate = get("imm") or get("shamt") or get("uimm") or 0
    return Decoded(
        instruction.name,
        instruction,
        get("rd", 0),
        get("rs1", 0),
        get("rs2", 0),
        immediate,
        get("csr", 0),
        get("rs3", 0),
        get("rm", 0),
        size,
        raw,
        compressed,
    )
