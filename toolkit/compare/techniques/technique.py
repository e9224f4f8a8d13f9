"""What a technique is, and what every one is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from minivmm.errors import VtkError
from toolkit.compare.session import Session

REFERENCE = "native"
"""The technique whose time is 1.0 and whose checksum is right."""


class Bench(NamedTuple):
    """What every technique is given."""

    disk: Path
    """The disk of the blk-* workloads. Read-only: it is open in several machines at once."""
    memory: int
    """Guest memory, bytes."""
    lifetime: float
    """Seconds after which a machine ends by itself, whatever became of us."""


class Obstacle(NamedTuple):
    """Why a technique cannot run here."""

    reason: str
    remedy: str


class Technique(Protocol):
    """One column of the table."""

    name: str
    summary: str
    """One line for a person."""

    def obstacle(self) -> Obstacle | None:
        """What stands in the way on this host; None when the technique should work."""

    def open(self, bench: Bench) -> Session:
        """A running bench program. Raises VtkError when it does not start."""


def bench_image(platform: str = "bare") -> Path:
    """The bench guest for one of guest_os's platforms. Raises BuildError."""
    import guest_os

    return guest_os.image("bench", platform)


def obstacle_of(needed: Callable[[], object]) -> Obstacle | None:
    """What `needed` raises, as an obstacle."""
    try:
        needed()
    except VtkError as error:
        return Obstacle(": ".join(filter(None, (error.message, error.cause))), error.remedy)
    return None
