"""The table of machine types: how long each takes to boot, what it costs, and how its timers do."""

from __future__ import annotations

from collections.abc import Callable

from minivmm.errors import VtkError
from toolkit.compare.cell import Cell, Contestant, Settings
from toolkit.compare.linux.guest import LinuxGuest
from toolkit.compare.linux.kinds import Machines
from toolkit.compare.linux.results import BYTES, row
from toolkit.compare.linux.works import BY_NAME
from toolkit.compare.results import UNIT, Result, Status
from toolkit.compare.runner import take_turns
from toolkit.compare.session import Session
from toolkit.compare.statistics import estimate
from toolkit.compare.techniques import Bench, Obstacle
from toolkit.qemu.microvm import Accelerator

TABLE = BY_NAME["machine"]
TIMED_INSIDE = ("sleep", "timer")


def result_of(technique: str, workload: str, samples: list[float], unit: str = UNIT) -> Result:
    """A measured cell, from samples taken one by one."""
    middle = estimate(samples)
    return Result(
        technique,
        workload,
        Status.OK,
        unit=unit,
        median=middle.median,
        mad=middle.mad,
        samples=tuple(samples),
        iterations=1,
    )


def failure(technique: str, workload: str, error: VtkError) -> Result:
    """A cell that could not be measured."""
    reason = ": ".join(filter(None, (error.message, error.cause)))
    return Result(technique, workload, Status.FAILED, reason=reason, remedy=error.remedy)


class Booted:
    """A machine type as a Technique: booted once more whenever it is opened, and timed."""

    summary = "a Linux on one of QEMU's machine types"

    def __init__(self, kind: Machines) -> None:
        self.name = kind.name
        self._kind = kind
        self.boots: list[float] = []  # ns
        self.overheads: list[float] = []  # bytes

    def obstacle(self) -> Obstacle | None:
        """Looked for before there is any machine."""
        return None

    def open(self, bench: Bench) -> Session:  # noqa: ARG002
        """Boots it."""
        running = self._kind.boot()
        try:
            self.overheads.append(float(running.memory().own))
            self.boots.append(running.started)
        except BaseException:
            running.session.close()
            raise
        return running.session


def measure(
    guest: LinuxGuest,
    accelerator: Accelerator,
    settings: Settings,
    starts: int,
    bench: Bench,
    rows: list[Result],
    tell: Callable[[str], None],
) -> None:
    """Boots each type `starts` times in turn; the last time it stays, and its timers are measured."""
    booted = [Booted(Machines(guest, name, accelerator, bench.lifetime)) for name in TABLE.columns]
    contestants = [Contestant(technique, bench, settings.deadline) for technique in booted]
    failures: dict[str, VtkError] = {}
    try:
        try:
            _boot_in_turn(booted, contestants, starts, failures, tell)
        finally:
            _add_starts(booted, failures, accelerator, rows)
        for name in TIMED_INSIDE:
            cells = [Cell(contestant, name, settings) for contestant in contestants]
            for cell in cells:
                if (error_of := failures.get(cell.technique)) is not None:
                    cell.fail(Status.FAILED, failure(cell.technique, name, error_of).reason, error_of.remedy)
            try:
                take_turns(cells, settings.samples + 1, lambda cell: tell(f"{cell.label} on {cell.technique}"))
            finally:
                results = filter(None, (cell.result() for cell in cells))
                rows += (row(result, TABLE.name, accelerator.value) for result in results)
    finally:
        for contestant in contestants:
            contestant.close()


def _boot_in_turn(
    booted: list[Booted],
    contestants: list[Contestant],
    starts: int,
    failures: dict[str, VtkError],
    tell: Callable[[str], None],
) -> None:
    """Boots every type `starts` times and leaves the last machine of each; one that failed is not tried again."""
    for turn in range(starts):
        for technique, contestant in zip(booted, contestants, strict=True):
            tell(f"booting {technique.name}")
            if technique.name in failures:
                continue
            try:
                contestant.session_for("cpu")
            except VtkError as error:
                contestant.lose(error)
                failures[technique.name] = error
            if turn != starts - 1:
                contestant.close()


def _add_starts(
    booted: list[Booted], failures: dict[str, VtkError], accelerator: Accelerator, rows: list[Result]
) -> None:
    """The rows `boot` and `overhead`."""
    for technique in booted:
        for name, samples, unit in (("boot", technique.boots, UNIT), ("overhead", technique.overheads, BYTES)):
            if technique.name in failures:
                result = failure(technique.name, name, failures[technique.name])
            elif samples:
                result = result_of(technique.name, name, samples, unit)
            else:
                continue  # interrupted before its first boot
            rows.append(row(result, TABLE.name, accelerator.value))
