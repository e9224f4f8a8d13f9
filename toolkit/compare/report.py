"""The tables for a terminal, readable in 100 columns: workloads down, techniques across."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from toolkit.compare import quantity
from toolkit.compare.results import TOTAL, Report, Result, Status
from toolkit.compare.statistics import ratio
from toolkit.compare.techniques import FAMILIES, REFERENCE
from toolkit.compare.workloads import other_name

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

MOST_SIDE_BY_SIDE = 4  # techniques whose cells fit 100 columns with ratio and exits in one line
MOST_IN_A_TABLE = 5  # techniques; with more of them there is a table for each family
LEAST_SHOWN = 0.005  # exits an operation
BUSY = 1.0  # load average before a comparison, above which something runs all the time
STYLES = {Status.OK: "", Status.UNSUPPORTED: "dim", Status.FAILED: "bold red"}


class Notes:
    """Reasons under the table, each numbered once however many cells it explains; `say` names those cells."""

    def __init__(self, report: Report, say: Callable[[Sequence[Result]], str] | None = None) -> None:
        self._say = say or concerned
        self._cells: dict[tuple[Status, str, str], list[Result]] = {}
        for result in report.results:
            if result.status is not Status.OK:
                self._cells.setdefault((result.status, result.reason, result.remedy), []).append(result)
        self._numbers = {key: number for number, key in enumerate(self._cells, 1)}

    def number(self, result: Result) -> int:
        """The note that explains this cell."""
        return self._numbers[result.status, result.reason, result.remedy]

    def __iter__(self) -> Iterator[tuple[int, Status, str, str, str]]:
        """Number, status, the cells concerned, reason, remedy."""
        for (status, reason, remedy), results in self._cells.items():
            yield self._numbers[status, reason, remedy], status, self._say(results), reason, remedy


def concerned(results: Iterable[Result]) -> str:
    """Which cells, shortly: by technique, and by workload where not every one is meant."""
    by_technique: dict[str, list[str]] = {}
    for result in results:
        by_technique.setdefault(result.technique, []).append(result.workload)
    return "; ".join(
        f"{technique} ({', '.join(names)})" if len(names) <= 6 else f"{technique} ({len(names)} workloads)"
        for technique, names in by_technique.items()
    )


def exits(result: Result) -> float | None:
    """Exits an operation, all reasons together; None where nobody counted."""
    return result.exits.get(TOTAL)


def reasons(result: Result) -> str:
    """Exits an operation by reason, a domain's hypercalls by name; empty where nothing is told apart."""
    shown = {name: count for name, count in result.exits.items() if count >= LEAST_SHOWN}
    if not shown.keys() - {TOTAL}:
        return ""
    return ", ".join(f"{name} {quantity.digits(count)}" for name, count in shown.items())


def explained(report: Report) -> list[Result]:
    """The cells whose exits can be told apart, a workload after the other."""
    cells = (report.find(technique, workload) for workload in report.workloads for technique in report.techniques)
    return [cell for cell in cells if cell is not None and reasons(cell)]


def details(result: Result, reference: Result | None) -> list[str]:
    """What stands below a cell's time: the ratio to the reference, exits an operation."""
    parts = []
    own = result.estimate
    base = reference.estimate if reference is not None else None
    if own is not None and base is not None and result is not reference:
        compared = ratio(own, base)
        if compared is not None:
            parts.append(quantity.times(compared.median))
    count = exits(result)
    if count is not None:
        parts.append(f"{quantity.digits(count)} exits" if count >= LEAST_SHOWN else "0 exits")
    return parts


def groups(report: Report) -> list[tuple[str, tuple[str, ...]]]:
    """The tables: what each is called, and its techniques, the reference first. One without a name if it holds all."""
    present = report.techniques
    if len(present) <= MOST_IN_A_TABLE:
        return [("", present)]
    title_of = {technique.name: family.title for family in FAMILIES for technique in family.techniques}
    grouped: dict[str, list[str]] = {}
    for technique in present:
        if technique != REFERENCE:
            grouped.setdefault(title_of.get(technique, "Others"), []).append(technique)
    first = (REFERENCE,) if REFERENCE in present else ()
    return [(title, (*first, *techniques)) for title, techniques in grouped.items()]


