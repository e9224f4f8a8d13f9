"""The table of consolidation: one, two, four at once, as processes, containers and machines, doing the same work.

What each does in its time, and what all do together: on a host with two CPUs four cannot each have one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from math import ceil

from minivmm.errors import VtkError
from toolkit.compare import protocol
from toolkit.compare.cell import MARGIN, MAX_GROWTH, CellFailed, Settings
from toolkit.compare.linux.kinds import Kind, Running
from toolkit.compare.linux.results import BYTES, row
from toolkit.compare.linux.starting import failure, result_of
from toolkit.compare.linux.works import BY_NAME, TOGETHER, together
from toolkit.compare.results import UNIT, Result, Status
from toolkit.compare.techniques import Obstacle

TABLE = BY_NAME["together"]
WORKLOAD = "cpu"


class Gang:
    """Some of one kind that run at the same time. Closes what it opened, whatever happens."""

    def __init__(self, kind: Kind, count: int, deadline: float) -> None:
        self._deadline = deadline
        self.members: list[Running] = []
        try:
            for _ in range(count):
                self.members.append(kind.open())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Gang:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends them all."""
        for member in self.members:
            member.session.close()
        self.members.clear()

    def batches_for(self, target: float) -> int:
        """How many batches take one of them `target` seconds, alone."""
        batches = 1
        session = self.members[0].session
        while (ns := protocol.run(session, WORKLOAD, batches, self._deadline).ns) < target * 1e9:
            batches = ceil(batches * min(MAX_GROWTH, max(2.0, MARGIN * target * 1e9 / max(ns, 1))))
        return batches

    def work(self, batches: int) -> tuple[list[protocol.Sample], float]:
        """All of them do `batches` at once: what each saw, and how long it took until the last was done, in ns.

        A thread each waits for its lines, so that they are stamped as they come.
        """
        with ThreadPoolExecutor(len(self.members)) as pool:
            began = time.monotonic_ns()
            runs = [
                pool.submit(protocol.run, member.session, WORKLOAD, batches, self._deadline) for member in self.members
            ]
            try:
                samples = [run.result() for run in runs]
            except BaseException:
                self.close()  # nobody waits any longer: not the threads either, which the pool would wait for
                raise
            return samples, float(time.monotonic_ns() - began)


class Column:
    """One kind, run one, two and four at once; what it takes to start one and to keep it comes from the same runs."""

    def __init__(self, kind: Kind, settings: Settings) -> None:
        self.kind = kind
        self._settings = settings
        self.results: list[Result] = []
        self.checksum: str | None = None
        self._starts: list[float] = []

    def run(self, count: int) -> None:
        """The rows of `count` at once."""
        each: list[float] = []
        whole: list[float] = []
        with Gang(self.kind, count, self._settings.deadline * count) as gang:
            self._starts += (member.started for member in gang.members)
            if count == 1:
                self._weigh(gang.members[0])
            batches = gang.batches_for(self._settings.target)
            for _ in range(self._settings.samples):
                samples, ns = gang.work(batches)
                self._check(samples)
                each.append(sum(sample.ns / sample.ops for sample in samples) / count)
                whole.append(ns / sum(sample.ops for sample in samples))
        self._add(f"cpu-{count}", each, iterations=batches)
        if count > 1:
            self._add(f"cpu-{count}-all", whole, iterations=batches * count)

    def tell_starts(self) -> None:
        """The row `start`, from every one that was started."""
        if not self._starts:
            raise CellFailed("none of them started")
        self._add("start", self._starts)

    def _weigh(self, member: Running) -> None:
        """The rows `memory` and `guest-ram`, of one alone before it has done anything."""
        try:
            own, guest = member.memory()
        except VtkError as error:
            self.results += (failure(self.kind.name, name, error) for name in ("memory", "guest-ram"))
            return
        self._add("memory", [float(own)], BYTES)
        if guest:
            self._add("guest-ram", [float(guest)], BYTES)
        else:
            reason = "it has no RAM of its own: it uses the host's memory as it needs it"
            self.results.append(Result(self.kind.name, "guest-ram", Status.UNSUPPORTED, reason=reason))

    def _check(self, samples: Sequence[protocol.Sample]) -> None:
        for sample in samples:
            self.checksum = self.checksum or sample.checksum
            if sample.checksum != self.checksum:
                raise CellFailed(f"wrong checksum: {sample.checksum}, where the first computed {self.checksum}")

    def _add(self, workload: str, samples: list[float], unit: str = UNIT, iterations: int = 1) -> None:
        result = result_of(self.kind.name, workload, samples, unit)
        self.results.append(replace(result, iterations=iterations))


def measure(
    kinds: Sequence[Kind],
    accelerator: str,
    settings: Settings,
    rows: list[Result],
    tell: Callable[[str], None],
) -> None:
    """Measures one kind after the other: nothing else may run beside those that run at once."""
    with contextlib.ExitStack() as closing:
        expected: str | None = None
        for kind in kinds:
            closing.callback(kind.close)
            column = Column(kind, settings)
            try:
                _measure_column(column, tell)
            finally:
                expected = expected or column.checksum
                if expected is not None and column.checksum not in (None, expected):
                    column.results = _wrong(column, expected)
                rows += (row(result, TABLE.name, accelerator) for result in column.results)


def _measure_column(column: Column, tell: Callable[[str], None]) -> None:
    kind = column.kind
    obstacle = kind.obstacle()
    steps = [
        (f"{count} at once", tuple(work.name for work in together(count)), partial(column.run, count))
        for count in TOGETHER
    ]
    what, names, step = steps[0]
    steps[0] = (what, ("memory", "guest-ram", *names), step)
    for what, names, step in steps:
        tell(f"{kind.name}: {what}")
        _attempt(column, names, step, obstacle)
    _attempt(column, ("start",), column.tell_starts, obstacle)


def _attempt(column: Column, names: Sequence[str], step: Callable[[], None], obstacle: Obstacle | None) -> None:
    """One step of the measurement; what goes wrong in it becomes the failure of those of its rows it did not reach."""
    name = column.kind.name
    if obstacle is not None:
        column.results += (
            Result(name, work, Status.UNSUPPORTED, reason=obstacle.reason, remedy=obstacle.remedy) for work in names
        )
        return
    try:
        step()
    except VtkError as error:
        done = {result.workload for result in column.results}
        column.results += (failure(name, work, error) for work in names if work not in done)


def _wrong(column: Column, expected: str) -> list[Result]:
    """The column's results when it computed something else than the first kind did."""
    reason = f"wrong checksum: {column.checksum}, where the first column computed {expected}"
    return [
        Result(result.technique, result.workload, Status.FAILED, reason=reason)
        if result.status is Status.OK and result.workload.startswith(WORKLOAD)
        else result
        for result in column.results
    ]
