"""The order of a comparison of hardware: accelerator by accelerator, table by table, one thing measured at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.compare.cell import Settings
from toolkit.compare.linux import accelerators
from toolkit.compare.linux.guest import LinuxGuest, prepare
from toolkit.compare.linux.hardware import MACHINES
from toolkit.compare.linux.machine import MEMORY
from toolkit.compare.linux.results import Row
from toolkit.compare.linux.works import BY_NAME, TOGETHER, LinuxTable
from toolkit.compare.results import Result, Status
from toolkit.compare.techniques import Bench, Obstacle
from toolkit.host import Host
from toolkit.qemu.microvm import Accelerator

ON_ONE_MACHINE = ("disk", "net", "console", "clock")
LIFETIME = 6 * 3600.0  # seconds: the deadline of a machine, well past the longest comparison


@dataclass(frozen=True, slots=True)
class LinuxSettings:
    """How much is measured."""

    cell: Settings
    starts: int
    """How often each machine type is booted to time that."""


FULL = LinuxSettings(Settings(target=0.4, samples=9, markers=5, deadline=30.0, budget=20.0), starts=5)
QUICK = LinuxSettings(Settings(target=0.15, samples=5, markers=3, deadline=15.0, budget=4.0), starts=2)


class Steps:
    """Counts the steps done, for a progress bar."""

    def __init__(self, total: int, progress: Callable[[int, int, str], None]) -> None:
        self._total = total
        self._progress = progress
        self._done = 0

    def tell(self, what: str) -> None:
        """A step begins."""
        self._progress(min(self._done, self._total), self._total, what)
        self._done += 1

    def mention(self, what: str) -> None:
        """What goes on within a step."""
        self._progress(min(self._done, self._total), self._total, what)


def compare(
    tables: Sequence[str],
    settings: LinuxSettings,
    host: Host,
    rows: list[Result],
    progress: Callable[[int, int, str], None],
) -> None:
    """Measures `tables` into `rows`, which keeps what there is when this is interrupted.

    Raises VtkError where the guest cannot be made at all.
    """
    usable = []
    for accelerator in accelerators.ACCELERATORS:
        obstacle = accelerators.obstacle(accelerator, host)
        if obstacle is None:
            usable.append(accelerator)
        else:
            rows += (row for name in tables for row in _unsupported(BY_NAME[name], accelerator, obstacle))
    if not usable:
        return
    steps = Steps(sum(count_steps(tables, settings) for _ in usable), progress)
    with tempfile.TemporaryDirectory(prefix="vtk-compare-") as directory:
        made = prepare(Path(directory), steps.mention)
        for accelerator in usable:
            _measure(made, accelerator, tables, Path(directory), settings, rows, steps, host)


def _measure(
    guest: LinuxGuest,
    accelerator: Accelerator,
    tables: Sequence[str],
    directory: Path,
    settings: LinuxSettings,
    rows: list[Result],
    steps: Steps,
    host: Host,
) -> None:
    on_one = tuple(name for name in tables if name in ON_ONE_MACHINE)
    if on_one:
        from toolkit.compare.linux.devices import DeviceTables

        DeviceTables(guest, accelerator, on_one, directory, settings.cell, LIFETIME).run(rows, steps.tell)
    if "machine" in tables:
        from toolkit.compare.linux import starting

        bench = Bench(directory / "no-disk", MEMORY, LIFETIME)
        starting.measure(guest, accelerator, settings.cell, settings.starts, bench, rows, steps.tell)
    if "together" in tables:
        from toolkit.compare.linux import consolidation
        from toolkit.compare.linux.containers import Containers
        from toolkit.compare.linux.kinds import Machines, Processes

        kinds = (Processes(), Containers(host), Machines(guest, "microvm", accelerator, LIFETIME))
        consolidation.measure(kinds, accelerator.value, settings.cell, rows, steps.tell)


def count_steps(tables: Sequence[str], settings: LinuxSettings) -> int:
    """How many steps will be told under one accelerator."""
    rounds = settings.cell.samples + 1
    on_one = [BY_NAME[name] for name in tables if name in ON_ONE_MACHINE]
    steps = bool(on_one) + sum(len(table.works) * len(table.columns) * rounds for table in on_one)
    if "machine" in tables:
        steps += len(MACHINES) * (settings.starts + rounds * 2)
    if "together" in tables:
        steps += len(BY_NAME["together"].columns) * len(TOGETHER)
    return steps


def _unsupported(table: LinuxTable, accelerator: Accelerator, obstacle: Obstacle) -> list[Row]:
    return [
        Row(
            column,
            work.name,
            Status.UNSUPPORTED,
            reason=obstacle.reason,
            remedy=obstacle.remedy,
            table=table.name,
            accelerator=accelerator.value,
        )
        for work in table.works
        for column in table.columns
    ]
