"""`vtk vm list show wait logs`: what machines are doing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.vm.asked import (
    SECONDS,
    facts_of,
    find,
    json_option,
    machines,
    name_argument,
    print_columns,
    print_json,
)
from toolkit.telling import told_when_long

if TYPE_CHECKING:
    from toolkit.vm.machine import Machine


@click.command("list")
@click.option(
    "--uri", "uris", metavar="URI", multiple=True, help="A libvirt whose domains to show too; may be repeated."
)
@json_option
def list_machines(uris: tuple[str, ...], as_json: bool) -> None:
    """Show all machines and what each is doing.

    With --uri: the machines of these hosts as one list, also those that vtk
    did not make (`vtk vm import` makes them its own).
    """
    from toolkit.vm.machine import everyone

    if uris:
        from toolkit.cli.vm.hosts import list_hosts

        list_hosts(uris, as_json)
        return
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
    print_columns(rows)


@click.command()
@name_argument
@json_option
def show(name: str, as_json: bool) -> None:
    """Show one machine: what it is made of and what it is doing."""
    machine = find(name)
    facts = facts_of(machine, machine.status())
    facts["directory"] = str(machine.directory.path)
    if figures := _memory(machine):
        facts["memory_now"] = figures
    if guest := _guest_facts(machine):
        facts["guest"] = guest
    facts["last_lines"] = machine.last_lines(5)
    if as_json:
        print_json({"machine": facts})
        return
    for key, value in facts.items():
        if value and key not in ("last_lines", "memory_now", "guest"):
            click.echo(f"{key.replace('_', ' '):<12} {f'{value >> 20}M' if key == 'memory' else value}")
    for key, value in facts.get("memory_now", {}).items():
        click.echo(f"{key:<12} {value >> 20}M")
    for key, value in facts.get("guest", {}).items():
        click.echo(f"{key:<12} {', '.join(value) if isinstance(value, list) else value}")
    for line in facts["last_lines"]:
        click.echo(f"{'console':<12} {line}")


def _memory(machine: Machine) -> dict[str, int]:
    """Bytes: what the balloon leaves it, what its guest has free, and what its process holds of the host's."""
    from minivmm.errors import VtkError

    try:
        told = machine.figures()
    except VtkError:
        return {}
    found = {"balloon": told.balloon, "free": told.available, "resident": told.resident}
    return {key: value for key, value in found.items() if value is not None}


def _guest_facts(machine: Machine) -> dict[str, Any]:
    """What the guest itself says, by its agent; nothing where there is none."""
    from minivmm.errors import VtkError

    try:
        told = machine.guest_facts()
    except VtkError:
        return {}
    return {"os": told.os, "hostname": told.hostname, "addresses": list(told.addresses)}


@click.command()
@name_argument
@click.option(
    "--for",
    "goal",
    required=True,
    metavar="GOAL",
    help="running, stopped, ssh, agent (of the guest), or console:PATTERN (what it has shown).",
)
@click.option("--timeout", type=SECONDS, default=60.0, show_default=True, metavar="SECONDS", help="How long to wait.")
@json_option
def wait(name: str, goal: str, timeout: float, as_json: bool) -> None:
    """Wait for a machine: its state, its ssh server, its agent, or what its console shows."""
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
    from toolkit.vm import console_log

    machine = find(name)
    try:
        with (machine.directory / ("qemu.log" if qemu else "console.log")).open("rb") as file:
            console_log.seek(file, 0)
            content = file.read()
    except FileNotFoundError:
        content = b""
    if lines is not None:
        content = b"".join(content.splitlines(keepends=True)[-lines:] if lines else [])
    if not content and (where := _logged_elsewhere(machine)):
        click.echo(f"vtk: {name}: {where}", err=True)
    if as_json:
        print_json({"name": name, "text": content.decode(errors="replace")})
    else:
        sys.stdout.buffer.write(content)


def _logged_elsewhere(machine: Machine) -> str:
    """Why there is no log of the machine's here; "" when there could be."""
    from minivmm.errors import VtkError

    try:
        config = machine.config()
    except VtkError:
        return ""
    if config.provider != "libvirt":
        return ""
    from toolkit.libvirt.connection import host_of, is_local

    if config.imported:
        return "an imported machine's console is not logged by vtk; `vtk vm console` shows it live"
    return "" if is_local(config.uri) else f"its console is at {host_of(config.uri)}; `vtk vm console` shows it live"
