"""`vtk bench`: what minivmm itself costs, each figure against a peer measured in the same run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from minivmm.errors import ConfigError, HostError, VtkError
from toolkit.building import announce_build
from toolkit.cli import ExitStatus

if TYPE_CHECKING:
    from benchmarks import Figure

EPILOG = """\b
Examples:
  vtk bench                        everything but the slow ones
  vtk bench exit-loop first-byte   these two
  vtk bench life-cycle --cycles 500
  vtk bench --json - --check       for a script: exit status 1 when a bound is missed

\b
Figures are medians, ± their median absolute deviation; a ratio compares two things
measured in one run. On a busy machine believe the ratios, not the values.
"""


def _complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    try:
        from benchmarks import BENCHMARKS
    except ModuleNotFoundError:
        return []
    return [name for name in BENCHMARKS if name.startswith(incomplete)]


@click.command(epilog=EPILOG)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=_complete)
@click.option("--list", "list_only", is_flag=True, help="List the benchmarks and what each answers.")
@click.option(
    "--rounds", default=9, show_default=True, type=click.IntRange(1, 1000), help="Measurements of each thing."
)
@click.option(
    "--cycles", default=10_000, show_default=True, type=click.IntRange(1), help="Machines that `life-cycle` makes."
)
@click.option("--json", "json_file", metavar="FILE", help="Also write the figures as JSON ('-': standard output only).")
@click.option("--check", is_flag=True, help="Exit with status 1 when a bound is missed.")
def bench(names: tuple[str, ...], list_only: bool, rounds: int, cycles: int, json_file: str | None, check: bool) -> int:
    """Measure minivmm against C and against QEMU."""
    try:
        from benchmarks import BENCHMARKS, Effort, run
    except ModuleNotFoundError:
        raise ConfigError(
            "the benchmarks are not installed", cause="they come with the source checkout", remedy="make bench"
        ) from None
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise click.UsageError(f"no such benchmark: {', '.join(unknown)}. There are: {', '.join(BENCHMARKS)}")
    if list_only:
        for name, benchmark in BENCHMARKS.items():
            slow = " (minutes: only when named)" if benchmark.slow else ""
            click.echo(f"{name:<12}{benchmark.question}{slow}")
        return ExitStatus.OK
    if json_file not in (None, "-"):
        _require_writable(Path(str(json_file)))
    announce_build()
    figures: list[Figure] = []
    status = ExitStatus.OK
    for name in names or [name for name, benchmark in BENCHMARKS.items() if not benchmark.slow]:
        click.echo(f"{name}: {BENCHMARKS[name].question}", err=True)
        start = time.monotonic()
        try:
            figures.extend(run(name, Effort(rounds, cycles)))
        except VtkError as error:
            click.echo(f"vtk: {name}: {error}", err=True)
            status = ExitStatus.HOST if isinstance(error, HostError) else ExitStatus.FAILED
        click.echo(f"{name}: {time.monotonic() - start:.1f} s", err=True)
    document = json.dumps({"schema": 1, "figures": [figure.to_json() for figure in figures]}, indent=2)
    if json_file == "-":
        click.echo(document)
    else:
        _print(figures)
        if json_file:
            Path(json_file).write_text(document + "\n", encoding="utf-8")
    if check and any(figure.met is False for figure in figures):
        return ExitStatus.FAILED
    return status


def _require_writable(path: Path) -> None:
    """Finds out before minutes of measuring, not after. Raises ConfigError."""
    try:
        path.open("a").close()
    except OSError as error:
        raise ConfigError(f"{path} cannot be written", cause=error.strerror or str(error)) from error


def _print(figures: list[Figure]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("what")
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("against")
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("promised")
    table.add_column("", no_wrap=True)
    marks = {True: ("met", "green"), False: ("missed", "red"), None: ("", "")}
    for figure in figures:
        peer = f"{figure.peer}: {_quantity(figure.peer_value, figure.peer_mad, figure.unit)}" if figure.peer else ""
        table.add_row(
            f"{figure.name} ({figure.note})" if figure.note else figure.name,
            _quantity(figure.value, figure.mad, figure.unit),
            peer,
            "" if figure.ratio is None else f"{figure.ratio:.2f}",
            figure.bound,
            Text(*marks[figure.met]),
        )
    Console(highlight=False).print(table)


def _quantity(value: float | None, mad: float, unit: str) -> str:
    if value is None:
        return "-"
    spread = f" ±{mad / value:.0%}" if mad and value else ""
    number = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"
    return f"{number} {unit}{spread}".strip()
