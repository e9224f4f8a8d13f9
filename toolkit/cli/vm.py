"""`vtk vm`: machines that stay, by name. What each verb does is `toolkit.vm.machine`; here it is asked for and told."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import ExitStatus
from toolkit.cli.sizes import Size
from toolkit.telling import told_when_long

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from toolkit.vm.directory import Machines
    from toolkit.vm.machine import Machine
    from toolkit.vm.provider import Status

MAX_TIMEOUT = 1e7  # seconds
FILE = click.Path(path_type=Path)
SIZE = Size()
SECONDS = click.FloatRange(0, MAX_TIMEOUT, min_open=True)

EPILOG = """\b
Examples:
  vtk vm create web --image debian --mem 1G
  vtk vm create tiny --kernel vmlinuz --initrd initrd.cpio --append "console=ttyS0"
  vtk vm start web && vtk vm wait web --for ssh --timeout 120
  vtk vm exec web -- uname -a
  vtk vm console web               Ctrl-] then q leaves it
  vtk vm list --json
  vtk vm stop web || vtk vm kill web

\b
Exit status: 0 success, 1 what was waited for did not come, 2 wrong usage, name
or state, 3 the host cannot do it. `exec` gives its command's, 255 for one that
a signal ended.
"""


class VmGroup(click.Group):
    """Its verbs, in the order they are written in."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """In the order of definition."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """A wait in vain is a failure of the work, not of its command line."""
        from toolkit.vm.errors import Unfinished

        try:
            return super().invoke(ctx)
        except Unfinished as error:
            click.echo(f"vtk: {error}", err=True)
            return ExitStatus.FAILED


def _complete_name(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(name) for name in _machines().names() if name.startswith(incomplete)]


name_argument = click.argument("name", metavar="NAME", shell_complete=_complete_name)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group(cls=VmGroup, epilog=EPILOG)
def vm() -> None:
    """Virtual machines that stay: made, started and reached by name.

    Each is a QEMU process of yours; no root and no daemon are needed.
    """


@vm.command()
@click.argument("name", metavar="NAME")
@click.option("--image", metavar="IMAGE", default="", help="An image of `vtk image list`.")
@click.option(
    "--kernel", metavar="FILE", type=FILE, help="Boot this kernel: a bzImage, or an ELF file with a PVH note."
)
@click.option("--initrd", metavar="FILE", type=FILE, help="The kernel's initial RAM disk.")
@click.option("--append", metavar="TEXT", default="", help="For the kernel's command line.")
@click.option("--disk", metavar="FILE", type=FILE, help="A disk image; the machine writes to an overlay of its own.")
@click.option("--disk-size", metavar="SIZE", type=SIZE, help="The overlay's size.  [default: the image's]")
@click.option("--mem", "memory", metavar="SIZE", type=SIZE, default="512M", show_default=True, help="RAM.")
@click.option("--cpus", metavar="N", type=int, default=1, show_default=True, help="Virtual CPUs.")
@click.option(
    "--accel",
    "accelerator",
    type=click.Choice(["auto", "kvm", "tcg"]),
    default="auto",
    show_default=True,
    help="auto: KVM where it runs a whole operating system faster than emulation.",
)
@click.option("--user", metavar="USER", default="", help="Who ssh logs in as.  [default: the image's, else root]")
@json_option
def create(name: str, as_json: bool, **parts: Any) -> None:
    """Make a machine, stopped."""
    from toolkit.vm.machine import Machine
    from toolkit.vm.making import Parts
    from toolkit.vm.making import create as make

    machine = Machine(make(_machines(), name, Parts(**parts)))
    _tell(machine, "created", as_json)


@vm.command()
@name_argument
@click.option("--paused", is_flag=True, help="Let it stand before its first instruction; `resume` lets it go.")
@json_option
def start(name: str, paused: bool, as_json: bool) -> None:
    """Start a machine; it goes on when vtk has ended."""
    machine = _find(name)
    with told_when_long(f"starting {name}"):
        notes = machine.start(paused=paused)
    for note in notes:
        click.echo(f"vtk: {name}: {note}", err=True)
    _tell(machine, "started", as_json)


@vm.command()
@name_argument
@click.option("--timeout", type=SECONDS, default=60.0, show_default=True, metavar="SECONDS", help="How long to wait.")
@json_option
def stop(name: str, timeout: float, as_json: bool) -> None:
    """Press the power button, and wait until the guest has shut down."""
    machine = _find(name)
    with told_when_long(f"waiting up to {timeout:g} s for {name} to shut down"):
        machine.stop(timeout)
    _tell(machine, "stopped", as_json)


@vm.command()
@name_argument
@json_option
def kill(name: str, as_json: bool) -> None:
    """End a machine now, as by pulling its plug."""
    machine = _find(name)
    with told_when_long(f"ending {name}"):
        machine.kill()
    _tell(machine, "killed", as_json)


@vm.command()
@name_argument
@json_option
def pause(name: str, as_json: bool) -> None:
    """Let a machine's CPUs stand still."""
    machine = _find(name)
    machine.pause()
    _tell(machine, "paused", as_json)


