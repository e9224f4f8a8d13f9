"""Floating point by integers is the host's own where the host has the operation; flags and modes are IEEE 754's."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

from hypothesis import assume, given
from hypothesis import strategies as st

from minivmm.emulator import softfloat
from minivmm.emulator.softfloat import DOUBLE, NV, NX, OF, RDN, RMM, RNE, RTZ, RUP, SINGLE, UF


def bits(value: float) -> int:
    return int.from_bytes(struct.pack("<d", value), "little")


PATTERNS = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.floats().map(bits),
    st.sampled_from([0, 1 << 63, 1, (1 << 52) - 1, 1 << 52, DOUBLE.infinity, DOUBLE.infinity - 1, DOUBLE.canonical]),
)
FINITE = PATTERNS.filter(lambda pattern: pattern & DOUBLE.infinity != DOUBLE.infinity)


class Flags:
    """Collects exceptions."""

    def __init__(self) -> None:
        self.flags = 0


def number(pattern: int) -> float:
    return float(struct.unpack("<d", pattern.to_bytes(8, "little"))[0])


def canonical(value: float) -> int:
    return DOUBLE.canonical if math.isnan(value) else bits(value)


@given(PATTERNS, PATTERNS)
def test_arithmetic_to_nearest_is_what_the_host_computes(one: int, other: int) -> None:
    flags, x, y = Flags(), number(one), number(other)
    assert softfloat.add(DOUBLE, one, other, RNE, flags) == canonical(x + y)
    assert softfloat.subtract(DOUBLE, one, other, RNE, flags) == canonical(x - y)
    assert softfloat.multiply(DOUBLE, one, other, RNE, flags) == canonical(x * y)
    if y:
        assert softfloat.divide(DOUBLE, one, other, RNE, flags) == canonical(x / y)
    if x >= 0:
        assert softfloat.square_root(DOUBLE, one, RNE, flags) == canonical(math.sqrt(x))
    assert softfloat.equal(DOUBLE, one, other, flags) == (x == y)
    assert softfloat.less(DOUBLE, one, other, flags) == (x < y)


@given(FINITE, FINITE, FINITE, st.sampled_from([RNE, RTZ, RDN, RUP, RMM]))
def test_a_fused_result_is_the_exact_one_or_its_neighbour_on_the_right_side(
    one: int, other: int, addend: int, mode: int
) -> None:
    flags = Flags()
    result = softfloat.fused(DOUBLE, one, other, addend, mode, flags)
    exact = Fraction(number(one)) * Fraction(number(other)) + Fraction(number(addend))
    assume(result & DOUBLE.infinity != DOUBLE.infinity)
    got = Fraction(number(result))
    assert (got == exact) == (not flags.flags & NX)
    if mode == RDN:
        assert got <= exact
    if mode == RUP:
        assert got >= exact
    if mode == RTZ:
        assert abs(got) <= abs(exact)


@given(PATTERNS)
def test_single_to_double_and_back_changes_nothing_but_nans(pattern: int) -> None:
    single, flags = pattern & 0xFFFF_FFFF, Flags()
    assume(not softfloat.is_nan(SINGLE, single))
    wide = softfloat.convert(DOUBLE, SINGLE, single, RNE, flags)
    assert softfloat.convert(SINGLE, DOUBLE, wide, RNE, flags) == single
    assert flags.flags == 0


def test_too_large_is_infinity_or_the_largest_number_as_the_mode_has_it() -> None:
    largest = DOUBLE.infinity - 1
    for mode, result in ((RNE, DOUBLE.infinity), (RTZ, largest), (RDN, largest), (RUP, DOUBLE.infinity)):
        flags = Flags()
        assert softfloat.add(DOUBLE, largest, largest, mode, flags) == result
        assert flags.flags == OF | NX


def test_underflow_is_detected_after_rounding() -> None:
    smallest, one_less = 1 << 52, (1 << 52) - 1  # normal, subnormal
    nearly_one = bits(1.0) - 1
    flags = Flags()
    assert softfloat.multiply(DOUBLE, smallest, nearly_one, RNE, flags) == smallest
    assert flags.flags == UF | NX  # 53 bits are enough for it: below the smallest normal number
    flags = Flags()
    slightly_more = softfloat.fused(DOUBLE, one_less, bits(1.0 + 2**-52), 0, RUP, flags)
    assert slightly_more == smallest
    assert flags.flags == NX  # with no bound on the exponent it would have been the smallest normal one too


def test_a_number_that_no_integer_holds_gives_the_nearest_bound() -> None:
    for pattern, result in ((bits(1e30), 127), (bits(-1e30), -128), (DOUBLE.canonical, 127), (bits(-128.9), -128)):
        flags = Flags()
        assert softfloat.to_integer(DOUBLE, pattern, -128, 127, RTZ, flags) == result
        assert flags.flags == (NX if pattern == bits(-128.9) else NV)
