"""What an experiment ends in."""

from __future__ import annotations

from typing import NamedTuple


class Check(NamedTuple):
    """One statement, and whether the experiment bears it out."""

    statement: str
    holds: bool
    seen: str
    """What was observed, in a few words."""


class Table(NamedTuple):
    """Observations in rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Verdict(NamedTuple):
    """The claim holds when every one of its statements does."""

    checks: tuple[Check, ...]
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    """What is worth knowing and decides nothing: times, above all."""

    @property
    def holds(self) -> bool:
        """Whether the claim is borne out. A verdict without statements bears out nothing."""
        return bool(self.checks) and all(check.holds for check in self.checks)
