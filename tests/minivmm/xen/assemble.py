"""A small assembler for kernels that are written in the test that runs them: Intel's syntax, an instruction a line.

    start:  mov rbx, table + 8      ; a name, a number, or a sum of them
            mov [rbx + 16], rax     ; 64 bits; `dword [..]`, `word [..]`, `byte [..]` otherwise
            jne start
    table:  dq start, -1            ; data: db, dw, dd, dq; `align n`, `space n`, `ascii text`

The first operand of an instruction is its destination. A macro is a mnemonic that stands for other lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from iced_x86 import Code, Encoder, Instruction, MemoryOperand, Register

Macro = Callable[[Sequence[str]], Sequence[str]]

_LABEL = re.compile(r"\s*([A-Za-z_.][\w.]*):(.*)")
_MEMORY = re.compile(r"(?:(byte|word|dword|qword)\s+)?(?:(fs|gs):)?\[(.*)\]$")
_TERM = re.compile(r"\s*([+-]?)\s*([\w.]+)")
_REGISTERS = {name.lower(): value for name, value in vars(Register).items() if name.isupper()}
_KINDS = {
    **dict.fromkeys(("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16))), "r64"),
    **dict.fromkeys(("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", *(f"r{n}d" for n in range(8, 16))), "r32"),
    **dict.fromkeys(("ax", "cx", "dx", "bx"), "r16"),
    **dict.fromkeys(("al", "cl", "dl", "bl"), "r8"),
    **dict.fromkeys(("cs", "ss", "ds", "es", "fs", "gs"), "sreg"),
    **{f"cr{n}": "cr" for n in (0, 2, 3, 4, 8)},
    **{f"dr{n}": "dr" for n in range(8)},
    **{f"xmm{n}": "xmm" for n in range(16)},
}
_SIZES = {"byte": "m8", "word": "m16", "dword": "m32", "qword": "m64", None: "m64"}
_DATA = {"db": 1, "dw": 2, "dd": 4, "dq": 8}

_BINARY = {
    "r64 r64": "R64_RM64",
    "r64 m64": "R64_RM64",
    "m64 r64": "RM64_R64",
    "r64 imm": "RM64_IMM32",
    "r32 r32": "R32_RM32",
    "r32 m32": "R32_RM32",
    "m32 r32": "RM32_R32",
    "r32 imm": "RM32_IMM32",
    "r8 r8": "R8_RM8",
    "r8 m8": "R8_RM8",
    "m8 r8": "RM8_R8",
    "r8 imm": "RM8_IMM8",
    "m64 imm": "RM64_IMM32",
    "m32 imm": "RM32_IMM32",
    "m8 imm": "RM8_IMM8",
}
_CONDITIONS = ("e", "ne", "b", "ae", "a", "be")
_FORMS: dict[str, int] = {
    f"{name} {shape}": getattr(Code, f"{name.upper()}_{code}")
    for name in ("mov", "add", "sub", "and", "or", "xor", "cmp")
    for shape, code in _BINARY.items()
}
_FORMS |= {
    f"{name} {shape}": getattr(Code, code)
    for name, forms in {
        "mov": {
            "r64 imm": "MOV_R64_IMM64",
            "r32 imm": "MOV_R32_IMM32",
            "sreg r32": "MOV_SREG_R32M16",
            "r32 sreg": "MOV_R32M16_SREG",
            "r64 cr": "MOV_R64_CR",
            "cr r64": "MOV_CR_R64",
            "r64 dr": "MOV_R64_DR",
            "dr r64": "MOV_DR_R64",
        },
        "movq": {"xmm r64": "MOVQ_XMM_RM64", "r64 xmm": "MOVQ_RM64_XMM"},
        "movzx": {"r32 m8": "MOVZX_R32_RM8", "r32 m16": "MOVZX_R32_RM16", "r32 r8": "MOVZX_R32_RM8"},
        "lea": {"r64 m64": "LEA_R64_M"},
        "test": {"r64 r64": "TEST_RM64_R64", "r8 imm": "TEST_RM8_IMM8", "m8 imm": "TEST_RM8_IMM8"},
        "xchg": {"m64 r64": "XCHG_RM64_R64", "m8 r8": "XCHG_RM8_R8"},
        "bts": {"m64 imm": "BTS_RM64_IMM8"},
        "btr": {"m64 imm": "BTR_RM64_IMM8"},
        "bt": {"m64 imm": "BT_RM64_IMM8"},
        "shl": {"r64 imm": "SHL_RM64_IMM8"},
        "shr": {"r64 imm": "SHR_RM64_IMM8"},
        "inc": {"r64": "INC_RM64", "m64": "INC_RM64"},
        "dec": {"r64": "DEC_RM64", "m64": "DEC_RM64"},
        "mul": {"r64": "MUL_RM64"},
        "div": {"r64": "DIV_RM64"},
        "push": {"r64": "PUSH_R64", "imm": "PUSHQ_IMM32", "m64": "PUSH_RM64"},
        "pop": {"r64": "POP_R64", "m64": "POP_RM64"},
        "call": {"imm": "CALL_REL32_64", "r64": "CALL_RM64"},
        "jmp": {"imm": "JMP_REL32_64", "r64": "JMP_RM64"},
        **{f"j{condition}": {"imm": f"J{condition.upper()}_REL32_64"} for condition in _CONDITIONS},
        "int": {"imm": "INT_IMM8"},
        "in": {"r8 imm": "IN_AL_IMM8", "r8 r16": "IN_AL_DX"},
        "out": {"imm r8": "OUT_IMM8_AL", "r16 r8": "OUT_DX_AL"},
        "invlpg": {"m64": "INVLPG_M"},
    }.items()
    for shape, code in forms.items()
}
_FORMS |= {
    name: getattr(Code, {"ret": "RETNQ", "nop": "NOPD"}.get(name, name.upper()))
    for name in (
        *("cli", "sti", "hlt", "ud2", "int3", "cpuid", "rdtsc", "rdmsr", "wrmsr", "clts", "syscall", "wbinvd"),
        *("pushfq", "popfq", "ret", "swapgs", "pause", "nop", "std", "cld"),
    )
}
_BRANCHES = re.compile(r"(call|jmp|j\w+) imm")


class Program(NamedTuple):
    """What was assembled."""

    code: bytes
    labels: dict[str, int]


class _Operand(NamedTuple):
    kind: str
    value: int | MemoryOperand


def assemble(
    source: str, origin: int, symbols: Mapping[str, int] | None = None, macros: Mapping[str, Macro] | None = None
) -> Program:
    """`source` at address `origin`. Raises ValueError for a line that cannot be assembled."""
    lines = list(_expanded(source.splitlines(), macros or {}))
    known = dict(symbols or {})
    missing = {name: origin for line in lines if (name := _label(line)) is not None}
    labels: dict[str, int] = missing
    # An instruction's length does not depend on what its labels are, so the second pass finds them where they stay.
    for _ in range(2):
        code, labels = _pass(lines, origin, known | labels)
    return Program(code, labels)


def _label(line: str) -> str | None:
    found = _LABEL.match(line)
    return found.group(1) if found else None


def _expanded(lines: Sequence[str], macros: Mapping[str, Macro]) -> Iterator[str]:
    for line in lines:
        line = line.split(";")[0].rstrip()
        found = _LABEL.match(line)
        if found:
            yield f"{found.group(1)}:"
            line = found.group(2)
        line = line.strip()
        name, _, rest = line.partition(" ")
        if name in macros:
            yield from _expanded(macros[name]([part.strip() for part in rest.split(",")] if rest else []), macros)
        elif line:
            yield line


def _pass(lines: Sequence[str], origin: int, names: Mapping[str, int]) -> tuple[bytes, dict[str, int]]:
    code, labels = bytearray(), {}
    for line in lines:
        label = _label(line)
        if label is not None:
            labels[label] = origin + len(code)
        else:
            try:
                code += _statement(line, origin + len(code), names)
            except (KeyError, ValueError, RuntimeError, OverflowError) as error:
                raise ValueError(f"`{line}`: {error}") from error
    return bytes(code), labels


def _statement(line: str, address: int, names: Mapping[str, int]) -> bytes:
    name, _, rest = line.partition(" ")
    if name == "ascii":
        return rest.strip().encode()
    parts = [part.strip() for part in rest.split(",")] if rest else []
    if name in _DATA:
        size = _DATA[name]
        return b"".join((_value(part, names) & (1 << 8 * size) - 1).to_bytes(size, "little") for part in parts)
    if name == "align":
        return bytes(-address % _value(parts[0], names))
    if name == "space":
        return bytes(_value(parts[0], names))
    return _instruction(name, [_operand(part, names) for part in parts], address)


def _operand(text: str, names: Mapping[str, int]) -> _Operand:
    if text in _KINDS:
        return _Operand(_KINDS[text], _REGISTERS[text])
    memory = _MEMORY.match(text)
    if memory is None:
        return _Operand("imm", _value(text, names))
    size, segment, inside = memory.groups()
    first = re.split(r"[\s+-]", inside.strip())[0]
    base, rest = (first, inside.strip().removeprefix(first)) if first in _KINDS else ("", inside)
    displacement = _value(rest, names)
    operand = MemoryOperand(
        base=_REGISTERS[base] if base else Register.NONE,
        displ=_signed(displacement),
        displ_size=8,
        seg=_REGISTERS[segment] if segment else Register.NONE,
    )
    return _Operand(_SIZES[size], operand)


def _value(text: str, names: Mapping[str, int]) -> int:
    """A sum of numbers and names."""
    total = at = 0
    while at < len(text.rstrip()):
        term = _TERM.match(text, at)
        if term is None:
            raise ValueError(f"no value: {text}")
        value = names[term.group(2)] if term.group(2) in names else int(term.group(2), 0)
        total += -value if term.group(1) == "-" else value
        at = term.end()
    return total


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _immediate(value: int, wide: bool) -> int:
    """As the encoder wants it: 32 bits, signed; extended by the processor when the operation is `wide`."""
    return value - (1 << 32) if not wide and 1 << 31 <= value < 1 << 32 else _signed(value)


def _instruction(name: str, operands: Sequence[_Operand], address: int) -> bytes:
    shape = " ".join([name, *(operand.kind for operand in operands)])
    code = _FORMS[shape]
    values = [operand.value for operand in operands]
    kinds = ["mem" if operand.kind.startswith("m") else operand.kind for operand in operands]
    kinds = ["imm" if kind == "imm" else "mem" if kind == "mem" else "reg" for kind in kinds]
    if _BRANCHES.fullmatch(shape):
        made = Instruction.create_branch(code, int(values[0]) & (1 << 64) - 1)  # type: ignore[arg-type]
    elif "imm" in kinds and code == Code.MOV_R64_IMM64:
        made = Instruction.create_reg_u64(code, values[0], int(values[1]) & (1 << 64) - 1)  # type: ignore[arg-type]
    else:
        wide = "64" in shape
        values = [
            _immediate(int(value), wide) if kind == "imm" else value  # type: ignore[arg-type]
            for kind, value in zip(kinds, values, strict=True)
        ]
        suffix = "".join(f"_{'i32' if kind == 'imm' else kind}" for kind in kinds)
        made = getattr(Instruction, f"create{suffix}")(code, *values)
    encoder = Encoder(64)
    encoder.encode(made, address)
    return encoder.take_buffer()
