"""`vtk vm console ssh exec ssh-config`: being in a machine."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from minivmm.errors import VtkError
from toolkit.cli import ExitStatus
from toolkit.cli.vm.asked import SECONDS, find, json_option, machines, name_argument, print_json

UNREACHABLE = 255  # ssh(1), EXIT STATUS: "255 if an error occurred"

user_option = click.option("--user", metavar="USER", help="Who to be there.  [default: the machine's]")
wait_option = click.option(
    "--wait", "wait_timeout", type=SECONDS, default=60.0, show_default=True, metavar="SECONDS", help="For the server."
)
timeout_option = click.option(
    "--timeout", type=SECONDS, metavar="SECONDS", help="For the command.  [default: for ever]"
)


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


@contextlib.contextmanager
def as_ssh() -> Iterator[None]:
    """A connection that fails ends with the status that ssh(1) has for it, which no other failure of vtk has."""
    from toolkit.vm.errors import Unfinished

    try:
        yield
    except Unfinished as error:
        click.echo(f"vtk: {error}", err=True)
        raise click.exceptions.Exit(UNREACHABLE) from error


def _shown(stream: Any) -> Callable[[bytes], None]:
    def write(data: bytes) -> None:
        stream.buffer.write(data)
        stream.buffer.flush()

    return write


def _input(wanted: bool) -> int | None:
    """The descriptor of standard input; None when it is not wanted, closed, or somebody else's terminal just now."""
    from toolkit import terminal

    try:
        os.fstat(0)
    except OSError:
        return None
    return 0 if wanted and (terminal.is_ours(0) or not os.isatty(0)) else None


SSH_EPILOG = """\b
Examples:
  vtk vm ssh web                   a shell; ~. at a line's beginning leaves it
  vtk vm ssh web -- 'dmesg | tail' the guest's shell reads it, as with ssh
  vtk vm ssh web -t -- top         a terminal for a command that draws

\b
Exit status: the command's; 255 when the machine is not reached, when a signal
ended the command, and after ~.
"""


@click.command(epilog=SSH_EPILOG)
@name_argument
@click.argument("command", nargs=-1, metavar="[-- COMMAND...]")
@click.option("--tty/--no-tty", "-t/-T", "tty", default=None, help="A terminal there.  [default: for a shell on one]")
@click.option("-n", "--no-stdin", is_flag=True, help="Leave standard input alone.")
@user_option
@wait_option
@timeout_option
def ssh(
    name: str,
    command: tuple[str, ...],
    tty: bool | None,
    no_stdin: bool,
    user: str | None,
    wait_timeout: float,
    timeout: float | None,
) -> int:
    """Log in to a machine.

    With COMMAND, run it: its words, joined by blanks, are read by the guest's
    shell. `exec` is for arguments that must arrive as they are.
    """
    from toolkit import terminal
    from toolkit.vm.ssh import attend, execute

    machine = find(name)
    words = " ".join(command)
    with as_ssh():
        if tty or (tty is None and not words and terminal.is_ours(0)):
            status = attend(machine, words, user=user, wait_timeout=wait_timeout, timeout=timeout)
            if terminal.is_ours(0):
                click.echo(f"vtk: left {name}", err=True)
            return status
        return execute(
            machine,
            words,
            stdout=_shown(sys.stdout),
            stderr=_shown(sys.stderr),
            stdin=_input(not no_stdin),
            user=user,
            wait_timeout=wait_timeout,
            timeout=timeout,
        )


EXEC_EPILOG = """\b
Examples:
  vtk vm exec web -- uname -a
  vtk vm exec web -- sh -c 'cat /etc/*release | sort'
  tar c src | vtk vm exec web -- tar x -C /srv
  vtk vm exec web --json -- id

\b
Exit status: the command's; 255 when the machine is not reached and when a
signal ended the command; 130 after Ctrl-C, which the command is told of.
"""


@click.command("exec", epilog=EXEC_EPILOG)
@name_argument
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND...")
@click.option("--tty", "-t", is_flag=True, help="Give it a terminal.")
@click.option("-n", "--no-stdin", is_flag=True, help="Leave standard input alone.")
@user_option
@wait_option
@timeout_option
@json_option
def execute(
    name: str,
    command: tuple[str, ...],
    tty: bool,
    no_stdin: bool,
    user: str | None,
    wait_timeout: float,
    timeout: float | None,
    as_json: bool,
) -> int:
    """Run a command in a machine over ssh, with its exit status.

    The arguments arrive as they are; for a shell's own syntax write
    `-- sh -c 'a | b'`. Standard input goes along as it comes.
    """
    import shlex

    from toolkit.vm.ssh import attend
    from toolkit.vm.ssh import execute as run

    if tty and as_json:
        raise click.UsageError("--tty is for people, --json for programs")
    machine = find(name)
    streams: tuple[list[bytes], list[bytes]] = ([], [])
    with as_ssh():
        if tty:
            return attend(machine, shlex.join(command), user=user, wait_timeout=wait_timeout, timeout=timeout)
        status = run(
            machine,
            shlex.join(command),
            stdout=streams[0].append if as_json else _shown(sys.stdout),
            stderr=streams[1].append if as_json else _shown(sys.stderr),
            stdin=_input(not no_stdin),
            user=user,
            wait_timeout=wait_timeout,
            timeout=timeout,
        )
    if as_json:
        stdout, stderr = (b"".join(stream).decode(errors="replace") for stream in streams)
        print_json({"name": name, "status": status, "stdout": stdout, "stderr": stderr})
    return status


CONFIG_EPILOG = """\b
Examples:
  vtk vm ssh-config >> ~/.ssh/config
  vtk vm ssh-config > ~/.ssh/vtk       with `Include vtk` in ~/.ssh/config
  ssh vtk-web; rsync -a src/ vtk-web:src/; ansible -i vtk-web, all -m ping
"""


@click.command("ssh-config", epilog=CONFIG_EPILOG)
@click.argument("name", metavar="[NAME]", required=False)
@json_option
def ssh_config(name: str | None, as_json: bool) -> None:
    """Print what makes ssh, scp, rsync and others know a machine as vtk-NAME.

    For all machines, or the one. Print it again when a machine's port changed.
    """
    from toolkit.vm.ssh_host_key import file_under_alias
    from toolkit.vm.ssh_settings import host_of

    hosts = []
    for machine_name in [name] if name else machines().names():
        try:
            machine = find(machine_name)
            hosts.append(host_of(machine))
            file_under_alias(machine)
        except VtkError as error:  # one that is damaged, or deleted meanwhile, does not hide the others
            if name:
                raise
            click.echo(f"vtk: {error}", err=True)
    if as_json:
        told = [
            {key: value if isinstance(value, int) else str(value) for key, value in host._asdict().items()}
            for host in hosts
        ]
        print_json({"hosts": told})
    else:
        click.echo("\n".join(host.block() for host in hosts), nl=False)
