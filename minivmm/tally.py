"""Counting what a guest does by names it can make up."""

from __future__ import annotations

MAX_NAMES = 64


class Tally(dict[str, int]):
    """Counts by name, for the first MAX_NAMES names: however many a guest makes up, they cost no memory."""

    def count(self, name: str) -> None:
        """One more of `name`."""
        if name in self or len(self) < MAX_NAMES:
            self[name] = self.get(name, 0) + 1
