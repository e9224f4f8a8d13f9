"""The table of instructions: what it encodes it decodes, and binutils reads it as we do."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivmm.emulator.assembly import assemble, disassemble, encode
from minivmm.emulator.compressed import BY_NAME_COMPRESSED, COMPRESSED
from minivmm.emulator.decoder import IllegalInstruction, decode, is_compressed
from minivmm.emulator.fields import Field
from minivmm.emulator.instructions import BY_NAME, FLOATING, INSTRUCTIONS, Instruction
from minivmm.emulator.semantics import STATEMENTS
from minivmm.emulator.system import SYSTEM

OBJDUMP = shutil.which("riscv64-linux-gnu-objdump")
needs_objdump = pytest.mark.skipif(
    OBJDUMP is None,
    reason="riscv64-linux-gnu-objdump is not on PATH (try: sudo apt install binutils-riscv64-linux-gnu)",
)


def in_range(operand: Field) -> st.SearchStrategy[int]:
    """Values of an operand: what extracting it from any bits gives."""
    return st.integers(0, 0xFFFF_FFFF).map(operand.extract)


@st.composite
def instructions(draw: st.DrawFn) -> tuple[Instruction, dict[str, int]]:
    row = draw(st.sampled_from(INSTRUCTIONS))
    return row, {operand.name: draw(in_range(operand)) for operand in row.format.operands}


@given(instructions())
def test_what_is_encoded_is_decoded(case: tuple[Instruction, dict[str, int]]) -> None:
    row, operands = case
    decoded = decode(encode(row.name, **operands))
    assert decoded.instruction is row
    immediate = operands.get("imm", operands.get("shamt", operands.get("uimm", 0)))
    assert decoded.imm == immediate
    for name in ("rd", "rs1", "rs2", "rs3", "rm", "csr"):
        assert getattr(decoded, name) == operands.get(name, 0)


@given(st.integers(0, 0xFFFF_FFFF))
def test_text_and_bits_say_the_same(word: int) -> None:
    word = word if word & 3 == 3 else word & 0xFFFF
    try:
        decoded = decode(word)
    except IllegalInstruction:
        return
    if decoded.name in ("fence", "fence.i") or (decoded.compressed and decoded.compressed.name == "c.nop"):
        return  # operands that are not written
    if decoded.rm in (5, 6):
        return  # reserved: it has no name
    assert assemble(disassemble(decoded, 0x8000_0000), 0x8000_0000) == word


def test_no_two_instructions_share_an_encoding() -> None:
    for index, one in enumerate(INSTRUCTIONS):
        for other in INSTRUCTIONS[index + 1 :]:
            both = one.mask & other.mask
            assert one.match & both != other.match & both, (one.name, other.name)


def test_every_instruction_has_a_meaning() -> None:
    atomics = {row.name for row in INSTRUCTIONS if row.match & 0x7F == 0x2F}
    assert set(STATEMENTS) | set(SYSTEM) | atomics | FLOATING == set(BY_NAME)
    assert {row.base.name for row in COMPRESSED} <= set(BY_NAME)


@pytest.mark.parametrize(
    "bits",
    [
        pytest.param(0x0000, id="all zeros (16.5: defined illegal)"),
        pytest.param(0xFFFF_FFFF, id="all ones"),
        pytest.param(0x0004, id="c.addi4spn with nzuimm 0"),
        pytest.param(0x2001, id="c.addiw with rd x0"),
        pytest.param(0x6101, id="c.addi16sp with nzimm 0"),
        pytest.param(0x6001, id="c.lui with nzimm 0"),
        pytest.param(0x4002, id="c.lwsp with rd x0"),
        pytest.param(0x6002, id="c.ldsp with rd x0"),
        pytest.param(0x8002, id="c.jr with rs1 x0"),
        pytest.param(0x9C41, id="reserved in quadrant 1"),
        pytest.param(0x8000, id="reserved in quadrant 0"),
        pytest.param(0x0600_0053, id="fadd.q: no Q extension"),
        pytest.param(0x0000_1007, id="flh: no Zfh extension"),
        pytest.param(0x5810_7053, id="fsqrt.s with rs2"),
        pytest.param(0x0200_101B, id="slliw with shamt[5]"),
        pytest.param(0x0000_7003, id="load with funct3 111"),
        pytest.param(0x1010_A52F, id="lr.w with rs2"),
        pytest.param(0x3020_00F3, id="mret with rd"),
    ],
)
def test_reserved_encodings_are_illegal(bits: int) -> None:
    with pytest.raises(IllegalInstruction):
        decode(bits)


# --- against binutils ------------------------------------------------------------------------------------------------
def objdump(directory: Path, code: bytes) -> dict[int, str]:
    """Address to text, for bits without any ELF around them."""
    assert OBJDUMP is not None
    file = directory / "code.bin"
    file.write_bytes(code)
    command = [OBJDUMP, "-D", "-b", "binary", "-m", "riscv:rv64", "-M", "no-aliases", str(file)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    lines = re.finditer(r"^\s*([0-9a-f]+):\s+[0-9a-f ]+?\s*\t(\S+)[ \t]*([^#<\n]*)", listing, re.MULTILINE)
    return {int(line[1], 16): f"{line[2]} {line[3]}".strip() for line in lines}


KNOWN = set(BY_NAME) | set(BY_NAME_COMPRESSED)


def same(bits: int, ours: str | None, theirs: str) -> bool:
    """Whether both say the same, but for what is known to be binutils' own way of seeing it."""
    mnemonic = theirs.partition(" ")[0]
    if ours is not None and ours.startswith("fcvt.d.") and theirs.startswith(".4byte"):
        return not ours.startswith("fcvt.d.l")  # exact, and it knows only the rm that assemblers write
    if ours is not None and theirs.endswith(",unknown"):
        return ours == theirs.replace("unknown", "")  # rm 5 and 6
    if ours is None:
        return mnemonic not in KNOWN or bits == 0x6101  # c.addi16sp with 0, which 16.5 reserves
    if ours.startswith("fence"):
        return ours == theirs or mnemonic.startswith(".")  # reserved bits set: 2.7 has us ignore them
    if ours.startswith("csr"):  # it knows registers of extensions that are not here
        return ours == theirs or re.sub(r"0x[0-9a-f]+", "CSR", ours) == re.sub(r",[a-z]\w+,", ",CSR,", theirs, count=1)
    hints = {"c.slli64": "c.slli", "c.srli64": "c.srli", "c.srai64": "c.srai"}
    if mnemonic in hints:  # shifts by 0
        return ours == f"{hints[mnemonic]} {theirs.partition(' ')[2]},0x0"
    return ours == theirs or (ours == "c.nop" and theirs.startswith("c.addi zero,"))  # a hint


