"""Instructions as text and back, both from the table's syntax: what objdump's `-M no-aliases` prints.

disassemble(decode(0x00150513))      "addi a0,a0,1"
assemble("addi a0,a0,1")             0x00150513
"""

from __future__ import annotations

import re

from minivmm.emulator.compressed import BY_NAME_COMPRESSED
from minivmm.emulator.csr_table import CSR_NAMES, CSR_NUMBERS
from minivmm.emulator.decoder import Decoded, IllegalInstruction, decode
from minivmm.emulator.instructions import BY_NAME, DYNAMIC, RM, Format, Opcode

# Unprivileged ISA, table 25.1.
_NAMES = "zero ra sp gp tp t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6"
ABI_NAMES = tuple(_NAMES.split())
_NAMES = "ft0 ft1 ft2 ft3 ft4 ft5 ft6 ft7 fs0 fs1 fa0 fa1 fa2 fa3 fa4 fa5 fa6 fa7 fs2 fs3 fs4 fs5 fs6 fs7 fs8 fs9 "
FLOATING_NAMES = tuple((_NAMES + "fs10 fs11 ft8 ft9 ft10 ft11").split())
_REGISTERS = (
    {name: number for number, name in enumerate(ABI_NAMES)}
    | {name: number for number, name in enumerate(FLOATING_NAMES)}
    | {f"x{number}": number for number in range(32)}
    | {"fp": 8}
)
_ORDERINGS = {0b11: ".aqrl", 0b10: ".aq", 0b01: ".rl", 0b00: ""}  # aq, rl
_ROUNDING = ("rne", "rtz", "rdn", "rup", "rmm", "", "", "dyn")  # 11.2, table 11.1
_EXACT = ("fcvt.d.s", "fcvt.d.w", "fcvt.d.wu")  # whose rm makes no difference, and is 0 where it is not written
_REGISTER_OPERANDS = ("rd", "rs1", "rs2")
_FLOATING_OPERANDS = {"fd": "rd", "fs1": "rs1", "fs2": "rs2", "fs3": "rs3"}
_WORD = re.compile(r"[a-z][a-z0-9]*")


def disassemble(decoded: Decoded, address: int = 0) -> str:
    """The instruction in assembler syntax; `address` is where it stands, for the targets of branches."""
    row = decoded.compressed or decoded.instruction
    values = {operand.name: operand.extract(decoded.raw) for operand in row.format.operands}
    name = row.name + _ORDERINGS[values.get("aq", 0) << 1 | values.get("rl", 0)]
    upper = decoded.instruction.match & 0x7F in (Opcode.LUI, Opcode.AUIPC)
    shift = "shamt" in (operand.name for operand in decoded.instruction.format.operands)

    def text(match: re.Match[str]) -> str:
        word = match.group()
        if word in _REGISTER_OPERANDS:
            return ABI_NAMES[values[word]]
        if word in _FLOATING_OPERANDS:
            return FLOATING_NAMES[values[_FLOATING_OPERANDS[word]]]
        if word == "target":
            return hex(address + values["imm"] & 0xFFFF_FFFF_FFFF_FFFF)
        if word == "imm" and upper:
            return hex(values["imm"] >> 12 & 0xFFFFF)
        if word in ("pred", "succ"):
            return "".join(letter for bit, letter in zip((8, 4, 2, 1), "iorw", strict=True) if values[word] & bit)
        if word == "csr":
            return CSR_NAMES.get(values["csr"], hex(values["csr"]))
        if word == "sp":
            return word
        return hex(values[word]) if shift else str(values[word])

    operands = _WORD.sub(text, row.format.syntax)
    if "rm" in values and values["rm"] != _implied_rounding(row.name):
        operands += f",{_ROUNDING[values['rm']]}"
    return f"{name} {operands}" if operands else name


def _implied_rounding(name: str) -> int:
    """The rm of an instruction for which none is written."""
    return 0 if name in _EXACT else DYNAMIC


def disassemble_word(word: int, address: int = 0) -> str:
    """As `disassemble`, for bits that may be no instruction."""
    try:
        return disassemble(decode(word), address)
    except IllegalInstruction:
        return f".insn {word:#x}"


