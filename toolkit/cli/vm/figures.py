"""`vtk vm top`: what machines are using."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from toolkit.cli.vm.asked import machines

if TYPE_CHECKING:
    from rich.table import Table

    from toolkit.vm.figures import Sample

HEADINGS = ("NAME", "STATE", "CPU", "MEMORY", "FREE", "HOST", "READ/s", "WRITE/s", "RECV/s", "SENT/s", "EXITS/s")
UNITS = ("", "K", "M", "G", "T", "P")


@click.command()
@click.option("--once", is_flag=True, help="One sample, and end.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Between samples, and what rates are taken over.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, one line a sample.")
def top(once: bool, interval: float, as_json: bool) -> None:
    """Show what all machines are using, until Ctrl-C.

    CPU: of the host, 100% is one CPU. MEMORY: what the balloon leaves, of what
    was given. FREE: as the guest says. HOST: memory of the host's that its
    process holds. A dash is what nobody tells.
    """
    import itertools

    from toolkit.vm.figures import samples

    found = itertools.islice(samples(machines(), interval), 1 if once else None)
    if as_json:
        _print_lines(found, interval)
    elif sys.stdout.isatty() and not once:
        from rich.live import Live

        with Live(auto_refresh=False, screen=False) as live:
            for sample in found:
                live.update(_table(sample), refresh=True)
    else:
        for sample in found:
            _print_rows(sample)


def _print_lines(found: object, interval: float) -> None:
    import json
    from collections.abc import Iterable
    from datetime import UTC, datetime

    assert isinstance(found, Iterable)
    for sample in found:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        content = {"schema": 1, "time": time, "interval": interval, "machines": [one.to_dict() for one in sample]}
        click.echo(json.dumps(content))


def _print_rows(sample: list[Sample]) -> None:
    rows = [HEADINGS, *map(_cells, sample)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _table(sample: list[Sample]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("NAME", "STATE") else "right", no_wrap=True)
    for one in sample:
        table.add_row(*_cells(one))
    return table


def _cells(one: Sample) -> tuple[str, ...]:
    figures, rates = one.figures, one.rates
    cpu, exits = rates["cpu"], rates["exits"]
    given = "-" if figures.memory is None else f"{_size(figures.balloon)}/{_size(figures.memory)}"
    return (
        one.name,
        one.status.state.value,
        "-" if cpu is None else f"{cpu:.0%}",
        given,
        _size(figures.available),
        _size(figures.resident),
        *(_size(rates[name]) for name in ("disk_read", "disk_written", "net_received", "net_sent")),
        "-" if exits is None else f"{exits:.0f}",
    )


def _size(amount: float | None) -> str:
    """Three digits and a unit of 1024."""
    if amount is None:
        return "-"
    for unit in UNITS:
        if amount < 1000 or unit == UNITS[-1]:
            break
        amount /= 1024
    return f"{amount:.0f}{unit}" if amount >= 10 or not unit else f"{amount:.1f}{unit}"