def table(report: Report, techniques: Sequence[str], notes: Notes, title: str = "") -> Table:
    """One table: `techniques` side by side. `notes` are those of the whole report."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    grid = Table(
        box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), title=title or None, title_justify="left", title_style="bold"
    )
    grid.add_column("workload", no_wrap=True)
    for technique in techniques:
        grid.add_column(technique, justify="right", no_wrap=True)
    between = " · " if len(techniques) <= MOST_SIDE_BY_SIDE else "\n"
    for workload in report.workloads:
        literature = other_name(workload)
        name = Text(workload, style="bold")
        if literature:
            name.append(f"\n{literature}", style="dim")
        reference = report.find(REFERENCE, workload)
        grid.add_row(name, *(_cell(report.find(t, workload), reference, notes, between) for t in techniques))
    return grid


def _cell(result: Result | None, reference: Result | None, notes: Notes, between: str) -> Text:
    from rich.text import Text

    if result is None:
        return Text("not measured", style="dim")
    measured = result.estimate
    if measured is None:
        apart = " " if between.strip() else "\n"
        return Text(f"{result.status.value}{apart}[{notes.number(result)}]", style=STYLES[result.status])
    cell = Text(quantity.time(measured.median), style="bold")
    cell.append(f" {quantity.spread(measured.spread)}", style="dim not bold")
    more = details(result, reference)
    if more:
        cell.append("\n" + between.join(more), style="not bold")
    return cell


def footer(report: Report) -> list[str]:
    """What a reader must know to believe the table, a line each."""
    lines = [f"{REFERENCE} = 1.00×. Time of one operation: median of the samples, ± median absolute deviation."]
    lines += [line for line in (host_line(report.host), run_line(report.run)) if line]
    return lines


def host_line(host: dict[str, object]) -> str:
    """The machine, in one line."""
    shapes = {"cpu": "{}", "cpus": "{} CPUs", "kernel": "{}", "kvm": "KVM: {}", "exit_cost": "{}", "qemu": "{}"}
    return " · ".join(shape.format(host[name]) for name, shape in shapes.items() if host.get(name))


def run_line(run: dict[str, object]) -> str:
    """The settings, in one line."""
    parts = []
    if run.get("samples"):
        parts.append(f"{run['samples']} samples of at least {run.get('target_ms', '?')} ms a cell")
    if isinstance(run.get("seconds"), (int, float)):
        parts.append(f"{quantity.seconds(float(str(run['seconds'])))} in all")
    load = run.get("load")
    if isinstance(load, float) and load > BUSY:
        parts.append(f"the host was busy with other work (load {load:g}): spreads are wide")
    if run.get("interrupted"):
        parts.append("interrupted: not all was measured")
    return " · ".join(parts)


def exits_table(report: Report) -> Table:
    """What `reasons` says, a line a cell."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in ("workload", "technique"):
        grid.add_column(name, no_wrap=True)
    grid.add_column("exits an operation, by reason")
    for result in explained(report):
        grid.add_row(Text(result.workload, style="bold"), Text(result.technique), Text(reasons(result)))
    return grid


def render(report: Report, *, by_reason: bool = False) -> Iterator[RenderableType]:
    """Everything that is printed; `by_reason`: also what the exits were."""
    from rich.text import Text

    notes = Notes(report)
    if report.results:
        for title, techniques in groups(report):
            yield table(report, techniques, notes, title)
    if by_reason:
        yield exits_table(report)
    yield from notes_lines(notes)
    for line in footer(report):
        yield Text(line, style="dim")


def notes_lines(notes: Notes) -> Iterator[Text]:
    """The notes as they are printed."""
    from rich.text import Text

    for number, status, cells, reason, remedy in notes:
        note = Text(f"[{number}] ", style=STYLES[status]).append(f"{status.value}: {cells}: ", style="not bold")
        note.append(reason, style="not bold")
        if remedy:
            note.append(f"\n    try: {remedy}", style="not bold not dim")
        yield note
