"""The few statistics of the table: a median, how far samples stray from it, and a ratio of two such.

Medians because a sample can only be disturbed upwards (an interrupt, another process), which drags a mean along; the
median absolute deviation because it ignores the same outliers (Rousseeuw and Croux 1993, "Alternatives to the Median
Absolute Deviation"). The MAD is given as it is, not scaled to a standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median as _median
from typing import NamedTuple


class Estimate(NamedTuple):
    """A quantity as measured: `median` and `mad` in the same unit."""

    median: float
    mad: float

    @property
    def spread(self) -> float:
        """The deviation as a share of the median; 0 where the median is 0."""
        return self.mad / abs(self.median) if self.median else 0.0


def estimate(samples: Sequence[float]) -> Estimate:
    """The median of `samples` and the median of their distances from it. Raises ValueError for no samples."""
    if not samples:
        raise ValueError("no samples")
    middle = _median(samples)
    return Estimate(middle, _median([abs(sample - middle) for sample in samples]))


def ratio(measured: Estimate, reference: Estimate) -> Estimate | None:
    """`measured` over `reference`; the spreads, being independent, add in quadrature. None over a reference of 0."""
    if reference.median <= 0:
        return None
    quotient = measured.median / reference.median
    return Estimate(quotient, abs(quotient) * math.hypot(measured.spread, reference.spread))
