"""The one instruction the substrate itself must know: `int n`, which back ends refuse in different ways."""

from __future__ import annotations

from typing import NamedTuple

LONGEST_INSTRUCTION = 15  # bytes (SDM 2A 2.3.11)

_LEGACY_PREFIXES = frozenset({0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF2, 0xF3})
_REX = range(0x40, 0x50)
_INT = 0xCD


class SoftwareInterruptInstruction(NamedTuple):
    """`int n`. `length` is in bytes, with prefixes, which mean nothing to it."""

    vector: int
    length: int


def int_n(code: bytes) -> SoftwareInterruptInstruction | None:
    """The `int n` at the start of 64-bit `code`, None where there is another instruction or not all of it."""
    for at, byte in enumerate(code[: LONGEST_INSTRUCTION - 1]):
        if byte == _INT:
            return SoftwareInterruptInstruction(code[at + 1], at + 2) if at + 1 < len(code) else None
        if byte not in _LEGACY_PREFIXES and byte not in _REX:
            return None
    return None
