"""`vtk image`: the kernels and disks that machines are made from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from toolkit.cli import ExitStatus
from toolkit.cli.sizes import Size

if TYPE_CHECKING:
    from toolkit.images.store import Image

EXAMPLES = """\b
Examples:
  vtk image build tiny                          kernel and busybox: seconds
  vtk image build tiny --name disks --module nvme --module ahci
  vtk image build debian --size 4G --package curl
  vtk image pull https://example.org/debian-12.qcow2 --sha256 0123…
  vtk image list --json
  vtk image delete tiny

\b
Exit status: 0 success, 2 a name, option or file that cannot be used, 3 the host
cannot do it (a program is missing, no network, disk full), 130 interrupted.
"""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
replace_option = click.option("--replace", is_flag=True, help="Make it anew, in the place of the one there.")


@click.group(epilog=EXAMPLES)
def image() -> None:
    """Build, list, inspect and delete images: the kernels and disks that machines are made from."""


@image.group(epilog=EXAMPLES)
def build() -> None:
    """Make an image from Debian's packages. One that is there, made from the same, is returned as it is."""


@build.command()
@click.option("--name", default="tiny", show_default=True, help="Name of the image.")
@click.option("--module", "modules", metavar="M", multiple=True, help="Kernel module to load, beside virtio's; repeat.")
@click.option("--flavour", type=click.Choice(["cloud-amd64", "amd64"]), default="cloud-amd64", show_default=True)
@replace_option
@json_option
def tiny(name: str, modules: tuple[str, ...], flavour: str, replace: bool, as_json: bool) -> int:
    """A Debian kernel and busybox in memory; seconds.

    Needs Debian's apt, as any user. With vtk.run="COMMAND" on the kernel command line it runs COMMAND and ends;
    without, there is a shell on the console. vtk.end=reboot ends by a reset in place of a power-off.
    """
    from toolkit.images import tiny as recipe
    from toolkit.images.store import ImageStore

    with _steps() as tell:
        made = recipe.build(ImageStore(), name, modules=modules, flavour=flavour, replace=replace, progress=tell)
    return _show(made, as_json)


@build.command()
@click.option("--name", default="debian", show_default=True, help="Name of the image.")
@click.option("--suite", default="bookworm", show_default=True, help="Debian's release.")
@click.option("--size", type=Size(), default="2G", show_default=True, help="Size of the disk; it is sparse.")
@click.option("--package", "packages", metavar="P", multiple=True, help="Package to install in it as well; repeat.")
@replace_option
@json_option
def debian(name: str, suite: str, size: int, packages: tuple[str, ...], replace: bool, as_json: bool) -> int:
    """A minimal Debian with ssh, python3, cloud-init and a serial console; one to five minutes.

    Needs Debian's apt, 2 GB of room, and the packages mmdebstrap, e2fsprogs and qemu-utils. A user who is not root
    needs one thing more: the package uidmap and an entry of theirs in /etc/subuid and /etc/subgid (useradd makes
    them), or the packages fakechroot and fakeroot.
    """
    from toolkit.images import debian as recipe
    from toolkit.images.store import ImageStore

    with _steps() as tell:
        made = recipe.build(
            ImageStore(), name, suite=suite, size=size, packages=packages, replace=replace, progress=tell
        )
    return _show(made, as_json)


@image.command(epilog=EXAMPLES)
@click.argument("url")
@click.option("--sha256", required=True, help="What the file's SHA-256 must be.")
@click.option("--name", help="Name of the image; the file's name without its suffix when not given.")
@click.option("--user", default="debian", show_default=True, help="The user its cloud-init makes.")
@replace_option
@json_option
def pull(url: str, sha256: str, name: str | None, user: str, replace: bool, as_json: bool) -> int:
    """Download a cloud image; an interrupted download goes on where it was. Needs the package qemu-utils."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from toolkit.images.cloud import pull as pull_image
    from toolkit.images.store import ImageStore

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("downloading", total=None)
        made = pull_image(
            ImageStore(),
            url,
            sha256,
            name,
            user=user,
            replace=replace,
            progress=lambda there, total: bar.update(task, completed=there, total=total),
            waiting=lambda text: click.echo(text, err=True),
        )
    return _show(made, as_json)


@image.command("list")
@json_option
def list_images(as_json: bool) -> int:
    """Show the images there are."""
    from toolkit.images.store import ImageStore

    store = ImageStore()
    images, broken = store.list(), store.unreadable()
    if as_json:
        import json

        entries = [entry.to_json() | {"machines": store.users(entry.name)} for entry in images]
        click.echo(json.dumps({"schema": 1, "images": entries, "unreadable": broken}, indent=2))
        return ExitStatus.OK
    if not images and not broken:
        click.echo("no images; make one: vtk image build tiny", err=True)
    rows = [(entry.name, entry.kind, f"{entry.size / (1 << 20):.0f} MiB", entry.created) for entry in images]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    for row in rows:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    for name, reason in broken.items():
        click.echo(f"{name}: cannot be used: {reason} (try: vtk image delete {name})", err=True)
    return ExitStatus.OK


@image.command()
@click.argument("name")
@json_option
def inspect(name: str, as_json: bool) -> int:
    """Show what an image is made from, where its files are, and which machines are on it."""
    from toolkit.images.store import ImageStore

    store = ImageStore()
    return _show(store.get(name), as_json, store.users(name), whole=True)


@image.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@json_option
def delete(names: tuple[str, ...], as_json: bool) -> int:
    """Delete images. One that a machine's disk depends on stays."""
    from toolkit.images.store import ImageStore

    for name in names:
        ImageStore().delete(name)
    if as_json:
        import json

        click.echo(json.dumps({"schema": 1, "deleted": list(names)}))
    return ExitStatus.OK


def _show(made: Image, as_json: bool, machines: Sequence[str] | None = None, whole: bool = False) -> int:
    if as_json:
        import json

        more = {} if machines is None else {"machines": machines}
        click.echo(json.dumps({"schema": 1, "image": made.to_json() | more}, indent=2))
    elif whole:
        fields = made.to_json() | {"size": f"{made.size / (1 << 20):.0f} MiB", "machines": ", ".join(machines or [])}
        for key, value in fields.pop("inputs").items():
            fields[f"from {key}"] = " ".join(map(str, value)) if isinstance(value, list) else value
        for key, value in fields.items():
            if value not in (None, ""):
                click.echo(f"{key:<14} {value}")
    else:
        click.echo(f"{made.name}\t{made.directory}")
    return ExitStatus.OK


@contextmanager
def _steps() -> Iterator[Callable[[str], None]]:
    """Shows what is going on: on a terminal in one line that goes away, otherwise a line a step on standard error."""
    if not sys.stderr.isatty():
        yield lambda text: click.echo(text, err=True)
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("starting") as status:
        yield lambda text: status.update(escape(text.partition("\n")[0][:100]))
