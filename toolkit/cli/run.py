"""`vtk run`: a guest on this terminal, under minivmm or QEMU, and an exit status that says how it ended."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from minivmm.errors import ConfigError, HostError, ImageError
from minivmm.outcome import Outcome, RunResult
from toolkit.cli import ExitStatus

if TYPE_CHECKING:
    from minivmm import Disk, Machine
    from toolkit.qemu import QemuMachine

SCHEMA = 1
REGISTERS_A_ROW = 3
MAX_TIMEOUT = 1e7  # seconds
FLUSH_LIMIT = 3.0  # seconds the reader of a guest that was ended has to take its last output
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

STATUSES = "\n".join(
    f"  {'1-19' if outcome is Outcome.EXITED else outcome.exit_status!s:<5}{outcome.value:<15}{outcome.meaning}"
    for outcome in sorted(Outcome, key=lambda outcome: outcome.exit_status)
)
HELP_END = f"""\b
Examples:
  vtk run hello
  vtk run ./kernel.elf --mem 256M --disk disk.img --disk data.img,ro
  echo quit | vtk run bench --json

\b
Exit status, by how the guest ended:
{STATUSES}
  2    wrong usage or input, 3 the host cannot do it (`exited` may give the same
       numbers: --json tells them apart)
"""


def _size(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    """Bytes. A bare number is MiB, as for QEMU's -m."""
    size = re.fullmatch(r"(\d{1,15})([KMGT]?)(?:i?B)?", value.strip(), re.IGNORECASE | re.ASCII)
    if size is None:
        raise click.BadParameter(f"{value!r} is not a size: write 64M, 1G or 512K")
    return int(size[1]) * UNITS[size[2].upper() or "M"]


def _seconds(_ctx: click.Context, _param: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 < value <= MAX_TIMEOUT:
        raise click.BadParameter(
            f"{value:g} is not a time a machine can be given: more than 0, at most {MAX_TIMEOUT:g}"
        )
    return value


def _disks(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> list[Disk]:
    """Whether the files are disks is the machine's to say."""
    if not values:
        return []
    from minivmm import Disk

    disks = []
    for value in values:
        file, comma, mode = value.rpartition(",")
        if not comma or mode not in ("ro", "rw"):
            file, mode = value, "rw"
        if not file:
            raise click.BadParameter("a disk is FILE or FILE,ro")
        disks.append(Disk(Path(file), mode == "ro"))
    return disks


class Choice(NamedTuple):
    """The accelerator taken, and why it is not the one a user would expect (empty when it is)."""

    accelerator: str
    reason: str = ""


@click.command(epilog=HELP_END)
@click.argument("guest", metavar="GUEST|ELF")
@click.option("--mem", "memory", metavar="SIZE", callback=_size, default="64M", show_default=True, help="RAM.")
@click.option("--cpus", metavar="N", type=click.IntRange(1), default=1, show_default=True, help="Virtual CPUs.")
@click.option(
    "--disk", "disks", metavar="FILE[,ro]", callback=_disks, multiple=True, help="A raw virtio disk; may be repeated."
)
@click.option("--append", metavar="TEXT", default="", help="The kernel command line.")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=float,
    callback=_seconds,
    help="End the machine after this long.  [default: 60, on a terminal a day]",
)
@click.option(
    "--accel",
    "accelerator",
    type=click.Choice(["kvm", "tcg"]),
    help="kvm: minivmm. tcg: QEMU microvm, emulated.  [default: kvm where it is usable]",
)
@click.option(
    "--boot", type=click.Choice(["auto", "pvh", "linux64"]), default="auto", show_default=True, help="Boot protocol."
)
@click.option("--virtio-console", is_flag=True, help="Add a virtio console, shown beside the serial one.")
@click.option("--rng", is_flag=True, help="Add a virtio entropy device.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end, console included.")
@click.option("--stats", is_flag=True, help="Print exits and KVM's counters on standard error.")
def run(
    guest: str,
    memory: int,
    cpus: int,
    disks: list[Disk],
    append: str,
    timeout: float | None,
    accelerator: str | None,
    boot: str,
    virtio_console: bool,
    rng: bool,
    as_json: bool,
    stats: bool,
) -> int:
    """Boot a guest: one of ours by name (`vtk guest list`), or an ELF kernel.

    Its serial console is this terminal, or standard input and output where they
    are files and pipes. The outcome is said on standard error.
    """
    from toolkit import terminal
    from toolkit.console import Output, Session

    _end_with_parent()
    choice = _choose(accelerator)
    if choice.reason:
        click.echo(f"vtk: running under QEMU's emulation: {choice.reason}", err=True)
    image = find_image(guest)
    output = None if as_json else Output(1)
    machine = _assemble(
        choice.accelerator,
        image,
        boot=boot,
        memory=memory,
        cpus=cpus,
        cmdline=append,
        disks=disks,
        virtio_console=virtio_console,
        rng=rng,
        console=output.write if output else None,
    )
    with machine:
        at_terminal = terminal.is_ours(0)
        session = Session(machine, output, read_input=not (as_json and at_terminal))
        if session.interactive and sys.stderr.isatty():
            click.echo(f"vtk: {guest} on {choice.accelerator}; {terminal.BANNER}", err=True)
        if timeout is None:
            timeout = 86400.0 if session.interactive else 60.0
        result = session.run(timeout)
        counters = machine.kernel_stats() if stats else {}
    if output is not None:
        ended_from_outside = result.outcome in (Outcome.DEADLINE, Outcome.INTERRUPTED)
        output.finish(FLUSH_LIMIT if ended_from_outside else float("inf"))
    if as_json:
        _print_json(guest, image, choice, result)
    else:
        _print_outcome(result, mid_line=output is not None and output.last != b"\n")
    if stats:
        _print_stats(result, counters)
    if output is not None and output.broken:
        return ExitStatus.BROKEN_PIPE
    return result.exit_status


def _end_with_parent() -> None:
    """Asks for SIGTERM when the parent dies (prctl(2), PR_SET_PDEATHSIG): nobody is left to see the guest."""
    import ctypes
    import signal

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGTERM))