@vm.command()
@name_argument
@json_option
def resume(name: str, as_json: bool) -> None:
    """Let a paused machine go on."""
    machine = _find(name)
    machine.resume()
    _tell(machine, "resumed", as_json)


@vm.command("list")
@json_option
def list_machines(as_json: bool) -> None:
    """Show all machines and what each is doing."""
    from toolkit.vm.machine import everyone

    found = everyone(_machines())
    if as_json:
        _print_json({"machines": [_facts(machine, status) for machine, status in found]})
        return
    if not found:
        click.echo("no machines; `vtk vm create --help` shows how to make one", err=True)
        return
    rows: list[tuple[str, ...]] = [("NAME", "STATE", "PID", "CPUS", "MEMORY", "SSH", "IMAGE")]
    for machine, status in found:
        facts = _facts(machine, status)
        memory = f"{facts['memory'] >> 20}M" if facts["memory"] else ""
        cells = (facts["state"], facts["pid"], facts["cpus"], memory, facts["ssh_port"], facts["image"])
        rows.append((machine.name, *(str(cell or "-") for cell in cells)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@vm.command()
@name_argument
@json_option
def show(name: str, as_json: bool) -> None:
    """Show one machine: what it is made of and what it is doing."""
    machine = _find(name)
    facts = _facts(machine, machine.status())
    facts["directory"] = str(machine.directory.path)
    facts["last_lines"] = machine.last_lines(5)
    if as_json:
        _print_json({"machine": facts})
        return
    for key, value in facts.items():
        if value and key != "last_lines":
            click.echo(f"{key.replace('_', ' '):<12} {f'{value >> 20}M' if key == 'memory' else value}")
    for line in facts["last_lines"]:
        click.echo(f"{'console':<12} {line}")


@vm.command()
@name_argument
@click.option("--until", metavar="PATTERN", help="Leave when the output matches this regular expression.")
@click.option("--timeout", type=SECONDS, metavar="SECONDS", help="Leave after this long.  [default: never]")
def console(name: str, until: str | None, timeout: float | None) -> int:
    """Be at a machine's serial console; Ctrl-] then q leaves it.

    Without a terminal, standard input goes to the guest and what it shows to
    standard output, until --until, --timeout or the machine's end.
    """
    from toolkit.vm import terminal_session
    from toolkit.vm.waiting import compiled

    machine = _find(name)
    pattern = compiled(until) if until else None
    with machine.console() as connection:
        left, shown = terminal_session.attend(
            connection,
            until=pattern,
            timeout=timeout,
            ready=lambda: click.echo(f"vtk: {name}; {terminal_session.BANNER}", err=True),
        )
    if shown and not shown.endswith(b"\n") and sys.stderr.isatty():
        click.echo(err=True)
    if left is terminal_session.Left.BROKEN_PIPE:
        return ExitStatus.BROKEN_PIPE
    if left is not terminal_session.Left.FOUND:
        click.echo(f"vtk: {name}: {left.value}", err=True)
    return ExitStatus.FAILED if pattern is not None and left is not terminal_session.Left.FOUND else ExitStatus.OK


@vm.command("exec")
@name_argument
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND...")
@click.option("--user", metavar="USER", help="Who to be there.  [default: the machine's]")
@click.option(
    "--wait", "wait_timeout", type=SECONDS, default=60.0, show_default=True, metavar="SECONDS", help="For the server."
)
@click.option("--timeout", type=SECONDS, metavar="SECONDS", help="For the command.  [default: for ever]")
@json_option
def execute(
    name: str, command: tuple[str, ...], user: str | None, wait_timeout: float, timeout: float | None, as_json: bool
) -> int:
    """Run a command in a machine over ssh, with its exit status.

    The arguments arrive as they are; for a shell's own syntax write
    `-- sh -c 'a | b'`. Standard input that is no terminal goes along.
    """
    import shlex

    from toolkit.vm.ssh import execute as run

    machine = _find(name)
    streams: tuple[list[bytes], list[bytes]] = ([], [])
    stdin = None if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()

    def shown(stream: Any) -> Any:
        def write(data: bytes) -> None:
            stream.buffer.write(data)
            stream.buffer.flush()

        return write

    status = run(
        machine,
        shlex.join(command),
        stdout=streams[0].append if as_json else shown(sys.stdout),
        stderr=streams[1].append if as_json else shown(sys.stderr),
        stdin=stdin,
        user=user,
        wait_timeout=wait_timeout,
        timeout=timeout,
    )
    if as_json:
        stdout, stderr = (b"".join(stream).decode(errors="replace") for stream in streams)
        _print_json({"name": name, "status": status, "stdout": stdout, "stderr": stderr})
    return status


@vm.command()
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

    machine = _find(name)
    with told_when_long(f"waiting up to {timeout:g} s for {name}: {goal}"):
        found = wait_for(machine, goal, timeout)
    if as_json:
        _print_json({"name": name, "goal": goal, "found": found})


@vm.command()
@name_argument
@click.option("-n", "--lines", metavar="N", type=click.IntRange(0), help="The last lines only.")
@click.option("--qemu", is_flag=True, help="What QEMU itself said, instead of the console.")
@json_option
def logs(name: str, lines: int | None, qemu: bool, as_json: bool) -> None:
    """Print what a machine's console has shown since its last start."""
    machine = _find(name)
    try:
        content = (machine.directory / ("qemu.log" if qemu else "console.log")).read_bytes()
    except FileNotFoundError:
        content = b""
    if lines is not None:
        content = b"".join(content.splitlines(keepends=True)[-lines:] if lines else [])
    if as_json:
        _print_json({"name": name, "text": content.decode(errors="replace")})
    else:
        sys.stdout.buffer.write(content)


@vm.command()
@name_argument
@click.option("--force", is_flag=True, help="Also when it runs, which ends it, and when it is damaged.")
@json_option
def delete(name: str, force: bool, as_json: bool) -> None:
    """Remove a machine and its disk; its image stays."""
    machine = _find(name)
    with told_when_long(f"deleting {name}"):
        machine.delete(_machines(), force=force)
    if as_json:
        _print_json({"name": name, "deleted": True})
    else:
        click.echo(f"deleted {name}", err=True)


def _machines() -> Machines:
    from toolkit.vm.directory import Machines

    return Machines()


def _find(name: str) -> Machine:
    from toolkit.vm.machine import find

    return find(_machines(), name)


def _facts(machine: Machine, status: Status) -> dict[str, Any]:
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


def _tell(machine: Machine, done: str, as_json: bool) -> None:
    """What was done: in a word for people, and the machine as it is now for programs."""
    if as_json:
        _print_json({"machine": _facts(machine, machine.status())})
    else:
        click.echo(f"{done} {machine.name}", err=True)


def _print_json(content: dict[str, Any]) -> None:
    import json

    click.echo(json.dumps({"schema": 1, **content}, indent=2))
