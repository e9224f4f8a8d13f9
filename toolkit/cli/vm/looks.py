"""`vtk vm list show wait logs`: what machines are doing."""

from __future__ import annotations

import sys

import click

from toolkit.cli.vm.asked import SECONDS, facts_of, find, json_option, machines, name_argument, print_json
from toolkit.telling import told_when_long


@click.command("list")
@json_option
def list_machines(as_json: bool) -> None:
    """Show all machines and what each is doing."""
    from toolkit.vm.machine import everyone

    found = everyone(machines())
    if as_json:
        print_json({"machines": [facts_of(machine, status) for machine, status in found]})
        return
    if not found:
        click.echo("no machines; `vtk vm create --help` shows how to make one", err=True)
        return
    rows: list[tuple[str, ...]] = [("NAME", "STATE", "PID", "CPUS", "MEMORY", "SSH", "IMAGE")]
    for machine, status in found:
        facts = facts_of(machine, status)
        memory = f"{facts['memory'] >> 20}M" if facts["memory"] else ""
        cells = (facts["state"], facts["pid"], facts["cpus"], memory, facts["ssh_port"], facts["image"])
        rows.append((machine.name, *(str(cell or "-") for cell in cells)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@click.command()
@name_argument
@json_option
def show(name: str, as_json: bool) -> None:
    """Show one machine: what it is made of and what it is doing."""
    machine = find(name)
    facts = facts_of(machine, machine.status())
    facts["directory"] = str(machine.directory.path)
    facts["last_lines"] = machine.last_lines(5)
    if as_json:
        print_json({"machine": facts})
        return
    for key, value in facts.items():
        if value and key != "last_lines":
            click.echo(f"{key.replace('_', ' '):<12} {f'{value >> 20}M' if key == 'memory' else value}")
    for line in facts["last_lines"]:
        click.echo(f"{'console':<12} {line}")


@click.command()
@name_argument
@click.option(
    "--for",
    "goal",
    required=True,
    metavar="GOAL",
    help="running, stopped, ssh, or console:PATTERN (what it has shown).",
)
@click.option("--timeout", type=SECONDS, default=60.0, show_default=True, metavar="SECONDS", help="How long to wait.")
@json_option
def wait(name: str, goal: str, timeout: float, as_json: bool) -> None:
    """Wait for a machine: its state, its ssh server, or what its console shows."""
    from toolkit.vm.waiting import wait as wait_for

    machine = find(name)
    with told_when_long(f"waiting up to {timeout:g} s for {name}: {goal}"):
        found = wait_for(machine, goal, timeout)
    if as_json:
        print_json({"name": name, "goal": goal, "found": found})


@click.command()
@name_argument
@click.option("-n", "--lines", metavar="N", type=click.IntRange(0), help="The last lines only.")
@click.option("--qemu", is_flag=True, help="What QEMU itself said, instead of the console.")
@json_option
def logs(name: str, lines: int | None, qemu: bool, as_json: bool) -> None:
    """Print what a machine's console has shown since its last start."""
    machine = find(name)
    try:
        content = (machine.directory / ("qemu.log" if qemu else "console.log")).read_bytes()
    except FileNotFoundError:
        content = b""
    if lines is not None:
        content = b"".join(content.splitlines(keepends=True)[-lines:] if lines else [])
    if as_json:
        print_json({"name": name, "text": content.decode(errors="replace")})
    else:
        sys.stdout.buffer.write(content)
