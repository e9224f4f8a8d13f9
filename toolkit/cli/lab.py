"""`vtk lab`: the experiments, run with a verdict, and the pages that explain them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.building import announce_build
from toolkit.cli import ExitStatus

if TYPE_CHECKING:
    from toolkit.labs.run import Result

PLAIN_WIDTH = 150  # columns of what goes to a file or a pipe
# Where the pages are: beside the modules in an installed wheel, in docs/ of a checkout.
PAGES = (Path(__file__).parents[1] / "labs" / "pages", Path(__file__).parents[2] / "docs" / "labs")

EPILOG = """\b
Examples:
  vtk lab list                     the ideas there are
  vtk lab show direct-paging       claim, experiment, what to change and try
  vtk lab run direct-paging        see for yourself
  vtk lab run --all --json         for a script
"""
RUN_EPILOG = """\b
Examples:
  vtk lab run hypercalls interrupt-path
  vtk lab run --all --json

\b
Exit status: 0 every claim that could be tried here holds, 1 one fails, 2 wrong usage,
3 none could be tried here.
"""


def _complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from toolkit.labs.registry import labs

    return [name for name in labs() if name.startswith(incomplete)]


@click.group(epilog=EPILOG)
def lab() -> None:
    """Try the ideas of virtualization: a claim, an experiment, a verdict."""


@lab.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_labs(as_json: bool) -> None:
    """Show the labs there are."""
    from toolkit.labs.registry import labs

    table = labs()
    if as_json:
        import json

        entries = [
            {"name": entry.name, "idea": entry.idea} | {key.lower(): text for key, text in entry.sections.items()}
            for entry in table.values()
        ]
        click.echo(json.dumps({"schema": 1, "labs": entries}, indent=2))
        return
    width = max(map(len, table))
    for entry in table.values():
        click.echo(f"{entry.name:<{width}}  {entry.idea}")


@lab.command(epilog=RUN_EPILOG)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=_complete)
@click.option("--all", "every", is_flag=True, help="Every lab, in the order in which to read them.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def run(names: tuple[str, ...], every: bool, as_json: bool) -> int:
    """Carry out experiments, and say whether each claim holds."""
    from toolkit.labs.host import this_host
    from toolkit.labs.registry import labs
    from toolkit.labs.run import run as run_lab
    from toolkit.labs.run import to_json

    if bool(names) == every:
        raise click.UsageError("name the labs to run, or say --all. `vtk lab list` lists them")
    for name in names:
        _check_name(name)
    announce_build()
    host = this_host()
    results: list[Result] = []
    for name in labs() if every else dict.fromkeys(names):
        results.append(run_lab(labs()[name], host))
        if not as_json:
            _print(results[-1])
    if as_json:
        import json

        click.echo(json.dumps(to_json(results), indent=2))
    return _exit_status(results)


def _check_name(name: str) -> None:
    from toolkit.labs.registry import labs

    if name not in labs():
        raise click.UsageError(f"no lab is called {name!r}. There are: {', '.join(labs())}")


def _exit_status(results: list[Result]) -> int:
    statuses = {result.status.value for result in results}
    if "fails" in statuses:
        return ExitStatus.FAILED
    return ExitStatus.OK if "holds" in statuses else ExitStatus.HOST


def _print(result: Result) -> None:
    from rich.console import Console

    from toolkit.labs.report import render

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PLAIN_WIDTH
    for part in render(result):
        console.print(part)


@lab.command()
@click.argument("name", shell_complete=_complete)
def show(name: str) -> None:
    """Print a lab's page: the claim, the experiment, real output, what to change and try."""
    _check_name(name)
    for folder in PAGES:
        page = folder / f"{name}.md"
        if page.is_file():
            click.echo(page.read_text(encoding="utf-8"), nl=False)
            return
    raise click.ClickException(f"the page of {name} is not installed")
