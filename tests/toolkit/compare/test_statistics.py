"""Properties of the table's statistics."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.compare import quantity
from toolkit.compare.statistics import Estimate, estimate, ratio

TIMES = st.floats(0.01, 1e12)
SAMPLES = st.lists(TIMES, min_size=1, max_size=30)


@settings(deadline=None)
@given(SAMPLES)
def test_the_median_lies_among_the_samples_and_the_mad_within_their_range(samples: list[float]) -> None:
    measured = estimate(samples)

    assert min(samples) <= measured.median <= max(samples)
    assert 0 <= measured.mad <= max(samples) - min(samples)


@settings(deadline=None)
@given(SAMPLES, st.randoms())
def test_the_order_of_samples_does_not_matter(samples: list[float], random: object) -> None:
    shuffled = samples.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    assert estimate(shuffled) == estimate(samples)


@settings(deadline=None)
@given(st.lists(TIMES, min_size=3, max_size=30), st.integers(0, 29))
def test_one_outlier_moves_the_median_no_further_than_a_neighbour(samples: list[float], index: int) -> None:
    index %= len(samples)
    disturbed = [*samples[:index], 1e15, *samples[index + 1 :]]

    assert estimate(disturbed).median <= max(samples)


@settings(deadline=None)
@given(TIMES, st.integers(1, 20))
def test_equal_samples_have_no_spread(value: float, count: int) -> None:
    assert estimate([value] * count) == Estimate(value, 0.0)


def test_no_samples_are_no_estimate() -> None:
    with pytest.raises(ValueError):
        estimate([])


@settings(deadline=None)
@given(SAMPLES)
def test_a_thing_over_itself_is_one(samples: list[float]) -> None:
    measured = estimate(samples)
    compared = ratio(measured, measured)

    assert compared is not None
    assert compared.median == 1
    assert compared.mad == pytest.approx(math.sqrt(2) * measured.spread)


@settings(deadline=None)
@given(SAMPLES, SAMPLES)
def test_a_ratio_spreads_at_least_as_much_as_either_side(above: list[float], below: list[float]) -> None:
    first, second = estimate(above), estimate(below)
    compared = ratio(first, second)

    assert compared is not None
    assert compared.median == pytest.approx(first.median / second.median)
    assert compared.spread >= max(first.spread, second.spread) * (1 - 1e-9)


def test_a_ratio_to_nothing_is_none() -> None:
    assert ratio(Estimate(1.0, 0.0), Estimate(0.0, 0.0)) is None


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"),
        (0.5, "0.500 ns"),
        (72.31, "72.3 ns"),
        (999.4, "999 ns"),
        (999.6, "1.00 µs"),
        (1234, "1.23 µs"),
        (12_345_678, "12.3 ms"),
        (1.5e9, "1.50 s"),
        (1.234e12, "1230 s"),
    ],
)
def test_times_have_three_digits_and_a_fitting_unit(ns: float, text: str) -> None:
    assert quantity.time(ns) == text


@settings(deadline=None)
@given(st.floats(1e-4, 1e9))
def test_three_digits_are_within_half_a_per_cent(value: float) -> None:
    assert float(quantity.digits(value)) == pytest.approx(value, rel=0.0051)


def test_spreads_and_seconds_read_well() -> None:
    assert quantity.spread(0.0044) == "±0.4%"
    assert quantity.spread(0.0996) == "±10%"
    assert quantity.seconds(8.21) == "8.2 s"
    assert quantity.seconds(95) == "1 min 35 s"
