"""`vtk vm snapshot restore balloon migrate`: what is done to a machine while it runs."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from toolkit.cli.vm.asked import SECONDS, SIZE, facts_of, find, json_option, name_argument, print_json, tell
from toolkit.telling import told_when_long

if TYPE_CHECKING:
    from toolkit.vm.machine import Machine

PROGRESS_PERIOD = 0.5  # seconds between looks at a migration; QEMU answers one at a time
BALLOON_PERIOD = 0.25  # seconds between looks at a balloon


@click.command()
@name_argument
@click.argument("snapshot_name", metavar="[SNAPSHOT]", required=False)
@click.option("--list", "listing", is_flag=True, help="Show the machine's snapshots.")
@click.option("--delete", "deleted", metavar="SNAPSHOT", help="Delete one.")
@json_option
def snapshot(name: str, snapshot_name: str | None, listing: bool, deleted: str | None, as_json: bool) -> None:
    """Keep a machine as it is now, to go back to.

    Of a machine that is up its memory and CPUs are kept with the disk; it
    stands still meanwhile. Without a name: the time, as 20300131-235959.
    """
    if (snapshot_name is not None) + listing + (deleted is not None) > 1:
        raise click.UsageError("one of SNAPSHOT, --list and --delete")
    machine = find(name)
    if listing:
        _list_snapshots(machine, as_json)
        return
    if deleted is not None:
        with told_when_long(f"deleting snapshot {deleted} of {name}"):
            machine.delete_snapshot(deleted)
        _tell_snapshot(machine, f"deleted snapshot {deleted} of {name}", deleted, as_json)
        return
    snapshot_name = snapshot_name or time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    with told_when_long(f"keeping {name} as {snapshot_name}"):
        machine.snapshot(snapshot_name)
    _tell_snapshot(machine, f"kept {name} as {snapshot_name}", snapshot_name, as_json)


def _list_snapshots(machine: Machine, as_json: bool) -> None:
    found = machine.snapshots()
    if as_json:
        print_json({"name": machine.name, "snapshots": [asdict(one) for one in found]})
        return
    if not found:
        click.echo(f"{machine.name} has no snapshots; `vtk vm snapshot {machine.name}` makes one", err=True)
        return
    width = max(len("SNAPSHOT"), *(len(one.name) for one in found))
    click.echo(f"{'SNAPSHOT':<{width}}  {'CREATED':<25}  MEMORY")
    for one in found:
        memory = f"{one.size / (1 << 20):.0f}M" if one.memory else "-"
        click.echo(f"{one.name:<{width}}  {one.created:<25}  {memory}")


def _tell_snapshot(machine: Machine, done: str, snapshot_name: str, as_json: bool) -> None:
    if as_json:
        print_json({"machine": facts_of(machine, machine.status()), "snapshot": snapshot_name})
    else:
        click.echo(done, err=True)


@click.command()
@name_argument
@click.argument("snapshot_name", metavar="SNAPSHOT")
@json_option
def restore(name: str, snapshot_name: str, as_json: bool) -> None:
    """Go back to a snapshot; what has happened since is lost.

    To one with memory: the machine is up afterwards, as it was then.
    """
    machine = find(name)
    with told_when_long(f"going back to {snapshot_name}"):
        machine.restore(snapshot_name)
    tell(machine, f"restored {snapshot_name} of", as_json)


@click.command()
@name_argument
@click.argument("size", metavar="SIZE", type=SIZE)
@click.option("--wait", "waiting", is_flag=True, help="Until the guest has done it.")
@click.option("--timeout", type=SECONDS, default=60.0, show_default=True, metavar="SECONDS", help="How long to wait.")
@json_option
def balloon(name: str, size: int, waiting: bool, timeout: float, as_json: bool) -> None:
    """Ask a running guest to make do with SIZE of its memory.

    The rest goes back to the host; ask for all of it to give it back. A guest
    gives what it can spare: --wait tells what it has come to.
    """
    machine = find(name)
    machine.balloon(size)
    reached = machine.figures().balloon
    if waiting:
        with told_when_long(f"waiting up to {timeout:g} s for the guest's balloon"):
            reached = _wait_for_balloon(machine, size, timeout)
    if as_json:
        print_json({"name": name, "asked": size, "reached": reached})
    else:
        told = "" if reached is None else f", and has {reached >> 20}M now"
        click.echo(f"{name} was asked to make do with {size >> 20}M{told}", err=True)


def _wait_for_balloon(machine: Machine, size: int, timeout: float) -> int | None:
    """What the guest has come to. Raises Unfinished when it is not `size` at the deadline."""
    from toolkit.vm.errors import Unfinished

    deadline = time.monotonic() + timeout
    while (reached := machine.figures().balloon) != size:
        if reached is None or time.monotonic() >= deadline:
            now = "it does not tell what it has" if reached is None else f"it has {reached >> 20}M now"
            raise Unfinished(
                f"the guest in {machine.name!r} has not come to {size >> 20}M within {timeout:g} s",
                cause=f"{now}: it gives no more than it can spare, and nothing while it stands still",
                remedy=f"vtk vm balloon {machine.name} with another size, or more --timeout",
            )
        time.sleep(BALLOON_PERIOD)
    return reached


@click.command()
@name_argument
@click.option("--to", "destination", metavar="URI", default="", help="Where to.  [default: a new process of this host]")
@json_option
def migrate(name: str, destination: str, as_json: bool) -> None:
    """Move a machine to another process, while it runs.

    Without --to: to a new process of the QEMU that is installed now, which is
    how a machine comes to an upgraded one without being shut down. With --to a
    domain of libvirt's goes to the libvirt at that URI: another host's.
    """
    machine = find(name)
    with _progress(machine, hidden=as_json):
        moved = machine.migrate(destination)
    if as_json:
        print_json({"machine": facts_of(machine, machine.status()), "migration": asdict(moved)})
        return
    click.echo(
        f"moved {name}: {moved.transferred / (1 << 20):.1f} MiB in {moved.duration:.2f} s, "
        f"standing still for {moved.downtime * 1000:.0f} ms",
        err=True,
    )


@contextlib.contextmanager
def _progress(machine: Machine, *, hidden: bool) -> Iterator[None]:
    """How far it is: on a terminal a bar, elsewhere one line when it takes long."""
    if hidden or not sys.stderr.isatty():
        with told_when_long(f"moving {machine.name}"):
            yield
        return
    import threading

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from minivmm.errors import VtkError

    over = threading.Event()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(f"moving {machine.name}", total=None)

        def look() -> None:
            while not over.wait(PROGRESS_PERIOD):
                with contextlib.suppress(VtkError):  # it is between two processes
                    if (told := machine.migration_progress()) is None:
                        return
                    shown.update(task, completed=told[0], total=sum(told) or None)

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
