"""`vtk run`: a guest on this terminal, a machine or a Xen domain, and an exit status that says how it ended."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from minivmm.outcome import Outcome
from toolkit.cli import ExitStatus, run_report, run_trace
from toolkit.cli.sizes import Size
from toolkit.machines import EMULATORS, LOCKSTEP, RISCV64, XEN, Wish, plan

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from minivmm import Disk

MAX_TIMEOUT = 1e7  # seconds
FLUSH_LIMIT = 3.0  # seconds the reader of a guest that was ended has to take its last output

STATUSES = "\n".join(
    f"  {'1-19' if outcome is Outcome.EXITED else outcome.exit_status!s:<5}{outcome.value:<15}{outcome.meaning}"
    for outcome in sorted(Outcome, key=lambda outcome: outcome.exit_status)
)
HELP_END = f"""\b
Examples:
  vtk run hello
  vtk run ./kernel.elf --mem 256M --disk disk.img --disk data.img,ro
  echo quit | vtk run bench --json
  vtk run hello --xen
  vtk run hello --arch riscv64 --accel interpret
  vtk run hello --arch riscv64 --lockstep
  vtk run hello --arch riscv64 --trace trace.json --trace-events blocks,traps
  vtk run --xen vmlinuz --initrd initrd.cpio --append "quiet"
  vtk run --user ./program --root . -- -v file

\b
Exit status, by how the guest ended:
{STATUSES}
  2    wrong usage or input, 3 the host cannot do it (`exited` may give the same
       numbers: --json tells them apart)
"""


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


def _complete_guest(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of our guests; where none begins so, files."""
    from click.shell_completion import CompletionItem

    from guest_os import guests

    names = [
        CompletionItem(name, help=guest.description) for name, guest in guests().items() if name.startswith(incomplete)
    ]
    return names or [CompletionItem(incomplete, type="file")]


@click.command(epilog=HELP_END)
@click.argument("guest", metavar="GUEST|FILE", shell_complete=_complete_guest)
@click.argument("arguments", metavar="[-- ARGUMENTS...]", nargs=-1)
@click.option("--mem", "memory", metavar="SIZE", type=Size(), help="RAM.  [default: 64M; a Linux domain 256M]")
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
    type=click.Choice(["kvm", "tcg", *EMULATORS]),
    help="kvm: minivmm. tcg: QEMU microvm, emulated. interpret, translate: a RISC-V machine of minivmm's."
    "  [default: kvm where it is usable; translate]",
)
@click.option(
    "--arch", type=click.Choice(["x86_64", RISCV64]), help="The guest's processor.  [default: the file's; x86_64]"
)
@click.option(
    "--boot", type=click.Choice(["auto", "pvh", "linux64"]), default="auto", show_default=True, help="Boot protocol."
)
@click.option("--virtio-console", is_flag=True, help="Add a virtio console, shown beside the serial one.")
@click.option("--rng", is_flag=True, help="Add a virtio entropy device.")
@click.option("--xen", is_flag=True, help="Boot it as a paravirtual Xen domain, on minivmm.")
@click.option(
    "--initrd", metavar="FILE", type=click.Path(path_type=Path), help="The initial RAM disk of a domain's kernel."
)
@click.option(
    "--audit",
    metavar="N",
    type=click.IntRange(0),
    default=0,
    help="Count all uses of a domain's frames again after every N exits; a wrong count ends it.",
)
@click.option("--user", is_flag=True, help="FILE is a static Linux program for riscv64: run it, without a kernel.")
@click.option(
    "--root",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The directory that such a program sees as its /.  [default: no files at all]",
)
@click.option(
    "--quota",
    metavar="SIZE",
    type=Size(),
    help="What it may write to files there; then no space is left. [default: 1G]",
)
@click.option(
    "--lockstep",
    is_flag=True,
    help="Interpret and translate a RISC-V guest, both, and compare; `diverged` when they do not do the same.",
)
@click.option(
    "--stride",
    metavar="N",
    type=click.IntRange(1),
    help="Compare after N instructions at most; 1: after every block.  [default: 10000]",
)
@click.option(
    "--trace",
    metavar="FILE",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Tell what a RISC-V guest's engine does: lines, or JSON for Perfetto in a .json; - is standard error.",
)
@click.option(
    "--trace-events",
    metavar="LIST",
    callback=run_trace.events,
    shell_complete=run_trace.complete_events,
    help=f"Of {', '.join(run_trace.EVENTS)}.  [default: all]",
)
@click.option(
    "--trace-limit",
    metavar="N",
    type=click.IntRange(1),
    default=run_trace.LIMIT,
    show_default=True,
    help="Events that are written.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end, console included.")