def encode(name: str, **operands: int) -> int:
    """The bits of one instruction, base or compressed; operands left out are 0.

    Raises KeyError for an unknown mnemonic, ValueError for an operand that does not fit or that it does not have.
    """
    row = BY_NAME.get(name) or BY_NAME_COMPRESSED[name]
    word = row.match
    for operand in row.format.operands:
        word |= operand.insert(operands.pop(operand.name, operand.bias))
    if operands:
        raise ValueError(f"{name} has no {', '.join(operands)}")
    return word


def assemble(line: str, address: int = 0) -> int:
    """The bits of one line in the table's own syntax. No pseudo-instructions; targets are addresses.

    Raises ValueError for a line that is no instruction.
    """
    mnemonic, _, rest = line.strip().partition(" ")
    aq_rl = next(flags for flags, suffix in _ORDERINGS.items() if mnemonic.endswith(suffix))
    name = mnemonic.removesuffix(_ORDERINGS[aq_rl])
    row = BY_NAME.get(name) or BY_NAME_COMPRESSED.get(name)
    if row is None:
        raise ValueError(f"no such instruction: {mnemonic}")
    rest, rounding = rest.replace(" ", ""), None
    if RM in row.format.operands:
        rounding = _implied_rounding(name)
        first, _, last = rest.rpartition(",")
        if last and last in _ROUNDING:
            rest, rounding = first, _ROUNDING.index(last)
    match = _pattern(row.format).fullmatch(rest)
    if match is None:
        raise ValueError(f"{name} is written {name} {row.format.syntax}, not {line}")
    operands = {"aq": aq_rl >> 1, "rl": aq_rl & 1} if aq_rl else {}
    if rounding is not None:
        operands["rm"] = rounding
    upper = name in ("lui", "auipc", "c.lui")
    for word, value in match.groupdict().items():
        if word in _REGISTER_OPERANDS:
            operands[word] = _REGISTERS[value]
        elif word in _FLOATING_OPERANDS:
            operands[_FLOATING_OPERANDS[word]] = _REGISTERS[value]
        elif word == "target":
            operands["imm"] = int(value, 0) - address
        elif word in ("pred", "succ"):
            operands[word] = sum(8 >> "iorw".index(letter) for letter in value)
        elif word == "csr":
            operands["csr"] = CSR_NUMBERS[value] if value in CSR_NUMBERS else int(value, 0)
        elif word == "imm" and upper:
            number = int(value, 0)
            operands["imm"] = (number - (1 << 20) if number >> 19 else number) << 12
        else:
            operands[word] = int(value, 0)
    return encode(name, **operands)


def program(text: str, address: int) -> bytes:
    """Lines of assembly, one after the other from `address`; `name:` alone on a line is a target for jumps.

    Blank lines and what follows # are left out. `.word N` and `.half N` stand for bits, instructions or data.
    """
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    labels: dict[str, int] = {}
    place = address
    for line in lines:
        if line.endswith(":"):
            labels[line[:-1]] = place
        elif line:
            place += 2 if line.startswith(("c.", ".half")) else 4
    code = bytearray()
    for line in lines:
        if not line or line.endswith(":"):
            continue
        size = 2 if line.startswith(("c.", ".half")) else 4
        directive, _, number = line.partition(" ")
        if directive in (".word", ".half"):
            word = int(number, 0)
        else:
            head, comma, last = line.rpartition(",")
            if comma and last.strip() in labels:
                line = f"{head},{labels[last.strip()]}"
            elif directive == "c.j" and number in labels:
                line = f"c.j {labels[number]}"
            word = assemble(line, address + len(code))
        code += word.to_bytes(size, "little")
    return bytes(code)


def _pattern(layout: Format) -> re.Pattern[str]:
    """The syntax as a regular expression with a group for each operand."""
    parts: list[str] = []
    position = 0
    for match in _WORD.finditer(layout.syntax):
        parts.append(re.escape(layout.syntax[position : match.start()]))
        parts.append("sp" if match.group() == "sp" else f"(?P<{match.group()}>[-a-z0-9]+)")
        position = match.end()
    return re.compile("".join(parts) + re.escape(layout.syntax[position:]))
