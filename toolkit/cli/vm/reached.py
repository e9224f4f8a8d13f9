"""`vtk vm console exec`: being in a machine."""

from __future__ import annotations

import sys
from typing import Any

import click

from toolkit.cli import ExitStatus
from toolkit.cli.vm.asked import SECONDS, find, json_option, name_argument, print_json


@click.command()
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

    machine = find(name)
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


@click.command("exec")
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

    machine = find(name)
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
        print_json({"name": name, "status": status, "stdout": stdout, "stderr": stderr})
    return status
