"""What the verbs of `vtk vm` are asked with, and how each tells what it did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.sizes import Size

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from toolkit.vm.directory import Machines
    from toolkit.vm.machine import Machine
    from toolkit.vm.provider import Status

MAX_TIMEOUT = 1e7  # seconds
SIZE = Size()
SECONDS = click.FloatRange(0, MAX_TIMEOUT, min_open=True)


def _complete_name(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(name) for name in machines().names() if name.startswith(incomplete)]


name_argument = click.argument("name", metavar="NAME", shell_complete=_complete_name)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def machines() -> Machines:
    """All of this user's."""
    from toolkit.vm.directory import Machines

    return Machines()


def find(name: str) -> Machine:
    """Raises ConfigError for a name that cannot be, MachineMissing."""
    from toolkit.vm import machine

    return machine.find(machines(), name)


def facts_of(machine: Machine, status: Status) -> dict[str, Any]:
    """What is told of a machine: its configuration where it can be read, and its state."""
    from minivmm.errors import VtkError
    from toolkit.vm.provider import MachineConfig

    try:
        config = machine.config()
    except VtkError:
        config = MachineConfig(machine.name, created="", memory=0, cpus=0)
    known = config.to_dict()
    del known["schema"]
    return {
        "name": known.pop("name"),
        "state": status.state.value,
        "pid": status.pid,
        "detail": status.detail,
        **known,
    }


def tell(machine: Machine, done: str, as_json: bool) -> None:
    """What was done: in a word for people, and the machine as it is now for programs."""
    if as_json:
        print_json({"machine": facts_of(machine, machine.status())})
    else:
        click.echo(f"{done} {machine.name}", err=True)


def print_columns(rows: list[tuple[str, ...]]) -> None:
    """A table, its first row the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_json(content: dict[str, Any]) -> None:
    """One object, of this schema."""
    import json

    click.echo(json.dumps({"schema": 1, **content}, indent=2))
