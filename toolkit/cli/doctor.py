"""`vtk doctor`: what this host can do, and the command that mends what it cannot."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from toolkit.cli import ExitStatus
from toolkit.host import REQUIRABLE, Fact, Host, State, gather

if TYPE_CHECKING:
    from rich.console import Console

MARKS = {State.OK: ("✔", "green"), State.WARN: ("▲", "yellow"), State.MISSING: ("✘", "red")}
NAME_WIDTH = 18  # of the second column
SCHEMA = 1

NAMES = "\n".join(f"  {name:<14}{meaning}" for name, meaning in REQUIRABLE.items())


@click.command(
    epilog=f"\b\nNames for --require:\n{NAMES}\n\n\b\nExit status: 0, or 4 when something required is missing."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object (docs/cli.md).")
@click.option(
    "--require",
    "required",
    metavar="NAME",
    multiple=True,
    type=click.Choice(list(REQUIRABLE)),
    help="Exit with status 4 unless NAME works here. May be given again.",
)
def doctor(as_json: bool, required: tuple[str, ...]) -> int:
    """Show what this host can do, and how to mend what it cannot."""
    host = gather()
    lacking = [name for name in dict.fromkeys(required) if not _works(host, name)]
    if as_json:
        import json

        facts = [asdict(fact) | {"state": fact.state.value} for fact in host.facts]
        report = {"schema": SCHEMA, "summary": host.summary(), "facts": facts}
        click.echo(json.dumps(report | {"required": list(required), "missing": lacking}, indent=2))
    else:
        _print(host)
    for name in lacking:
        fact = host[name]
        click.echo(f"vtk: required and missing: {name} ({fact.value})", err=True)
        for label, text in (("cause", fact.cause), ("try", fact.remedy)):
            if text:
                click.echo(f"  {label + ':':<7}{text}", err=True)
    return ExitStatus.REQUIRED_MISSING if lacking else ExitStatus.OK


def _works(host: Host, name: str) -> bool:
    """A requirement is met by nothing less than ok: `warn` means that what was asked for is not all there."""
    return host[name].state is State.OK


def _print(host: Host) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    group = ""
    for fact in host.facts:
        if fact.group != group:
            group = fact.group
            console.print(Text(group, style="bold"))
        mark, colour = MARKS[fact.state]
        console.print(
            Text.assemble((f"  {mark} {fact.state.value:<8}", colour), f"{fact.name:<{NAME_WIDTH}}", fact.value)
        )
    _print_remedies(console, [fact for fact in host.facts if fact.state is not State.OK])


def _print_remedies(console: Console, problems: list[Fact]) -> None:
    """Each command once, with all it mends: one package often brings several things."""
    from rich.text import Text

    if not problems:
        return
    console.print(Text("\nwhat is missing, why, and what mends it", style="bold"))
    mended: dict[tuple[str, str], list[str]] = {}
    for fact in problems:
        mended.setdefault((fact.cause, fact.remedy), []).append(fact.name)
    for (cause, remedy), names in mended.items():
        console.print(Text(f"  {', '.join(names)}: {cause}"))
        if remedy:
            console.print(Text(f"      {remedy}", style="cyan"))
