"""IEEE 754-2008 binary arithmetic on bit patterns, by exact integers: every rounding mode, every exception flag.

A finite number is sign, significand and exponent, (-1)^sign * significand * 2^exponent, both integers of any size. An
operation computes the exact result (a quotient or a root with one more bit that says whether something was left over)
and rounds once. What IEEE 754 leaves open is as RISC-V has it (Unprivileged ISA, chapter 11): a NaN that results is the
canonical one, and underflow is detected after rounding.

Operations take and give patterns, and add to the flags the caller hands them: an object with `flags`.
"""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple, Protocol

RNE, RTZ, RDN, RUP, RMM = range(5)
"""Rounding modes (table 11.1): to nearest even, towards zero, down, up, to nearest with ties away from zero."""
NX, UF, OF, DZ, NV = (1 << bit for bit in range(5))
"""Accrued exception flags (figure 11.2): inexact, underflow, overflow, division by zero, invalid."""


class Flags(Protocol):
    """Where exceptions are noted."""

    flags: int


class Format(NamedTuple):
    """A binary interchange format."""

    bits: int
    fraction: int  # bits of the trailing significand
    bias: int
    sign: int  # the sign bit
    infinity: int  # positive; also the mask of the exponent
    canonical: int  # the quiet NaN (11.3)
    quiet: int  # set in a NaN that is quiet

    @classmethod
    def of(cls, bits: int, fraction: int) -> Format:
        """The format of so many bits, so many of them fraction."""
        infinity = (1 << bits - 1) - (1 << fraction)
        quiet = 1 << fraction - 1
        bias = (1 << bits - fraction - 2) - 1
        return cls(bits, fraction, bias, 1 << bits - 1, infinity, infinity | quiet, quiet)


SINGLE = Format.of(32, 23)
DOUBLE = Format.of(64, 52)


def is_nan(form: Format, value: int) -> bool:
    """A quiet or a signaling one."""
    return value & ~form.sign > form.infinity


def is_signaling(form: Format, value: int) -> bool:
    """A NaN with its highest bit of fraction clear."""
    return value & ~form.sign > form.infinity and not value & form.quiet


def is_infinite(form: Format, value: int) -> bool:
    """Of either sign."""
    return value & ~form.sign == form.infinity


def _finite(form: Format, value: int) -> tuple[int, int, int]:
    """Sign (0 or 1), significand, exponent of a number that is no NaN and not infinite."""
    sign, exponent = value >> form.bits - 1, (value & form.infinity) >> form.fraction
    significand = value & (1 << form.fraction) - 1
    if exponent:
        significand |= 1 << form.fraction
    return sign, significand, (exponent or 1) - form.bias - form.fraction


def _nan(form: Format, flags: Flags, *operands: int) -> int:
    """What an operation gives that has a NaN among its operands, or no other result."""
    if not any(is_nan(form, operand) for operand in operands) or any(is_signaling(form, one) for one in operands):
        flags.flags |= NV
    return form.canonical


def _rounds_up(sign: int, mode: int, odd: int, remainder: int, half: int) -> bool:
    """Whether a magnitude of which `remainder` (of 2 * half) is cut off becomes one more."""
    if mode == RNE:
        return remainder > half or (remainder == half and bool(odd))
    if mode == RMM:
        return remainder >= half
    return bool(remainder) and mode == (RDN if sign else RUP)


def _shifted(sign: int, significand: int, by: int, mode: int) -> tuple[int, bool]:
    """significand / 2^by as an integer, rounded; and whether that is inexact."""
    if by <= 0:
        return significand << -by, False
    remainder = significand & (1 << by) - 1
    kept = significand >> by
    return kept + _rounds_up(sign, mode, kept & 1, remainder, 1 << by - 1), remainder != 0


