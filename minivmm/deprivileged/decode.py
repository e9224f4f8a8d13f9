"""The instructions the substrate itself must know: `int n`, which back ends refuse in different ways, and port I/O."""

from __future__ import annotations

from typing import NamedTuple

LONGEST_INSTRUCTION = 15  # bytes (SDM 2A 2.3.11)

_LEGACY_PREFIXES = frozenset({0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF2, 0xF3})
_REX = range(0x40, 0x50)
_INT = 0xCD
_OPERAND_SIZE = 0x66
_PORT_IN_CODE = {0xE4, 0xE5, 0xE6, 0xE7}  # in, out with an imm8 (SDM 2A, 2B)
_PORT_IN_DX = {0xEC, 0xED, 0xEE, 0xEF, 0x6C, 0x6D, 0x6E, 0x6F}  # in, out; ins, outs


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


def port_access_before(code: bytes, port: int, size: int) -> int:
    """The length of the access of `size` bytes to `port` that ends where 64-bit `code` ends; 0 where none does.

    A prefix counts when the access would be another without it: which others belong to it cannot be told from its end.
    """
    for length, opcodes in ((1, _PORT_IN_DX), (2, _PORT_IN_CODE)):
        if len(code) < length or code[-length] not in opcodes or (length == 2 and code[-1] != port):
            continue
        if size != 2:
            return length
        prefixes = code[-LONGEST_INSTRUCTION:-length]
        for at in range(len(prefixes) - 1, -1, -1):
            if prefixes[at] == _OPERAND_SIZE:
                return length + len(prefixes) - at
            if prefixes[at] not in _LEGACY_PREFIXES and prefixes[at] not in _REX:
                break
    return 0