@click.option("--stats", is_flag=True, help="Print exits and KVM's counters on standard error.")
def run(
    guest: str,
    arguments: tuple[str, ...],
    memory: int | None,
    cpus: int,
    disks: list[Disk],
    append: str,
    timeout: float | None,
    accelerator: str | None,
    arch: str | None,
    boot: str,
    virtio_console: bool,
    rng: bool,
    xen: bool,
    initrd: Path | None,
    audit: int,
    user: bool,
    root: Path | None,
    quota: int | None,
    lockstep: bool,
    stride: int | None,
    trace: str | None,
    trace_events: frozenset[str],
    trace_limit: int,
    as_json: bool,
    stats: bool,
) -> int:
    """Boot a guest: one of ours by name (`vtk guest list`), or a kernel's file.

    An ELF kernel boots as a machine. One that was made for Xen domains only
    becomes one; --xen makes one of any kernel that can be, a Linux bzImage too.

    --user runs a statically linked Linux program for riscv64 instead, its system
    calls answered by vtk; its exit status is that of vtk, 128 + the signal's
    number when one ends it.

    Its console is this terminal, or standard input and output where they are
    files and pipes. The outcome is said on standard error.
    """
    from toolkit import terminal
    from toolkit.console import Output, Session

    _end_with_parent()
    tracing = run_trace.Tracing(trace, trace_events, trace_limit)
    if user:
        from toolkit.cli import run_program

        for option, given in {
            "--disk": disks,
            "--append": append,
            "--boot": boot != "auto",
            "--cpus": cpus != 1,
            "--virtio-console": virtio_console,
            "--rng": rng,
            "--xen": xen,
            "--initrd": initrd,
            "--audit": audit,
            "--arch x86_64": arch == "x86_64",
            f"--accel {accelerator}": accelerator not in (None, *EMULATORS),
        }.items():
            if given:
                raise click.UsageError(f"{option} is a machine's; --user runs a program")
        if quota is not None and root is None:
            raise click.UsageError("--quota goes with --root")
        accelerator = _program_accelerator(accelerator, lockstep, stride, trace)
        return run_program.run(
            guest, arguments, memory, timeout, accelerator, root, quota, stride, tracing, as_json, stats
        )
    if arguments or root is not None or quota is not None:
        option = "--root" if root else "--quota" if quota else repr(arguments[0])
        raise click.UsageError(f"{option} goes with a program: --user")
    wish = Wish(
        *(guest, memory, cpus, append, disks, boot, virtio_console, rng, accelerator, xen, initrd, audit, arch),
        lockstep=lockstep,
        stride=stride,
        tracer=tracing.tracer if trace else None,
    )
    planned = plan(wish)
    if planned.reason:
        click.echo(f"vtk: running under QEMU's emulation: {planned.reason}", err=True)
    output = None if as_json else Output(1)
    with tracing, planned.build(output.write if output else None) as machine:
        at_terminal = terminal.is_ours(0)
        session = Session(machine, output, read_input=not (as_json and at_terminal))
        if session.interactive and sys.stderr.isatty():
            how = "Xen's interface" if planned.platform == XEN else planned.accelerator
            click.echo(f"vtk: {guest} on {how}; {terminal.BANNER}", err=True)
        if timeout is None:
            timeout = 86400.0 if session.interactive else 60.0
        result = session.run(timeout)
        counters = machine.kernel_stats() if stats else {}
    if output is not None:
        ended_from_outside = result.outcome in (Outcome.DEADLINE, Outcome.INTERRUPTED)
        output.finish(FLUSH_LIMIT if ended_from_outside else float("inf"))
    if as_json:
        run_report.print_json(guest, planned, result)
    else:
        run_report.print_outcome(result, mid_line=output is not None and output.last != b"\n")
    if planned.accelerator == LOCKSTEP:
        run_report.print_lockstep(result.outcome, result.exits)
    if stats:
        run_report.print_stats(planned, result, counters)
    if output is not None and output.broken:
        return ExitStatus.BROKEN_PIPE
    return result.exit_status


def _program_accelerator(asked: str | None, lockstep: bool, stride: int | None, trace: str | None) -> str:
    if lockstep and asked is not None:
        raise click.UsageError("--lockstep interprets and translates, both: leave --accel out")
    if lockstep and trace is not None:
        raise click.UsageError("--trace tells of one engine: --accel interpret or --accel translate, not --lockstep")
    if stride is not None and not lockstep:
        raise click.UsageError("--stride belongs to --lockstep")
    return LOCKSTEP if lockstep else asked or "translate"


def _end_with_parent() -> None:
    """Asks for SIGTERM when the parent dies (prctl(2), PR_SET_PDEATHSIG): nobody is left to see the guest."""
    import ctypes
    import signal

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGTERM))