def pack(form: Format, sign: int, significand: int, exponent: int, mode: int, flags: Flags) -> int:
    """The pattern of (-1)^sign * significand * 2^exponent, rounded once (IEEE 754, 4.3 and 7.4 to 7.6)."""
    negative = form.sign if sign else 0
    if not significand:
        return negative
    top = exponent + significand.bit_length() - 1  # of the leading bit
    lowest = 1 - form.bias
    last = max(top, lowest) - form.fraction  # the exponent of the last bit that is kept
    kept, inexact = _shifted(sign, significand, last - exponent, mode)
    # The leading 1 of a normal number counts as one in the exponent's field; so does a carry out of the fraction.
    pattern = (max(top, lowest) + form.bias - 1 << form.fraction) + kept
    if pattern >= form.infinity:
        flags.flags |= OF | NX
        away = mode in (RNE, RMM) or mode == (RDN if sign else RUP)
        return negative | (form.infinity if away else form.infinity - 1)
    if inexact:
        flags.flags |= NX
        if top < lowest:  # 7.5: tiny, unless rounding without a bound on the exponent would reach the lowest
            unbounded, _ = _shifted(sign, significand, top - form.fraction - exponent, mode)
            if top < lowest - 1 or unbounded >> form.fraction + 1 == 0:
                flags.flags |= UF
    return negative | pattern


# --- arithmetic: 11.6, 12.4 -------------------------------------------------------------------------------------------
def add(form: Format, one: int, other: int, mode: int, flags: Flags) -> int:
    """one + other."""
    if is_nan(form, one) or is_nan(form, other):
        return _nan(form, flags, one, other)
    if is_infinite(form, one):
        return _nan(form, flags) if other == one ^ form.sign else one
    if is_infinite(form, other):
        return other
    return _sum(form, _finite(form, one), _finite(form, other), mode, flags)


def _sum(form: Format, one: tuple[int, int, int], other: tuple[int, int, int], mode: int, flags: Flags) -> int:
    exponent = min(one[2], other[2])
    first, second = (
        (-significand if sign else significand) << place - exponent for sign, significand, place in (one, other)
    )
    total = first + second
    if not total:  # 6.3: the sign of an exact zero
        sign = one[0] if one[0] == other[0] else int(mode == RDN)
        return form.sign if sign else 0
    return pack(form, int(total < 0), abs(total), exponent, mode, flags)


def subtract(form: Format, one: int, other: int, mode: int, flags: Flags) -> int:
    """one - other."""
    return add(form, one, other if is_nan(form, other) else other ^ form.sign, mode, flags)


def multiply(form: Format, one: int, other: int, mode: int, flags: Flags) -> int:
    """one * other."""
    if is_nan(form, one) or is_nan(form, other):
        return _nan(form, flags, one, other)
    sign = (one ^ other) & form.sign
    if is_infinite(form, one) or is_infinite(form, other):
        zero = not (one & ~form.sign and other & ~form.sign)
        return _nan(form, flags) if zero else sign | form.infinity
    (_, first, place), (_, second, there) = _finite(form, one), _finite(form, other)
    return pack(form, int(sign != 0), first * second, place + there, mode, flags)


def fused(form: Format, one: int, other: int, addend: int, mode: int, flags: Flags) -> int:
    """one * other + addend, rounded once. Infinity times zero is invalid even when a quiet NaN is added (11.6)."""
    infinite = is_infinite(form, one) or is_infinite(form, other)
    if infinite and not (one & ~form.sign and other & ~form.sign):
        flags.flags |= NV
        return form.canonical
    if is_nan(form, one) or is_nan(form, other) or is_nan(form, addend):
        return _nan(form, flags, one, other, addend)
    sign = (one ^ other) & form.sign
    if infinite:
        product = sign | form.infinity
        return _nan(form, flags) if addend == product ^ form.sign else product
    if is_infinite(form, addend):
        return addend
    (_, first, place), (_, second, there) = _finite(form, one), _finite(form, other)
    return _sum(form, (int(sign != 0), first * second, place + there), _finite(form, addend), mode, flags)


def divide(form: Format, one: int, other: int, mode: int, flags: Flags) -> int:
    """one / other."""
    if is_nan(form, one) or is_nan(form, other):
        return _nan(form, flags, one, other)
    sign = (one ^ other) & form.sign
    if is_infinite(form, one):
        return _nan(form, flags) if is_infinite(form, other) else sign | form.infinity
    if is_infinite(form, other):
        return sign
    (_, dividend, place), (_, divisor, there) = _finite(form, one), _finite(form, other)
    if not divisor:
        if not dividend:
            return _nan(form, flags)
        flags.flags |= DZ
        return sign | form.infinity
    more = max(form.fraction + 3 - dividend.bit_length() + divisor.bit_length(), 0)  # bits enough to round
    quotient, remainder = divmod(dividend << more, divisor)
    exact = quotient << 1 | (remainder != 0)  # the last bit says that there is more
    return pack(form, int(sign != 0), exact, place - there - more - 1, mode, flags)


