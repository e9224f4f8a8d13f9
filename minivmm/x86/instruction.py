"""One x86 instruction, taken apart: what it is called, and operands that say where their values are (SDM 2A 2, 3.1.1).

The bytes are read by iced-x86. What is made of them here are plain values, so that whoever carries an instruction out
writes `case "xchg": ...` and needs no decoder's vocabulary. The decoder is imported with the first instruction: a
machine that never needs one does not pay the 30 ms.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import iced_x86

LONGEST_INSTRUCTION = 15  # bytes (SDM 2A 2.3.11)
DECODED_KEPT = 1024  # instructions remembered: a guest meets the same few again and again


class Register(NamedTuple):
    """A general-purpose register, or a part of it: `name` is the 64-bit one's, a field of kvm_regs."""

    name: str
    size: int  # bytes
    shift: int = 0  # bits: 8 for AH, CH, DH and BH


class Special(NamedTuple):
    """A control, debug, segment, x87 or vector register."""

    name: str


class Immediate(NamedTuple):
    """A constant, extended to 64 bits as the instruction extends it."""

    value: int


class Memory(NamedTuple):
    """Memory at segment base + base register + index register * scale + displacement (SDM 1, 3.7.5)."""

    segment: str  # "cs", "ds", "es", "fs", "gs" or "ss"
    base_register: str | None  # a field of kvm_regs
    index_register: str | None
    scale: int
    displacement: int  # with RIP in it, where the address is relative to RIP
    size: int  # bytes of the operand, 0 where there is none (lea, invlpg)
    address_size: int  # bytes of the sum, before the segment's base is added


class Other(NamedTuple):
    """A branch target, or something else that nothing here carries out."""


Operand = Register | Special | Immediate | Memory | Other


class Instruction(NamedTuple):
    """A decoded instruction. A string instruction has its memory as operands, like any other."""

    mnemonic: str  # the SDM's, in lower case; a string instruction with its size: "stosb", "movsq"
    operands: tuple[Operand, ...]
    length: int  # bytes
    rip: int
    lock: bool
    repeat: bool  # rep, repe or repne
    string: bool  # tells the string instruction movsd from SSE's

    @property
    def next_rip(self) -> int:
        """Where the next instruction starts."""
        return self.rip + self.length & (1 << 64) - 1


@lru_cache(maxsize=DECODED_KEPT)
def decode(code: bytes, rip: int, bitness: int = 64) -> Instruction | None:
    """The instruction at the start of `code`, which lies at `rip`. None when there is none, or not all of it."""
    import iced_x86

    names = _names()
    found = iced_x86.Decoder(bitness, code[:LONGEST_INSTRUCTION], ip=rip & (1 << bitness) - 1).decode()
    if found.is_invalid:
        return None
    return Instruction(
        names.mnemonics[found.mnemonic],
        tuple(_operand(names, found, number) for number in range(found.op_count)),
        found.len,
        rip,
        found.has_lock_prefix,
        found.has_rep_prefix or found.has_repne_prefix,
        found.is_string_instruction,
    )


def _operand(names: _Names, found: iced_x86.Instruction, number: int) -> Operand:
    from iced_x86 import OpKind

    kind = found.op_kind(number)
    if kind == OpKind.REGISTER:
        number_of_register = found.op_register(number)
        return names.registers.get(number_of_register) or Special(names.special[number_of_register])
    if kind == OpKind.MEMORY:
        return _memory(names, found)
    if kind in names.immediates:
        return Immediate(found.immediate(number))
    if kind in names.string_memory:
        register, address_size = names.string_memory[kind]
        segment = "es" if register == "rdi" else names.special[found.memory_segment]
        return Memory(segment, register, None, 1, 0, names.size_of(found.memory_size), address_size)
    return Other()


def _memory(names: _Names, found: iced_x86.Instruction) -> Operand:
    """Base and index have the address size; an address without either has that of its displacement."""
    if found.is_vsib:
        return Other()
    base, index = names.registers.get(found.memory_base), names.registers.get(found.memory_index)
    sizes = [register.size for register in (base, index) if register]
    if found.is_ip_rel_memory_operand:
        sizes = [8 if names.special[found.memory_base] == "rip" else 4]
    return Memory(
        names.special[found.memory_segment],
        base and base.name,
        index and index.name,
        found.memory_index_scale,
        found.memory_displacement,
        names.size_of(found.memory_size),
        sizes[0] if sizes else found.memory_displ_size,
    )


class _Names:
    """What the decoder's numbers mean."""

    def __init__(self) -> None:
        from iced_x86 import MemorySizeExt, Mnemonic, OpKind
        from iced_x86 import Register as Number

        self.size_of = MemorySizeExt.size
        self.mnemonics = {value: name.lower() for name, value in vars(Mnemonic).items() if name.isupper()}
        named = {name.lower(): value for name, value in vars(Number).items() if name.isupper()}
        parts = _register_parts()
        self.registers = {named[name]: register for name, register in parts.items()}
        self.special = {value: name for name, value in named.items() if name not in parts}
        kinds = vars(OpKind)
        self.immediates = {value for name, value in kinds.items() if name.startswith("IMMEDIATE")}
        self.string_memory: dict[int, tuple[str, int]] = {
            kinds[name]: (register, size)
            for register, prefixes in (("rsi", ("SEG_",)), ("rdi", ("SEG_", "ES")))
            for prefix in prefixes
            for size, letter in ((8, "R"), (4, "E"), (2, ""))
            for name in (f"MEMORY_{prefix}{letter}{register[1:].upper()}",)
        }


_names = cache(_Names)


def _register_parts() -> dict[str, Register]:
    """Every general-purpose register's name, of any width."""
    parts: dict[str, Register] = {}
    for letter in "abcd":
        name = f"r{letter}x"
        parts |= {name: Register(name, 8), f"e{letter}x": Register(name, 4), f"{letter}x": Register(name, 2)}
        parts |= {f"{letter}l": Register(name, 1), f"{letter}h": Register(name, 1, 8)}
    for short in ("sp", "bp", "si", "di"):
        name = f"r{short}"
        parts |= {name: Register(name, 8), f"e{short}": Register(name, 4), short: Register(name, 2)}
        parts[f"{short}l"] = Register(name, 1)
    for number in range(8, 16):
        name = f"r{number}"
        parts |= {name: Register(name, 8), f"{name}d": Register(name, 4)}
        parts |= {f"{name}w": Register(name, 2), f"{name}l": Register(name, 1)}
    return parts
