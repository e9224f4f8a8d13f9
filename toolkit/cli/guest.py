"""`vtk guest`: our guests, listed and built."""

from __future__ import annotations

import click

from toolkit.building import announce_build
from toolkit.cli import ExitStatus


@click.group()
def guest() -> None:
    """List and build our guests."""


@guest.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_guests(as_json: bool) -> None:
    """Show the guests there are."""
    from guest_os import guests

    table = guests()
    if as_json:
        import json

        entries = [{"name": entry.name, "description": entry.description} for entry in table.values()]
        click.echo(json.dumps({"schema": 1, "guests": entries}, indent=2))
        return
    width = max(map(len, table), default=0)
    for entry in table.values():
        click.echo(f"{entry.name:<{width}}  {entry.description}")


@guest.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--compiler", type=click.Choice(["zig", "gcc"]), default="zig", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def build(names: tuple[str, ...], compiler: str, as_json: bool) -> int:
    """Build the guests named, or all of them and the programs of vtk compare. Prints where each one is."""
    from guest_os.build import BuildError
    from guest_os.build import build as build_guests

    if compiler == "zig":
        announce_build()
    try:
        built = build_guests(names or None, compiler)
    except BuildError as error:
        click.echo(f"vtk: {error}", err=True)
        return ExitStatus.FAILED
    if as_json:
        import json

        click.echo(json.dumps({"schema": 1, "compiler": compiler, "built": {k: str(v) for k, v in built.items()}}))
        return ExitStatus.OK
    for name, path in built.items():
        click.echo(f"{name}\t{path}")
    return ExitStatus.OK
