"""`vtk run --trace`: where the trace goes, and how much of it."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO

import click

from minivmm.errors import ConfigError, HostError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from minivmm.emulator.trace import Tracer
    from minivmm.emulator.trace_file import TraceFile

STANDARD_ERROR = "-"
EVENTS = ("instructions", "blocks", "lookups", "chains", "exits", "traps", "flushes")
LIMIT = 1_000_000


def events(_ctx: click.Context, _param: click.Parameter, value: str | None) -> frozenset[str]:
    """What a comma-separated list names; all without one."""
    if value is None:
        return frozenset(EVENTS)
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in EVENTS:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(EVENTS)}")
    return frozenset(names)


def complete_events(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """One more of the list."""
    from click.shell_completion import CompletionItem

    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    return [CompletionItem(f"{before}{comma}{name}") for name in EVENTS if name.startswith(last) and name not in given]


class Tracing:
    """A trace that may be wanted: `file` None for none, "-" for standard error. The file is made when it is needed."""

    def __init__(self, file: str | None, wanted: frozenset[str], limit: int) -> None:
        self._name, self._wanted, self._limit = file, wanted, limit
        self._release = contextlib.ExitStack()
        self._writer: TraceFile | None = None

    def tracer(self) -> Tracer | None:
        """What a machine is given. Raises ConfigError when the file cannot be made."""
        if self._name is None:
            return None
        from minivmm.emulator.trace import Tracer
        from minivmm.emulator.trace_file import TraceFile

        self._writer = TraceFile(self._open(self._name), as_json=self._name.endswith(".json"), limit=self._limit)
        return Tracer(self._writer, self._wanted)

    def _open(self, name: str) -> TextIO:
        if name == STANDARD_ERROR:
            return sys.stderr
        try:
            return self._release.enter_context(Path(name).open("w", encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"the trace cannot be written to {name}", cause=error.strerror or str(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        writer = self._writer
        if writer is None:
            return
        try:
            writer.finish()
        except HostError as error:
            click.echo(f"vtk: {error}", err=True)
        with contextlib.suppress(OSError):  # told already
            self._release.close()
        if writer.left_out and self._name != STANDARD_ERROR:
            message = f"vtk: the trace has {self._limit:,} events, and {writer.left_out:,} more were left out"
            click.echo(message, err=True)
