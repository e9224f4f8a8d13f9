"""`vtk compare`: measures the techniques against each other and prints, or writes, what was found."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from toolkit.building import announce_build, announce_linux_programs
from toolkit.cli import ExitStatus
from toolkit.compare.linux.works import TABLES
from toolkit.compare.techniques import TECHNIQUES
from toolkit.compare.workloads import WORKLOADS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from toolkit.compare.cell import Settings
    from toolkit.compare.results import Report, Result
    from toolkit.host import Host

STDOUT = "-"
DISK_SIZE = 64 << 20
QUICK_DISK_SIZE = 16 << 20
GUEST_MEMORY = 64 << 20
LIFETIME = 6 * 3600.0  # seconds: the deadline of a machine, well past the longest comparison
PLAIN_WIDTH = 100  # columns of a table that goes to a file or a pipe

TERMINATED = 143  # the exit status after SIGTERM, as a shell would give it

EPILOG = """\b
Examples:
  vtk compare --quick
  vtk compare --technique native --technique hvm --workload syscall
  vtk compare --quick --technique interpret --technique translate --technique qemu-riscv64 --workload cpu
  vtk compare --quick --technique paravirt --workload ptemod --workload ptebatch --exits
  vtk compare --json results.json --html report.html
  vtk compare --linux --quick --html hardware.html
  vtk compare --linux --table disk --table net

\b
Exit status: 0 all that can run here was measured; 1 a cell failed; 2 wrong usage;
3 nothing can be measured here; 130 interrupted: what was measured until then is shown and written.
"""


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends as Ctrl-C does, with the exit status of its own."""


