"""The bench guest's work, and what was counted while it did it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from toolkit.labs.domains import ExperimentBroken

if TYPE_CHECKING:
    from minivmm.outcome import RunResult

Counts = Counter[str]


class BenchMachine(Protocol):
    """What runs the bench guest."""

    def start(self, timeout: float = ...) -> None:
        """Lets it run."""

    def send(self, data: bytes) -> None:
        """Types on its console."""

    def wait(self) -> RunResult:
        """Waits for its end."""


class Counting:
    """A console that notes what was counted at the first and at the last byte of each line."""

    def __init__(self) -> None:
        self.counted: Callable[[], Mapping[str, int]] = dict
        """What there is to count so far, by name."""
        self.lines: list[tuple[Counts, bytes, Counts]] = []
        self._line = b""
        self._at_first: Counts = Counter()

    def __call__(self, data: bytes) -> None:
        """Gets what the guest says as it says it."""
        for piece in data.splitlines(keepends=True):
            if not self._line:
                self._at_first = Counter(self.counted())
            self._line += piece
            if piece.endswith(b"\n"):
                self.lines.append((self._at_first, self._line, Counter(self.counted())))
                self._line = b""


class Work(NamedTuple):
    """One `run` command: what was counted between its two lines, and the second one's members."""

    counts: Counts
    answer: Mapping[str, object]


def do_work(
    machine: BenchMachine, console: Counting, workload: str, batches: tuple[int, ...], deadline: float
) -> tuple[list[Work], RunResult]:
    """Runs the workload so many batches at a time, to the guest's end. Raises ExperimentBroken."""
    machine.start(deadline)
    machine.send("".join(f"run {workload} {count}\n" for count in batches).encode() + b"quit\n")
    result = machine.wait()
    if len(console.lines) != 1 + 2 * len(batches):  # ready, and begin and end of each
        raise ExperimentBroken("the bench guest did not do its work", cause=f"{result.outcome.value}: {result.detail}")
    told = console.lines[1:]
    return [
        Work(difference(ended, begun), json.loads(line))
        for (_, _, begun), (ended, line, _) in zip(told[::2], told[1::2], strict=True)
    ], result


def difference(after: Counts, before: Counts) -> Counts:
    """What came in between, without what did not change."""
    changed = Counter(after)
    changed.subtract(before)
    return Counter({name: count for name, count in changed.items() if count})