def _choose(asked: str | None) -> Choice:
    """kvm where it is usable. Raises HostError when it was asked for and is not."""
    if asked == "tcg":
        return Choice("tcg")
    from minivmm.kvm.system import Kvm

    try:
        Kvm().close()
    except HostError as error:
        if asked == "kvm":
            raise
        return Choice("tcg", error.message + (f" ({error.cause}); try: {error.remedy}" if error.remedy else ""))
    return Choice("kvm")


def find_image(name: str) -> Path:
    """The file of a guest's name, or the file called so. Raises ImageError when it is neither, BuildError."""
    if "/" in name or name.endswith(".elf"):
        return Path(name)
    from guest_os import guests, image

    table = guests()
    if name in table:
        from toolkit.building import announce_build

        announce_build()
        return image(name)
    if Path(name).exists():
        return Path(name)
    import difflib

    close = difflib.get_close_matches(name, table, n=1)
    remedy = f"vtk run {close[0]}" if close else "vtk guest list"
    raise ImageError(name, "no guest and no file is called so", remedy=remedy)


def _assemble(
    accelerator: str, image: Path, *, boot: str, console: Callable[[bytes], None] | None, **config: Any
) -> Machine | QemuMachine:
    """The machine of either hypervisor. Raises VtkError for whatever cannot be."""
    if accelerator == "tcg":
        if boot == "linux64":
            raise ConfigError(
                "QEMU cannot enter a guest by the Linux 64-bit protocol",
                cause="its microvm boots ELF files by PVH",
                remedy="--boot pvh",
            )
        from toolkit.qemu import Accelerator, QemuMachine

        return QemuMachine(image, accelerator=Accelerator.TCG, console=console, **config)
    from minivmm import Boot, Machine

    return Machine(image, boot=Boot(boot), console=console, **config)


def _print_outcome(result: RunResult, *, mid_line: bool) -> None:
    """One line on standard error; none for an ordinary end whose output somebody else processes."""
    if result.outcome is Outcome.SHUTDOWN and not sys.stdout.isatty():
        return
    lead = "\n" if mid_line and sys.stdout.isatty() else ""
    detail = f": {result.detail}" if result.detail else ""
    click.echo(f"{lead}vtk: {result.outcome.value} after {result.seconds:.3f} s{detail}", err=True)
    registers = [f"{name:<7}{value:016x}" for name, value in result.registers.items()]
    for row in range(0, len(registers), REGISTERS_A_ROW):
        click.echo("  " + "  ".join(registers[row : row + REGISTERS_A_ROW]), err=True)


def _print_json(guest: str, image: Path, choice: Choice, result: RunResult) -> None:
    import json

    click.echo(
        json.dumps(
            {
                "schema": SCHEMA,
                "guest": guest,
                "image": str(image),
                "accelerator": choice.accelerator,
                "outcome": result.outcome.value,
                "detail": result.detail,
                "code": result.code,
                "exit_status": result.exit_status,
                "seconds": round(result.seconds, 6),
                "exits": dict(result.exits),
                "registers": dict(result.registers),
                "console": result.console.decode(errors="replace"),
            }
        )
    )


def _print_stats(result: RunResult, counters: dict[str, int]) -> None:
    for title, numbers in (("exits to user space", result.exits), ("KVM's counters", counters)):
        shown = {name: number for name, number in numbers.items() if number}
        if shown:
            click.echo(f"{title}:", err=True)
        for name, number in sorted(shown.items(), key=lambda item: -item[1]):
            click.echo(f"  {name:<28}{number:>14,}", err=True)
