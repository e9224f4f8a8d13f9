"""Median and spread, as everywhere in this project."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Summary(NamedTuple):
    """The median of some samples and their median absolute deviation from it."""

    median: float
    mad: float


def summarize(samples: Sequence[float]) -> Summary:
    """Raises statistics.StatisticsError for no samples."""
    median = statistics.median(samples)
    return Summary(median, statistics.median(abs(sample - median) for sample in samples))
