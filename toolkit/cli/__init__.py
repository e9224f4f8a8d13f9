"""The `vtk` command: one module a command, loaded when it is asked for; what every command shares is here.

Exit statuses are the same for every command (`ExitStatus`, docs/cli.md); `vtk run` adds those of the guest's outcome.
"""

from __future__ import annotations

import contextlib
import os
import sys
from enum import IntEnum
from importlib import import_module
from typing import NamedTuple

import click

from minivmm.errors import HostError, VtkError


class ExitStatus(IntEnum):
    """What `vtk` exits with when it is not the guest that decides."""

    OK = 0
    FAILED = 1  # the command did its work and something in it failed: a cell of `compare`, a guest that does not build
    USAGE = 2  # options, names and files that cannot be used
    HOST = 3  # the host cannot do it
    REQUIRED_MISSING = 4  # `vtk doctor --require`
    INTERNAL = 70  # a fault in vtk itself (sysexits.h, EX_SOFTWARE)
    INTERRUPTED = 130  # Ctrl-C
    BROKEN_PIPE = 141  # whoever read the output went away


class Entry(NamedTuple):
    """Where a command lives, and the line `vtk --help` shows without loading it."""

    module: str
    name: str
    summary: str


COMMANDS = {
    "doctor": Entry("toolkit.cli.doctor", "doctor", "What this host can do, and how to mend what it cannot."),
    "guest": Entry("toolkit.cli.guest", "guest", "List and build our guests."),
    "run": Entry("toolkit.cli.run", "run", "Boot a guest, a machine or a Xen domain, on this terminal."),
    "compare": Entry("toolkit.cli.compare", "compare", "One guest, every technique, one table."),
    "image": Entry("toolkit.cli.image", "image", "Kernels and disks for machines: build, pull, list, delete."),
    "bench": Entry("toolkit.cli.bench", "bench", "What minivmm itself costs, against C and QEMU."),
    "lab": Entry("toolkit.cli.lab", "lab", "Each idea as a claim, an experiment and a verdict."),
    "vm": Entry("toolkit.cli.vm", "vm", "Virtual machines that stay, made, started and reached by name."),
    "top": Entry("toolkit.cli.vm.figures", "top", "What those machines use, as it goes (vtk vm top)."),
    "metrics": Entry("toolkit.cli.metrics", "metrics", "What those machines use, for Prometheus."),
    "completion": Entry("toolkit.cli.completion", "completion", "Print the shell's completion script."),
}

EXAMPLES = """\b
Examples:
  vtk doctor                       what works here, and what to install
  vtk run hello                    boot our smallest guest on KVM
  vtk run hello --accel tcg        the same file under QEMU's emulation
  vtk run hello --xen              the same kernel as a paravirtual Xen domain
  vtk run kernel.elf --mem 256M --disk disk.img,ro --append "quiet"
  vtk compare --quick              measure every technique, in a minute or two
  eval "$(vtk completion bash)"    complete commands and options

\b
Exit status: 0 success, 1 something failed, 2 wrong usage or input, 3 the host
cannot do it, 4 doctor misses a requirement, 70 a fault in vtk, 130 interrupted.
`vtk run --help` lists those of a guest's end.
"""


class LazyGroup(click.Group):
    """The commands of `COMMANDS`; help is written from the table, and a module imported only to be run."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """In the table's order."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Loads the command. None when there is no such one."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(import_module(entry.module), entry.name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, without loading anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


def _print_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"vtk {version('vtk')}")
        except PackageNotFoundError:
            click.echo("vtk (not installed: run from a checkout)")
        ctx.exit()


@click.group(cls=LazyGroup, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
def cli() -> None:
    """The virtualization toolkit: every technique of the field, run for real and measured on the same work."""


def run_to_end() -> int:
    """Runs the command of sys.argv; whatever comes out of it is a message and the exit status returned."""
    try:
        status = invoke(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        status = ExitStatus.BROKEN_PIPE
    if status == ExitStatus.BROKEN_PIPE:
        # What is still buffered has no reader: let the interpreter's last flush go nowhere instead of complaining.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def invoke(arguments: list[str]) -> int:
    """Runs `vtk` with `arguments`; returns the exit status. Raises BrokenPipeError, and with VTK_DEBUG faults too."""
    try:
        result = cli.main(arguments, prog_name="vtk", complete_var="_VTK_COMPLETE", standalone_mode=False)
    except click.exceptions.Exit as end:
        return end.exit_code
    except (click.Abort, KeyboardInterrupt):
        return ExitStatus.INTERRUPTED
    except click.ClickException as error:
        error.show()
        return ExitStatus.USAGE
    except VtkError as error:
        click.echo(f"vtk: {error}", err=True)
        return ExitStatus.HOST if isinstance(error, HostError) else ExitStatus.USAGE
    except SystemExit as end:
        # Both click and rich answer a broken pipe with SystemExit(1); click's completion mode ends so too.
        return end.code if end.code != 1 and isinstance(end.code, int) else ExitStatus.BROKEN_PIPE
    except BrokenPipeError:
        raise
    except Exception as fault:
        if os.environ.get("VTK_DEBUG"):
            raise
        click.echo(_internal_error(fault), err=True)
        return ExitStatus.INTERNAL
    return result if isinstance(result, int) else ExitStatus.OK


def _internal_error(fault: Exception) -> str:
    """Writes the full report to a file; returns what the user is told."""
    import platform
    import shlex
    import tempfile
    import traceback

    told = f"vtk: internal error: {type(fault).__name__}: {fault}"
    report = f"vtk {shlex.join(sys.argv[1:])}\n{platform.platform()}, Python {platform.python_version()}\n\n"
    report += "".join(traceback.format_exception(fault))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="vtk-error-", suffix=".txt", delete=False) as file:
            file.write(report)
    except OSError as error:
        return f"{told}\n  cause: a fault in vtk; the full report could not be written: {error}\n  try:   VTK_DEBUG=1"
    return f"{told}\n  cause: a fault in vtk; the full report is in {file.name}\n  try:   report it, with that file"


__all__ = ["COMMANDS", "ExitStatus", "cli", "invoke", "run_to_end"]