def ours_at(bits: int, address: int) -> str | None:
    try:
        return disassemble(decode(bits), address)
    except IllegalInstruction:
        return None


@needs_objdump
def test_every_compressed_parcel_is_what_binutils_says(tmp_path: Path) -> None:
    parcels = [parcel for parcel in range(1 << 16) if is_compressed(parcel)]
    listing = objdump(tmp_path, b"".join(parcel.to_bytes(2, "little") for parcel in parcels))
    wrong = [
        (hex(parcel), ours_at(parcel, 2 * index), listing[2 * index])
        for index, parcel in enumerate(parcels)
        if not same(parcel, ours_at(parcel, 2 * index), listing[2 * index])
    ]
    assert len(listing) == len(parcels) == 49152
    assert not wrong


@needs_objdump
def test_random_words_are_what_binutils_says(tmp_path: Path) -> None:
    rng = random.Random(20191213)
    words: list[int] = []
    while len(words) < 10_000:
        word, row = rng.getrandbits(32) | 3, rng.choice(INSTRUCTIONS)
        if rng.randrange(4):
            word = word & ~row.mask | row.match
        if word & 0x1C != 0x1C:  # 1.5: those begin longer instructions
            words.append(word)
    listing = objdump(tmp_path, b"".join(word.to_bytes(4, "little") for word in words))
    wrong = [
        (hex(word), ours_at(word, 4 * index), listing[4 * index])
        for index, word in enumerate(words)
        if not same(word, ours_at(word, 4 * index), listing[4 * index])
    ]
    assert not wrong