def square_root(form: Format, value: int, mode: int, flags: Flags) -> int:
    """The root; of -0 it is -0."""
    if is_nan(form, value):
        return _nan(form, flags, value)
    if value in (form.sign, form.infinity):
        return value
    if value & form.sign:
        return _nan(form, flags)
    _, significand, exponent = _finite(form, value)
    more = 2 * (form.fraction + 3)
    more += (exponent - more) & 1  # the exponent is to be halved
    radicand = significand << more
    root = isqrt(radicand)
    exact = root << 1 | (root * root != radicand)
    return pack(form, 0, exact, (exponent - more >> 1) - 1, mode, flags)


# --- comparisons: 11.8, 11.6 ------------------------------------------------------------------------------------------
def _order(form: Format, value: int) -> int:
    """A number that compares like the value; zeros are equal. Not of a NaN."""
    magnitude = value & ~form.sign
    return -magnitude if value & form.sign else magnitude


def equal(form: Format, one: int, other: int, flags: Flags) -> bool:
    """Quiet: only a signaling NaN is invalid."""
    if is_nan(form, one) or is_nan(form, other):
        _nan(form, flags, one, other)
        return False
    return _order(form, one) == _order(form, other)


def less(form: Format, one: int, other: int, flags: Flags, or_equal: bool = False) -> bool:
    """Signaling: any NaN is invalid."""
    if is_nan(form, one) or is_nan(form, other):
        flags.flags |= NV
        return False
    first, second = _order(form, one), _order(form, other)
    return first <= second if or_equal else first < second


def smallest(form: Format, one: int, other: int, flags: Flags, largest: bool = False) -> int:
    """minimumNumber, maximumNumber of IEEE 754-2019: a number rather than a NaN, and -0 below +0."""
    if is_signaling(form, one) or is_signaling(form, other):
        flags.flags |= NV
    if is_nan(form, one):
        return form.canonical if is_nan(form, other) else other
    if is_nan(form, other):
        return one
    first, second = (_order(form, one), one ^ form.sign), (_order(form, other), other ^ form.sign)
    if first[0] == second[0]:  # equal, or zeros of both signs
        first, second = (0, first[1] & form.sign), (0, second[1] & form.sign)
    return one if (first > second if largest else first < second) else other


def classify(form: Format, value: int) -> int:
    """The mask of FCLASS (table 11.5)."""
    magnitude = value & ~form.sign
    if magnitude > form.infinity:
        return 1 << (9 if value & form.quiet else 8)
    if magnitude == form.infinity:
        place = 7
    elif magnitude >> form.fraction:
        place = 6
    else:
        place = 5 if magnitude else 4
    return 1 << (7 - place if value & form.sign else place)


# --- conversions: 11.7, 12.5 ------------------------------------------------------------------------------------------
def convert(to: Format, form: Format, value: int, mode: int, flags: Flags) -> int:
    """To another format."""
    if is_nan(form, value):
        _nan(form, flags, value)
        return to.canonical
    if is_infinite(form, value):
        return to.infinity | (to.sign if value & form.sign else 0)
    return pack(to, *_finite(form, value), mode, flags)


def to_integer(form: Format, value: int, lowest: int, highest: int, mode: int, flags: Flags) -> int:
    """The rounded integer within these bounds; beyond them, and for a NaN (as if positive), the bound (table 11.4)."""
    negative = bool(value & form.sign) and not is_nan(form, value)
    if is_nan(form, value) or is_infinite(form, value):
        flags.flags |= NV
        return lowest if negative else highest
    sign, significand, exponent = _finite(form, value)
    magnitude, inexact = _shifted(sign, significand, -exponent, mode)
    result = -magnitude if sign else magnitude
    if not lowest <= result <= highest:
        flags.flags |= NV
        return lowest if negative else highest
    if inexact:
        flags.flags |= NX
    return result


def from_integer(form: Format, value: int, mode: int, flags: Flags) -> int:
    """The nearest number."""
    return pack(form, int(value < 0), abs(value), 0, mode, flags)
