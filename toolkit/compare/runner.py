"""The order of a comparison, and what can only be seen across techniques: a wrong checksum.

All techniques stay open side by side, idle ones asleep. For each workload every technique is calibrated; then samples
are taken in turn, one of each technique a round, so that what disturbs the host for a while disturbs all of them and
the ratios stand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from toolkit.compare.cell import Cell, Contestant, Settings
from toolkit.compare.results import Result, Status
from toolkit.compare.techniques import REFERENCE, Bench, Technique


class Comparison:
    """Measures every workload under every technique. `progress(done, total, what)` is called between samples only.

    `results` is the caller's list: it grows a workload at a time, and keeps what there is when `run` is interrupted.
    """

    def __init__(
        self,
        techniques: Sequence[Technique],
        workloads: Sequence[str],
        bench: Bench,
        settings: Settings,
        results: list[Result],
        progress: Callable[[int, int, str], None],
    ) -> None:
        self._results = results
        self._workloads = workloads
        self._settings = settings
        self._progress = progress
        self._rounds = settings.samples + 1  # calibration is the first
        self._total = len(workloads) * self._rounds * len(techniques)
        self._contestants = [Contestant(technique, bench, settings.deadline) for technique in techniques]

    def run(self) -> None:
        """Measures everything. Whatever ends it, the sessions are closed and `results` holds what there is."""
        try:
            for number, workload in enumerate(self._workloads):
                self._compare(workload, number * self._rounds * len(self._contestants))
            self._progress(self._total, self._total, "done")
        finally:
            for contestant in self._contestants:
                contestant.close()

    def _compare(self, workload: str, done: int) -> None:
        cells = [Cell(contestant, workload, self._settings) for contestant in self._contestants]

        def tell(cell: Cell) -> None:
            nonlocal done
            self._progress(done, self._total, f"{workload} under {cell.technique}")
            done += 1

        try:
            take_turns(cells, self._rounds, tell)
        finally:
            self._results += filter(None, (cell.result() for cell in cells))


def take_turns(cells: Sequence[Cell], rounds: int, tell: Callable[[Cell], None]) -> None:
    """Calibrates every cell, then takes a sample of each a round, and compares what they computed. `tell` comes before
    each step."""
    for turn in range(rounds):
        for cell in cells:
            tell(cell)
            if turn == 0:
                cell.attempt(Cell.calibrate)
            elif cell.unfinished:
                cell.attempt(Cell.take_sample)
    expose_wrong_checksums(cells)


def expose_wrong_checksums(cells: Sequence[Cell]) -> None:
    """Fails the cells that computed something else than the reference, or than most where the reference did not run."""
    sums = {cell.technique: cell.checksum for cell in cells if cell.samples and cell.failure is None}
    if not sums:
        return
    if REFERENCE in sums:
        expected, holders = sums[REFERENCE], REFERENCE
    else:
        expected, _ = Counter(sums.values()).most_common(1)[0]  # the first, where none is in the majority
        holders = ", ".join(name for name, checksum in sums.items() if checksum == expected)
    for cell in cells:
        if cell.technique in sums and cell.checksum != expected:
            cell.fail(Status.FAILED, f"wrong checksum: {cell.checksum}, where {holders} computed {expected}")