class Destination:
    """A file a report will be written to. Opened when made, so that it is refused before anything is measured.

    A file that is there keeps its content until the report is written. Raises OSError, and ValueError for a name no
    file can have.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._created = False
        if path == STDOUT:
            return
        self._created = not os.path.lexists(path)
        with open(path, "ab") as file:
            # Only a file is made by us, and may be removed by us; a pipe or /dev/null is just written to.
            self._created = self._created and stat.S_ISREG(os.fstat(file.fileno()).st_mode)

    def write(self, text: str) -> None:
        """Puts the report there. Raises click.ClickException for a disk that filled up, or so."""
        self._created = False
        if self.path == STDOUT:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        try:
            Path(self.path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise click.ClickException(f"{self.path} cannot be written: {error.strerror}") from error

    def abandon(self) -> None:
        """Removes the empty file, if this made one and nothing was written."""
        if self._created:
            with contextlib.suppress(OSError):
                os.unlink(self.path)


def _destination(undo: contextlib.ExitStack, path: str | None, option: str) -> Destination | None:
    """The destination an option names, if it was given; removed again with `undo` when nothing gets written."""
    if path is None:
        return None
    try:
        destination = Destination(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise click.BadParameter(f"{path!r} cannot be written: {reason}", param_hint=option) from error
    undo.callback(destination.abandon)
    return destination


@click.command("compare", epilog=EPILOG)
@click.option("--quick", is_flag=True, help="Fewer and shorter samples: a minute or two instead of five or more.")
@click.option(
    "--technique",
    "techniques",
    multiple=True,
    type=click.Choice([technique.name for technique in TECHNIQUES]),
    help="Only this technique; may be repeated.",
)
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    type=click.Choice([workload.name for workload in WORKLOADS]),
    help="Only this workload; may be repeated.",
)
@click.option("--linux", "hardware", is_flag=True, help="Compare virtual hardware under one Linux instead.")
@click.option(
    "--table",
    "tables",
    multiple=True,
    type=click.Choice([table.name for table in TABLES]),
    help="With --linux: only this table; may be repeated.",
)
@click.option("--samples", type=click.IntRange(1, 10_000), help="Samples of each cell.")
@click.option("--exits", "by_reason", is_flag=True, help="Print exits by reason too, hypercalls by name, instructions.")
@click.option("--json", "json_file", metavar="FILE", help="Write the results as JSON; - is stdout.")
@click.option("--html", "html_file", metavar="FILE", help="Write a report as one HTML file.")
@click.pass_context
def compare(
    context: click.Context,
    quick: bool,
    techniques: Sequence[str],
    workloads: Sequence[str],
    hardware: bool,
    tables: Sequence[str],
    samples: int | None,
    by_reason: bool,
    json_file: str | None,
    html_file: str | None,
) -> None:
    """Measure every technique of virtualization on the same work.

    Prints a table each of programs (process, container, WebAssembly), of machines of this processor (KVM, Xen domain,
    QEMU) and of machines of another (interpreted, translated): the time of one operation, how many times native's that
    is, how far the samples spread, and the exits from the guest where they are counted. What cannot run here is in the
    table too, with the reason.

    With --linux, measure emulated against paravirtual hardware: the same Linux does the same work in QEMU, and only the
    disk, the network card, the console, the clock or the machine changes. At last, several machines at once against
    containers and processes.
    """
    from toolkit.compare.results import to_json

    if json_file == html_file == STDOUT:
        raise click.UsageError("--json and --html cannot both go to the standard output")
    if hardware and (techniques or workloads or by_reason):
        raise click.UsageError("--technique, --workload and --exits do not go with --linux; --table does")
    if tables and not hardware:
        raise click.UsageError("--table goes with --linux")
    with contextlib.ExitStack() as undo:
        json_to = _destination(undo, json_file, "--json")
        html_to = _destination(undo, html_file, "--html")
        if hardware:
            report, status = _measure_hardware(quick, tables, samples)
        else:
            report, status = _measure_techniques(quick, techniques, workloads, samples)
        if json_to is not None:
            json_to.write(to_json(report))
        if html_to is not None:
            html_to.write(_page(report, hardware))
    _print(_rendered(report, hardware, by_reason), to_stderr=STDOUT in (json_file, html_file))
    context.exit(status)


def _page(report: Report, hardware: bool) -> str:
    """The report as HTML."""
    if hardware:
        from toolkit.compare.linux.html import page as hardware_page

        return hardware_page(report)
    from toolkit.compare.html import page

    return page(report)


def _rendered(report: Report, hardware: bool, by_reason: bool) -> Iterator[RenderableType]:
    """The report for the terminal."""
    if hardware:
        from toolkit.compare.linux.report import render as render_hardware

        return render_hardware(report)
    from toolkit.compare.report import render

    return render(report, by_reason=by_reason)


def _measure_techniques(
    quick: bool, techniques: Sequence[str], workloads: Sequence[str], samples: int | None
) -> tuple[Report, int]:
    """The comparison of techniques."""
    from toolkit.compare.cell import QUICK, Settings

    settings = QUICK if quick else Settings()
    if samples is not None:
        settings = replace(settings, samples=samples)
    disk = f"{_disk_size(quick) >> 20} MiB, a raw file opened read-only, through the host's page cache everywhere"
    about = {"guest_memory": f"{GUEST_MEMORY >> 20} MiB", "disk": disk}
    return _measure(
        lambda _host, results: _compare(settings, quick, techniques, workloads, results), settings, quick, about
    )


def _measure_hardware(quick: bool, tables: Sequence[str], samples: int | None) -> tuple[Report, int]:
    """The comparison of virtual hardware under Linux."""
    from toolkit.compare.linux import devices, machine, runner

    settings = runner.QUICK if quick else runner.FULL
    if samples is not None:
        settings = replace(settings, cell=replace(settings.cell, samples=samples))
    chosen = [table.name for table in TABLES if not tables or table.name in tables]
    about = {
        "guest_memory": f"{machine.MEMORY >> 20} MiB",
        "disk": f"{devices.DISK_SIZE >> 20} MiB each, raw files through the host's page cache, O_DIRECT in the guest",
    }

    def work(host: Host, results: list[Result]) -> None:
        announce_linux_programs()
        with _progress() as progress:
            runner.compare(chosen, settings, host, results, progress)

    return _measure(work, settings.cell, quick, about)


def _measure(
    work: Callable[[Host, list[Result]], None], settings: Settings, quick: bool, about: dict[str, str]
) -> tuple[Report, int]:
    """Runs a comparison, to its end or until interrupted; what was found, and the exit status."""
    from toolkit.compare.results import Report
    from toolkit.host import gather

    started, began = time.monotonic(), datetime.now(UTC)
    load = round(os.getloadavg()[0], 2)  # what else this host is doing, before we add to it
    host = gather()
    results: list[Result] = []
    interruption: KeyboardInterrupt | None = None
    try:
        with _sigterm_interrupts():
            work(host, results)
    except KeyboardInterrupt as error:
        interruption = error
    run = {
        "started": began.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "load": load,
        "quick": quick,
        "samples": settings.samples,
        "target_ms": round(settings.target * 1000),
        **about,
        "interrupted": interruption is not None,
    }
    return Report(host.summary(), run, tuple(results)), _exit_status(results, interruption)


def _compare(
    settings: Settings, quick: bool, techniques: Sequence[str], workloads: Sequence[str], results: list[Result]
) -> None:
    """Measures what was chosen into `results`, in the order of the tables."""
    import guest_os
    from toolkit.compare.runner import Comparison
    from toolkit.compare.techniques import Bench

    chosen = [technique for technique in TECHNIQUES if not techniques or technique.name in techniques]
    names = [workload.name for workload in WORKLOADS if not workloads or workload.name in workloads]
    announce_build()
    with tempfile.TemporaryDirectory(prefix="vtk-compare-") as directory, _progress() as progress:
        disk = Path(directory, "disk")
        guest_os.write_disk(disk, _disk_size(quick))
        bench = Bench(disk, GUEST_MEMORY, LIFETIME)
        Comparison(chosen, names, bench, settings, results, progress).run()


def _disk_size(quick: bool) -> int:
    return QUICK_DISK_SIZE if quick else DISK_SIZE


def _exit_status(results: Sequence[Result], interruption: KeyboardInterrupt | None) -> int:
    if interruption is not None:
        return TERMINATED if isinstance(interruption, Terminated) else ExitStatus.INTERRUPTED
    statuses = {result.status.value for result in results}
    if "failed" in statuses:
        return ExitStatus.FAILED
    return ExitStatus.OK if "ok" in statuses else ExitStatus.HOST


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends the comparison as Ctrl-C does."""

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on stderr, drawn between samples only: a thread that redraws would disturb what is measured."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(
        *columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("starting", total=None)

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what, refresh=True)

        yield show


def _print(parts: Iterator[RenderableType], to_stderr: bool) -> None:
    from rich.console import Console

    console = Console(stderr=to_stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PLAIN_WIDTH
    for part in parts:
        console.print(part)
