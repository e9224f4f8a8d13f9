"""Quantities as people read them: three significant digits and the unit that suits them."""

from __future__ import annotations

from math import floor, log10

TIME_UNITS = (("ns", 1.0), ("µs", 1e3), ("ms", 1e6), ("s", 1e9))
SIZE_UNITS = (("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30))


def digits(value: float) -> str:
    """Three significant digits, never in scientific notation: 0.0123, 1.23, 12.3, 1230."""
    if value == 0:
        return "0"
    rounded = round(value, 2 - floor(log10(abs(value))))
    places = 2 - floor(log10(abs(rounded)))  # one fewer where it was rounded up to a power of ten
    return f"{rounded:.{max(0, min(places, 6))}f}"


def time(ns: float) -> str:
    """Nanoseconds in the largest unit that leaves at least 1: 999 ns, 1.00 µs, 1.50 s."""
    name, size = TIME_UNITS[0]
    for candidate, scale in TIME_UNITS:
        if ns >= 0.9995 * scale:  # what rounds to 1.00 of it
            name, size = candidate, scale
    return f"{digits(ns / size)} {name}"


def size(bytes_: float) -> str:
    """Bytes in the largest binary unit that leaves at least 1: 512 B, 1.50 KiB, 41.2 MiB."""
    name, unit = SIZE_UNITS[0]
    for candidate, scale in SIZE_UNITS:
        if bytes_ >= 0.9995 * scale:
            name, unit = candidate, scale
    return f"{digits(bytes_ / unit)} {name}"


def round_time(ns: float) -> str:
    """A power of ten of nanoseconds, as an axis is labelled: 10 ns, 1 µs."""
    number, _, unit = time(ns).partition(" ")
    return f"{float(number):g} {unit}"


def times(value: float) -> str:
    """A ratio: 1.00×, 16.7×, 1230×."""
    return f"{digits(value)}×"


def spread(share: float) -> str:
    """A share as a spread in per cent: ±0.4%, ±12%."""
    per_cent = 100 * share
    return f"±{per_cent:.1f}%" if per_cent < 9.95 else f"±{per_cent:.0f}%"


def seconds(value: float) -> str:
    """A time of a person's scale: 8.2 s, 1 min 30 s."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s"
