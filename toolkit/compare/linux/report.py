"""The tables for a terminal: work down, hardware across; a figure, how many times the baseline's, and the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from toolkit.compare import quantity
from toolkit.compare.linux.results import Row, find, rows_of, tables_of
from toolkit.compare.linux.works import BY_NAME, Figure, LinuxTable, Work
from toolkit.compare.report import STYLES, Notes, host_line, notes_lines, run_line
from toolkit.compare.report import concerned as cells_named
from toolkit.compare.results import Report, Result, Status
from toolkit.compare.statistics import Estimate, ratio

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

ACCELERATOR_NAMES = {"tcg": "under TCG: QEMU translates every instruction", "kvm": "under KVM"}


def title(table: LinuxTable, accelerator: str) -> str:
    """A table's heading."""
    return f"{table.title}, {ACCELERATOR_NAMES.get(accelerator, accelerator)}"


def shown(report: Report) -> list[tuple[LinuxTable, str, list[Row]]]:
    """The tables that have something to show: table, accelerator, rows. Those with only reasons are in the notes."""
    tables = []
    for name, accelerator in tables_of(report):
        rows = rows_of(report, name, accelerator)
        if any(row.status is not Status.UNSUPPORTED for row in rows):
            tables.append((BY_NAME[name], accelerator, rows))
    return tables


def concerned(results: Sequence[Result]) -> str:
    """Which cells, shortly: whole accelerators and tables by their names, others by hardware and work."""
    of: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if isinstance(result, Row):
            of.setdefault((result.accelerator, result.table), []).append(result)
    whole: dict[str, list[str]] = {}
    cells = []
    for (accelerator, table), found in of.items():
        known = BY_NAME[table]
        if len(found) == len(known.columns) * len(known.works):
            whole.setdefault(accelerator, []).append(table)
        else:
            cells.append(cells_named(found))
    return "; ".join([*(f"all of {', '.join(tables)} under {name}" for name, tables in whole.items()), *cells])


def figure(work: Work, row: Row) -> str:
    """The cell's figure as its work is said: 412 MiB/s, 2350 IOPS, 3.1 µs, 41.2 MiB."""
    assert row.median is not None
    value = row.median
    match work.figure:
        case Figure.SIZE:
            return quantity.size(value)
        case Figure.THROUGHPUT:
            return f"{quantity.size(work.amount * 1e9 / value)}/s"
        case Figure.RATE:
            return f"{quantity.digits(1e9 / value)} {work.rate}".replace(" /", "/")
    return quantity.time(value - work.intended) if value > work.intended else "0 ns"


def shown_estimate(work: Work, row: Row) -> Estimate | None:
    """What the figure is computed from: the time of an operation over what it is meant to take, or a size."""
    if row.median is None or row.mad is None:
        return None
    return Estimate(max(row.median - work.intended, 0.0), row.mad)


def compared(work: Work, row: Row, baseline: Row | None) -> Estimate | None:
    """How many times as fast as the baseline (as much memory as it, for sizes)."""
    own = shown_estimate(work, row)
    base = shown_estimate(work, baseline) if baseline is not None else None
    if own is None or base is None:
        return None
    return ratio(own, base) if work.figure is Figure.SIZE else ratio(base, own)


def details(work: Work, row: Row, baseline: Row | None) -> list[str]:
    """What stands under a figure: the ratio, and the time where the figure is none."""
    parts = []
    if baseline is not None and row is not baseline:
        times = compared(work, row, baseline)
        if times is not None:
            parts.append(quantity.times(times.median))
    if work.figure is Figure.RATE and row.median is not None:
        parts.append(quantity.time(row.median))
    return parts


def render(report: Report) -> Iterator[RenderableType]:
    """Everything that is printed."""
    from rich.text import Text

    notes = Notes(report, concerned)
    for table, accelerator, rows in shown(report):
        yield Text(title(table, accelerator), style="bold underline")
        yield _table(table, rows, notes)
    yield from notes_lines(notes)
    for line in footer(report):
        yield Text(line, style="dim")


def footer(report: Report) -> list[str]:
    """What a reader must know to believe the tables, a line each."""
    lines = [
        "×: as fast as the first column, of memory as much. Medians, ± median absolute deviation of the samples' times."
    ]
    return lines + [line for line in (host_line(report.host), run_line(report.run)) if line]


def _table(table: LinuxTable, rows: list[Row], notes: Notes) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    grid.add_column("work", max_width=34)
    for column in table.columns:
        grid.add_column(column, justify="right", no_wrap=True)
    for work in table.works:
        name = Text(work.name, style="bold").append(f"\n{work.operation}", style="dim not bold")
        baseline = find(rows, table.columns[0], work.name)
        grid.add_row(name, *(_cell(work, find(rows, column, work.name), baseline, notes) for column in table.columns))
    return grid


def _cell(work: Work, row: Row | None, baseline: Row | None, notes: Notes) -> Text:
    from rich.text import Text

    if row is None:
        return Text("not measured", style="dim")
    measured = shown_estimate(work, row)
    if measured is None:
        return Text(f"{row.status.value} [{notes.number(row)}]", style=STYLES[row.status])
    cell = Text(figure(work, row), style="bold")
    cell.append(f" {quantity.spread(measured.spread)}", style="dim not bold")
    more = details(work, row, baseline)
    if more:
        cell.append("\n" + " · ".join(more), style="not bold")
    return cell
