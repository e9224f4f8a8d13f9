"""One cell of the table while it is measured: markers, calibration, samples, and what a failure does.

A failure ends its own cell. When it cost the session, the next cell of that technique finds a new one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from statistics import median

from minivmm.errors import VtkError
from toolkit.compare import protocol
from toolkit.compare.results import TOTAL, Result, Status
from toolkit.compare.session import Session, SessionEnded, SessionSilent
from toolkit.compare.statistics import estimate
from toolkit.compare.techniques import Bench, Technique

MAX_BATCHES = 1 << 40  # what takes no time even then is no work
MAX_GROWTH = 16  # of the batches from one calibration run to the next: a first run, cold, foretells little
MARGIN = 1.2  # by which calibration overshoots, so that a fast sample still reaches the target
MAX_LOST_IN_A_ROW = 3  # sessions, before a technique is given up: each may have cost a whole deadline
MAX_DISCARDED = 12  # samples of one cell, for being much too short
MIN_SAMPLES = 3  # with fewer, a median protects from nothing
MAX_WORDS = 160  # letters of a guest's last words that reach a report


@dataclass(frozen=True, slots=True)
class Settings:
    """How much a comparison measures. Times in seconds."""

    target: float = 0.1
    """The least a sample lasts."""
    samples: int = 9
    markers: int = 5
    """Runs of no batches at all, whose median is the marker's own cost; fewer when these alone spend the budget."""
    deadline: float = 30.0
    """For one command, and for a session to say it is ready."""
    budget: float = 20.0
    """For one cell; when it is spent, MIN_SAMPLES samples are enough."""


QUICK = Settings(target=0.04, samples=5, markers=3, budget=1.5)


class CellFailed(VtkError):
    """The technique answers by the rules, and what it answers cannot be right."""


class Contestant:
    """One technique through a whole comparison: its session, reopened when lost, or why there is none."""

    def __init__(self, technique: Technique, bench: Bench, deadline: float) -> None:
        self.name = technique.name
        self._technique = technique
        self._bench = bench
        self._deadline = deadline
        self._session: Session | None = None
        self._workloads: tuple[str, ...] = ()
        self._lost_in_a_row = 0
        self._last_loss = ""
        self.obstacle = technique.obstacle()

    def session_for(self, workload: str) -> Session:
        """The open session. Raises VtkError when there can be none, WorkloadUnsupported when it lacks the workload."""
        if self._lost_in_a_row >= MAX_LOST_IN_A_ROW:
            raise SessionEnded(
                f"given up after {self._lost_in_a_row} lost sessions in a row; the last: {self._last_loss}"
            )
        if self._session is None:
            self._session = self._technique.open(self._bench)
            self._workloads = protocol.read_ready(self._session, self._deadline)
        if workload not in self._workloads:
            raise protocol.WorkloadUnsupported("the bench program has no such workload")
        return self._session

    def lose(self, error: VtkError) -> str:
        """Closes the session, which cannot be used any further; why, with the guest's last words, for the report."""
        reason = ": ".join(filter(None, (error.message, error.cause)))
        words = last_words(self._session.text()) if self._session is not None else ""
        if words and isinstance(error, SessionEnded | SessionSilent):
            reason += f"; its last words: {words}"
        if self._lost_in_a_row < MAX_LOST_IN_A_ROW:
            self._lost_in_a_row += 1
            self._last_loss = reason
        self.close()
        return reason

    def prove_well(self) -> None:
        """A cell was measured to its end: earlier losses are forgiven."""
        self._lost_in_a_row = 0

    def close(self) -> None:
        """Ends the session, if one is open."""
        session, self._session = self._session, None
        if session is not None:
            session.close()


