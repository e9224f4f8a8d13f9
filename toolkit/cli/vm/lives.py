"""`vtk vm create start stop kill pause resume delete`: what a machine goes through."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.vm.asked import SECONDS, SIZE, find, json_option, machines, name_argument, print_json, tell
from toolkit.telling import told_when_long
from toolkit.vm import PROVIDERS

if TYPE_CHECKING:
    from toolkit.vm.machine import Machine

FILE = click.Path(path_type=Path)


@click.command()
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
@click.option(
    "--provider", type=click.Choice(list(PROVIDERS)), default="qemu", show_default=True, help="Whose machine it is."
)
@click.option(
    "--uri",
    metavar="URI",
    default="",
    help="Which libvirt.  [default: $LIBVIRT_DEFAULT_URI, else qemu:///session, for root qemu:///system]",
)
@click.option("--user", metavar="USER", default="", help="Who ssh logs in as.  [default: the image's, else root]")
@json_option
def create(name: str, as_json: bool, **parts: Any) -> None:
    """Make a machine, stopped."""
    from toolkit.vm.machine import Machine
    from toolkit.vm.making import Parts
    from toolkit.vm.making import create as make

    with told_when_long(f"making {name}"):
        machine = Machine(make(machines(), name, Parts(**parts)))
    tell(machine, "created", as_json)


@click.command()
@name_argument
@click.option("--paused", is_flag=True, help="Let it stand before its first instruction; `resume` lets it go.")
@json_option
def start(name: str, paused: bool, as_json: bool) -> None:
    """Start a machine; it goes on when vtk has ended."""
    machine = find(name)
    with told_when_long(f"starting {name}"):
        notes = machine.start(paused=paused)
    for note in notes:
        click.echo(f"vtk: {name}: {note}", err=True)
    tell(machine, "started", as_json)


@click.command()
@name_argument
@click.option("--timeout", type=SECONDS, default=60.0, show_default=True, metavar="SECONDS", help="How long to wait.")
@json_option
def stop(name: str, timeout: float, as_json: bool) -> None:
    """Press the power button, and wait until the guest has shut down."""
    machine = find(name)
    with told_when_long(f"waiting up to {timeout:g} s for {name} to shut down"):
        machine.stop(timeout)
    tell(machine, "stopped", as_json)


@click.command()
@name_argument
@json_option
def kill(name: str, as_json: bool) -> None:
    """End a machine now, as by pulling its plug."""
    machine = find(name)
    with told_when_long(f"ending {name}"):
        machine.kill()
    tell(machine, "killed", as_json)


@click.command()
@name_argument
@json_option
def pause(name: str, as_json: bool) -> None:
    """Let a machine's CPUs stand still."""
    machine = find(name)
    machine.pause()
    tell(machine, "paused", as_json)


@click.command()
@name_argument
@json_option
def resume(name: str, as_json: bool) -> None:
    """Let a paused machine go on."""
    machine = find(name)
    machine.resume()
    tell(machine, "resumed", as_json)


@click.command()
@name_argument
@click.option("--force", is_flag=True, help="Also when it runs, which ends it, and when it is damaged.")
@json_option
def delete(name: str, force: bool, as_json: bool) -> None:
    """Remove a machine and its disk; its image stays."""
    machine = find(name)
    imported_from = _imported_from(machine)
    with told_when_long(f"deleting {name}"):
        machine.delete(machines(), force=force)
    if as_json:
        print_json({"name": name, "deleted": not imported_from} | ({"forgotten": True} if imported_from else {}))
    elif imported_from:
        click.echo(f"forgot {name}; its domain was not made by vtk and stays at {imported_from}", err=True)
    else:
        click.echo(f"deleted {name}", err=True)


def _imported_from(machine: Machine) -> str:
    """The URI of a machine that was there before vtk knew it; "" for every other."""
    from minivmm.errors import VtkError

    try:
        config = machine.config()
    except VtkError:
        return ""
    return config.uri if config.imported else ""


@click.command("import")
@click.argument("domain", metavar="DOMAIN")
@click.option(
    "--uri", metavar="URI", default="", help="The libvirt that has it.  [default: as for `create --provider libvirt`]"
)
@click.option("--as", "name", metavar="NAME", default="", help="What vtk calls it.  [default: DOMAIN]")
@click.option("--user", metavar="USER", default="", help="Who ssh logs in as.  [default: root]")
@json_option
def import_machine(domain: str, uri: str, name: str, user: str, as_json: bool) -> None:
    """Let vtk know a machine that libvirt has already.

    The machine stays as it is, and so does it when it is deleted from vtk.
    """
    from toolkit.libvirt.importing import import_domain
    from toolkit.vm.machine import Machine

    tell(Machine(import_domain(machines(), domain, uri, name, user)), "imported", as_json)
