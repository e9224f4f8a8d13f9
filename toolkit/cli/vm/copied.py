"""`vtk vm cp`: files to and from machines."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import click

from toolkit.cli import ExitStatus
from toolkit.cli.vm.asked import json_option, machines, print_json
from toolkit.cli.vm.reached import as_ssh, user_option, wait_option

BAR_DELAY = 2.0  # seconds before a bar is shown
BAR_PERIOD = 0.1  # seconds between its moves: a block is copied in less than a bar is drawn

EPILOG = """\b
Examples:
  vtk vm cp notes.txt web:                     into the home there
  vtk vm cp -rp site web:/var/www              a tree, with modes and times
  vtk vm cp web:/var/log/syslog web:/etc/fstab .
  vtk vm cp -r web:/srv db:/srv                from machine to machine
  pg_dump x | vtk vm cp - db:dump.sql          `-` is standard input or output
  vtk vm cp ./a:b web:                         a file with a colon in its name

\b
Exit status: 0 all is copied, 1 something is not (it is named), 2 wrong usage,
255 a machine is not reached. A file gets its name when it is whole.
"""


@click.command(epilog=EPILOG)
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@click.argument("destination", metavar="DST")
@click.option("-r", "--recursive", is_flag=True, help="Directories with all that is in them; links as links.")
@click.option("-p", "--preserve", is_flag=True, help="Keep modes and modification times.")
@user_option
@wait_option
@json_option
def cp(
    sources: tuple[str, ...],
    destination: str,
    recursive: bool,
    preserve: bool,
    user: str | None,
    wait_timeout: float,
    as_json: bool,
) -> int:
    """Copy files to, from and between machines: NAME:PATH is a machine's.

    Into DST when it is a directory, else under the name DST.
    """
    from toolkit.vm.ssh_copy import STREAM, copy

    if as_json and destination == STREAM:
        raise click.UsageError("standard output is the file's, and --json has no place")
    with as_ssh(), _bar() as progress:
        copied = copy(
            machines(),
            sources,
            destination,
            recursive=recursive,
            preserve=preserve,
            user=user,
            wait_timeout=wait_timeout,
            progress=progress,
        )
    for failure in copied.failed:
        click.echo(f"vtk: {failure}", err=True)
    if as_json:
        print_json(
            {
                "files": copied.files,
                "directories": copied.directories,
                "links": copied.links,
                "bytes": copied.bytes,
                "seconds": round(copied.seconds, 3),
                "failed": copied.failed,
            }
        )
    return ExitStatus.FAILED if copied.failed else ExitStatus.OK


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal's standard error, once the copying has taken BAR_DELAY."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    shown = time.monotonic() + BAR_DELAY
    with contextlib.ExitStack() as held:
        move: Callable[[int, int], None] | None = None

        def progress(done: int, total: int) -> None:
            nonlocal move, shown
            now = time.monotonic()
            if now < shown:
                return
            shown = now + BAR_PERIOD
            move = move or _drawn(held)
            move(done, total)

        yield progress


def _drawn(held: contextlib.ExitStack) -> Callable[[int, int], None]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bar = held.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
    task = bar.add_task("copying", total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)
