"""Integer instructions as functions: operands in, result and status flags out (SDM 1, 3.4.3.1; SDM 2 for each).

Values are unsigned, `size` is in bytes. Flags the SDM leaves undefined come out as it suits.
"""

from __future__ import annotations

from collections.abc import Callable

from minivmm.x86.operands import mask

CF, PF, AF, ZF, SF, OF = (1 << place for place in (0, 2, 4, 6, 7, 11))
STATUS = CF | PF | AF | ZF | SF | OF

Outcome = tuple[int, int]
"""A result, and what the status flags are then."""


def add(left: int, right: int, size: int, carry: int = 0) -> Outcome:
    """left + right + carry."""
    total = left + right + carry
    result = total & mask(size)
    overflow = (left ^ result) & (right ^ result)
    return result, _shown(result, size) | _carries(left ^ right ^ result, overflow, size) | (
        CF if total >> 8 * size else 0
    )


def subtract(left: int, right: int, size: int, borrow: int = 0) -> Outcome:
    """left - right - borrow; compare, when only the flags are used."""
    total = left - right - borrow
    result = total & mask(size)
    overflow = (left ^ right) & (left ^ result)
    return result, _shown(result, size) | _carries(left ^ right ^ result, overflow, size) | (CF if total < 0 else 0)


def logical(result: int, size: int) -> Outcome:
    """The flags of and, or, xor and test: no carry, no overflow."""
    return result, _shown(result, size)


def bit_test(base: int, offset: int, size: int, flags: int, change: str) -> Outcome:
    """bt, bts, btr or btc: the bit goes to CF, then it is left, set, cleared or inverted. Other flags stay."""
    bit = 1 << offset % (8 * size)
    result = {"bt": base, "bts": base | bit, "btr": base & ~bit, "btc": base ^ bit}[change]
    return result, flags & STATUS & ~CF | (CF if base & bit else 0)


def _shown(result: int, size: int) -> int:
    """ZF, SF and PF: what a result shows by itself. PF is of its low byte."""
    flags = 0 if result else ZF
    if result >> 8 * size - 1:
        flags |= SF
    if not (result & 0xFF).bit_count() & 1:
        flags |= PF
    return flags


def _carries(carried: int, overflow: int, size: int) -> int:
    """AF, from the bits that carries reached, and OF."""
    return (AF if carried & 1 << 4 else 0) | (OF if overflow >> 8 * size - 1 & 1 else 0)


TWO_OPERANDS: dict[str, Callable[[int, int, int, int], Outcome]] = {
    "add": lambda target, source, size, _flags: add(target, source, size),
    "adc": lambda target, source, size, flags: add(target, source, size, flags & CF),
    "sub": lambda target, source, size, _flags: subtract(target, source, size),
    "sbb": lambda target, source, size, flags: subtract(target, source, size, flags & CF),
    "and": lambda target, source, size, _flags: logical(target & source, size),
    "or": lambda target, source, size, _flags: logical(target | source, size),
    "xor": lambda target, source, size, _flags: logical(target ^ source, size),
}
"""By mnemonic: target, source, size and status flags before."""

ONE_OPERAND: dict[str, Callable[[int, int, int], Outcome]] = {
    "inc": lambda target, size, flags: _keep_carry(add(target, 1, size), flags),
    "dec": lambda target, size, flags: _keep_carry(subtract(target, 1, size), flags),
    "neg": lambda target, size, _flags: subtract(0, target, size),
    "not": lambda target, size, flags: (~target & mask(size), flags & STATUS),
}
"""By mnemonic: target, size and status flags before."""

COMPARISONS: dict[str, Callable[[int, int, int], int]] = {
    "cmp": lambda left, right, size: subtract(left, right, size)[1],
    "test": lambda left, right, size: logical(left & right, size)[1],
}
"""By mnemonic: two values and their size to status flags."""


def _keep_carry(outcome: Outcome, flags: int) -> Outcome:
    return outcome[0], outcome[1] & ~CF | flags & CF
