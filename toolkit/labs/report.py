"""A lab's result for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from toolkit.labs.run import Result, Status
from toolkit.labs.verdict import Table

_STYLES = {Status.HOLDS: "green", Status.FAILS: "red", Status.UNSUPPORTED: "yellow"}


def render(result: Result) -> Iterator[RenderableType]:
    """Title, observations, statements, verdict."""
    yield Text.assemble((result.lab.name, "bold"), f": {result.lab.idea}")
    for table in result.verdict.tables:
        yield Padding(_table(table), (1, 0, 0, 2), expand=False)
    if result.verdict.checks:
        yield Padding(_checks(result), (1, 0, 0, 2), expand=False)
    for note in result.verdict.notes:
        yield Padding(Text(note), (0, 0, 0, 2), expand=False)
    style = _STYLES[result.status]
    if result.reason:
        yield Text.assemble("  verdict: ", (result.status.value, style), f": {result.reason}")
    else:
        yield Text.assemble("  verdict: ", (f"the claim {result.status.value}", style))
    if result.remedy:
        yield Text(f"  try:     {result.remedy}")
    yield Text()


def _table(table: Table) -> RenderableType:
    shown = RichTable(
        box=None,
        padding=(0, 2, 0, 0),
        header_style="bold",
        title=Text(table.title, style="italic"),
        title_justify="left",
    )
    for column in table.columns:
        shown.add_column(column)
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row))
    return shown


def _checks(result: Result) -> RenderableType:
    shown = RichTable(box=None, padding=(0, 2, 0, 0), show_header=False)
    for check in result.verdict.checks:
        mark = Text("holds", style="green") if check.holds else Text("FAILS", style="red")
        shown.add_row(mark, Text(check.statement), Text(check.seen, style="dim"))
    return shown
