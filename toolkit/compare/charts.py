"""Horizontal bars on a logarithmic axis, as an SVG element: no script, colours by class from the page's style sheet.

Techniques differ by factors of up to a thousand, so lengths show orders of magnitude; the number stands at the end of
each bar, and what a screen reader says of it in its `title`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from math import ceil, floor, log10
from typing import NamedTuple

WIDTH = 940
LABELS = 120  # for the names of the groups, left of the axis
VALUES = 130  # for the numbers, right of it
HEAD = 26  # for the axis's own labels
BAR = 15
BAR_GAP = 3
GROUP_GAP = 14
LEAST = 3  # width of a bar of length 0, so that it is seen


class Bar(NamedTuple):
    """One bar. `low` and `high` bound the spread."""

    series: int
    """Which colour: class `s0`, `s1`, …"""
    value: float | None
    """Positive; None for a cell without a figure."""
    low: float
    high: float
    label: str
    """At the bar's end."""
    title: str
    """The whole story in a sentence."""


class Group(NamedTuple):
    """The bars of one workload."""

    name: str
    subtitle: str
    bars: Sequence[Bar]


class Axis:
    """A logarithmic axis over whole decades, from `lowest` to `highest` or more."""

    def __init__(self, lowest: float, highest: float) -> None:
        self.first = floor(log10(lowest))
        self.last = max(ceil(log10(highest)), self.first + 1)

    def x(self, value: float) -> float:
        """The abscissa of `value`; what is off the axis is put at its end."""
        share = (log10(value) - self.first) / (self.last - self.first) if value > 0 else 0.0
        return LABELS + min(max(share, 0.0), 1.0) * (WIDTH - LABELS - VALUES)

    @property
    def decades(self) -> list[float]:
        """The powers of ten on the axis."""
        return [10.0**exponent for exponent in range(self.first, self.last + 1)]


def bar_chart(
    identity: str, title: str, groups: Sequence[Group], scale: Callable[[float], str], *, origin: float | None = None
) -> str:
    """The chart as an `<svg>` element. Bars start at `origin`, or at the left end; `scale` writes the axis's labels.

    Empty text when no group has a value.
    """
    values = [bar.value for group in groups for bar in group.bars if bar.value is not None]
    if not values:
        return ""
    if origin is not None:
        values.append(origin)
    axis = Axis(min(values), max(values))
    start = axis.x(origin) if origin is not None else float(LABELS)
    marks: list[str] = []
    top = HEAD
    for group in groups:
        marks.append(_group(group, top, axis, start))
        top += len(group.bars) * (BAR + BAR_GAP) + GROUP_GAP
    height = top - GROUP_GAP + BAR_GAP
    grid = "".join(_decade(axis.x(value), scale(value), height, value == origin) for value in axis.decades)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{identity}">'
        f'<title id="{identity}">{escape(title)}</title>{grid}{"".join(marks)}</svg>'
    )


def _decade(x: float, label: str, height: int, is_origin: bool) -> str:
    style = "grid origin" if is_origin else "grid"
    return (
        f'<line class="{style}" x1="{x:.1f}" x2="{x:.1f}" y1="{HEAD - 8}" y2="{height}"/>'
        f'<text class="axis" x="{x:.1f}" y="{HEAD - 13}" text-anchor="middle">{escape(label)}</text>'
    )


def _group(group: Group, top: int, axis: Axis, start: float) -> str:
    parts = [f'<text class="name" x="0" y="{top + BAR - 3}">{escape(group.name)}</text>']
    if group.subtitle:
        parts.append(f'<text class="axis" x="0" y="{top + BAR + 13}">{escape(group.subtitle)}</text>')
    for index, bar in enumerate(group.bars):
        parts.append(_bar(bar, top + index * (BAR + BAR_GAP), axis, start))
    return f"<g>{''.join(parts)}</g>"


def _bar(bar: Bar, y: int, axis: Axis, start: float) -> str:
    baseline = y + BAR - 3
    if bar.value is None:
        return f'<text class="axis" x="{start + 6:.1f}" y="{baseline}">{escape(bar.label)}</text>'
    end = axis.x(bar.value)
    left, width = min(start, end), max(abs(end - start), LEAST)
    low, high, middle = axis.x(bar.low), axis.x(bar.high), y + BAR / 2
    whisker = (
        f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>' if high - low > 2 else ""
    )
    return (
        f'<g><title>{escape(bar.title)}</title><rect class="s{bar.series}" x="{left:.1f}" y="{y}" width="{width:.1f}" '
        f'height="{BAR}" rx="2"/>{whisker}'
        f'<text class="value" x="{max(left + width, high) + 6:.1f}" y="{baseline}">{escape(bar.label)}</text></g>'
    )