class Cell:
    """One workload under one technique while it is being measured.

    `technique` and `label` are what the result calls them, where one session serves several techniques and its
    workloads have longer names.
    """

    def __init__(
        self, contestant: Contestant, workload: str, settings: Settings, *, technique: str = "", label: str = ""
    ) -> None:
        self.contestant = contestant
        self.workload = workload
        self.technique = technique or contestant.name
        self.label = label or workload
        self.failure: Result | None = None
        self.checksum: str | None = None
        self.samples: list[float] = []  # ns an operation
        self._settings = settings
        self._batches = 1
        self._ops_per_batch = 0
        self._marker = 0.0
        self._marker_exits: dict[str, float] = {}
        self._exits: Counter[str] = Counter()
        self._operations = 0
        self._discarded = 0
        self._spent = 0.0
        if contestant.obstacle is not None:
            self.fail(Status.UNSUPPORTED, contestant.obstacle.reason, contestant.obstacle.remedy)

    @property
    def unfinished(self) -> bool:
        """Whether another sample is wanted."""
        if self.failure is not None or len(self.samples) >= self._settings.samples:
            return False
        return self._spent < self._settings.budget or len(self.samples) < MIN_SAMPLES

    def attempt(self, step: Callable[[Cell], None]) -> None:
        """Runs one step of the measurement; what goes wrong in it becomes the cell's failure."""
        if self.failure is not None:
            return
        started = time.monotonic()
        try:
            step(self)
        except protocol.WorkloadUnsupported as error:
            self.fail(Status.UNSUPPORTED, error.message)
        except (protocol.WorkloadRefused, CellFailed) as error:
            self.fail(Status.FAILED, error.message)
        except VtkError as error:  # SessionLost, or a session that could not be opened
            self.fail(Status.FAILED, self.contestant.lose(error), error.remedy)
        self._spent += time.monotonic() - started

    def calibrate(self) -> None:
        """Measures the markers, then finds how many batches make a sample of the target's length, as timeit does."""
        ns: list[int] = []
        exits: list[Counter[str]] = []
        started = time.monotonic()
        while len(ns) < self._settings.markers:
            sample, own_exits = self._run(0)
            ns.append(sample.ns)
            exits.append(own_exits)
            if time.monotonic() - started > self._settings.budget:  # its preparation is that slow: interpreted, say
                break
        self._marker = median(ns)
        # Medians here too: what a first run alone does is no marker's.
        self._marker_exits = {reason: median(own[reason] for own in exits) for reason in set().union(*exits)}
        target = self._settings.target * 1e9
        while (elapsed := self._run(self._batches)[0].ns - self._marker) < target:
            growth = min(MAX_GROWTH, max(2.0, MARGIN * target / max(elapsed, 1.0)))
            self._batches = ceil(self._batches * growth)
            if self._batches > MAX_BATCHES:
                raise CellFailed(f"{self._batches} batches take no time that can be measured")

    def take_sample(self) -> None:
        """One sample of the length found by `calibrate`.

        On a busy host a line may be read late: a late end in calibration makes the samples short, a late begin makes
        this one short. One much too short is taken again, with more batches.
        """
        sample, exits = self._run(self._batches)
        while (elapsed := sample.ns - self._marker) < self._settings.target * 1e9 / 2:
            self._discarded += 1
            if self._discarded > MAX_DISCARDED:
                raise CellFailed(f"the time of {self._batches} batches cannot be made out: now {elapsed:.0f} ns")
            self._batches *= 2
            sample, exits = self._run(self._batches)
        self.samples.append(elapsed / sample.ops)
        self._operations += sample.ops
        self._exits.update(exits)
        if not self.unfinished:
            self.contestant.prove_well()

    def fail(self, status: Status, reason: str, remedy: str = "") -> None:
        """Ends the cell without a figure."""
        self.failure = Result(self.technique, self.label, status, reason=reason, remedy=remedy)

    def result(self) -> Result | None:
        """The cell as it stands; None before its first sample."""
        if self.failure is not None or not self.samples:
            return self.failure
        middle = estimate(self.samples)
        return Result(
            self.technique,
            self.label,
            Status.OK,
            median=middle.median,
            mad=middle.mad,
            samples=tuple(self.samples),
            iterations=self._batches * self._ops_per_batch,
            marker=self._marker,
            checksum=self.checksum,
            exits=self._exits_per_operation(),
        )

    def _run(self, batches: int) -> tuple[protocol.Sample, Counter[str]]:
        """One command; what it answered and the exits it took."""
        session = self.contestant.session_for(self.workload)
        before = session.exits()
        sample = protocol.run(session, self.workload, batches, self._settings.deadline)
        exits = Counter(session.exits())
        exits.subtract(before)
        if batches:
            self._check(sample, batches)
        return sample, exits

    def _check(self, sample: protocol.Sample, batches: int) -> None:
        if self.checksum is None:
            self.checksum = sample.checksum
            self._ops_per_batch = sample.ops // batches
        if sample.checksum != self.checksum:
            raise CellFailed(f"the checksum changes from run to run: {self.checksum}, then {sample.checksum}")
        if sample.ops != batches * self._ops_per_batch:
            raise CellFailed(f"{sample.ops} operations in {batches} batches, where one batch has {self._ops_per_batch}")

    def _exits_per_operation(self) -> dict[str, float]:
        """Exits of the samples, less those of as many markers."""
        markers = len(self.samples)
        own = {reason: count - self._marker_exits.get(reason, 0) * markers for reason, count in self._exits.items()}
        return {
            reason: max(count, 0.0) / self._operations
            for reason, count in own.items()
            if count > 0 or reason == TOTAL  # no exits at all is worth saying
        }


def last_words(text: str) -> str:
    """The line of a console's text that says most: the one that speaks of a panic, or else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    panics = [line for line in lines if "panic" in line.lower()]
    chosen = panics[:1] or lines[-1:] or [""]
    return chosen[0][:MAX_WORDS]
