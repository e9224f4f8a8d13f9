"""The report as one HTML file that needs nothing else: the page of `vtk compare`, with a chart a table."""

from __future__ import annotations

from html import escape

from toolkit.compare import charts, quantity
from toolkit.compare.html import absent, document, legend, notes_list
from toolkit.compare.linux.hardware import CONSOLES, DISKS, NETWORKS
from toolkit.compare.linux.report import compared, concerned, details, figure, footer, shown, shown_estimate, title
from toolkit.compare.linux.results import Row, find
from toolkit.compare.linux.works import Figure, LinuxTable, Work
from toolkit.compare.report import Notes
from toolkit.compare.results import Report

SUMMARIES = {device.name: device.summary for device in (*DISKS, *NETWORKS, *CONSOLES)} | {
    "pc": "i440FX and PIIX3 (1996), SeaBIOS",
    "q35": "Q35 and ICH9 (2007), SeaBIOS",
    "microvm": "no PCI, no firmware to speak of",
    "process": "an ordinary process of this host",
    "container": "one program in namespaces of its own",
    "acpi_pm": "the ACPI power-management timer, an I/O port",
    "hpet": "the high precision event timer, a device register",
    "tsc": "the processor's own counter",
    "kvm-clock": "the hypervisor's own, through shared memory",
}


def page(report: Report) -> str:
    """The whole file."""
    notes = Notes(report, concerned)
    lines = "".join(f'<p class="dim">{escape(line)}</p>\n' for line in footer(report)[1:])
    parts = [
        "<h1>One Linux, other hardware</h1>\n",
        "<p>The same Linux does the same work in QEMU; only the virtual hardware changes. Emulated devices are those "
        "of real machines, driven by their own drivers; paravirtual ones (virtio) were made for guests. All is timed "
        "by the host's clock, from outside.</p>\n",
        lines,
        *(_section(table, accelerator, rows, notes) for table, accelerator, rows in shown(report)),
        notes_list(notes),
    ]
    return document("vtk compare --linux: emulated and paravirtual hardware", parts, report)


def _section(table: LinuxTable, accelerator: str, rows: list[Row], notes: Notes) -> str:
    heading = title(table, accelerator)
    identity = f"chart-{table.name}-{accelerator}"
    groups = [charts.Group(work.name, "", _bars(table, work, rows)) for work in table.works]
    told = f"{heading}: how many times as fast as {table.columns[0]}, logarithmic"
    chart = charts.bar_chart(identity, told, groups, "{:g}×".format, origin=1.0)
    drawn = list(enumerate(table.columns))[1:]
    parts = [f"<h2>{escape(heading)}</h2>\n"]
    if chart:
        of_memory = "; of memory, how many times as much" * any(work.figure is Figure.SIZE for work in table.works)
        parts.append(
            f"<p>How many times as fast as <strong>{escape(table.columns[0])}</strong> "
            f"({escape(SUMMARIES.get(table.columns[0], ''))}){of_memory}.</p>\n"
            f"<figure>{legend(drawn, SUMMARIES)}{chart}</figure>\n"
        )
    return "".join([*parts, _figures(table, rows, notes)])


def _bars(table: LinuxTable, work: Work, rows: list[Row]) -> list[charts.Bar]:
    baseline = find(rows, table.columns[0], work.name)
    bars = []
    for series, column in list(enumerate(table.columns))[1:]:
        row = find(rows, column, work.name)
        times = compared(work, row, baseline) if row is not None else None
        if row is None or times is None or times.median <= 0:
            bars.append(absent(series, column, row))
            continue
        value = quantity.times(times.median)
        bars.append(
            charts.Bar(
                series,
                times.median,
                max(times.median - times.mad, times.median / 10),
                times.median + times.mad,
                f"{value} {quantity.spread(times.spread)}",
                f"{work.name} on {column}: {value} {table.columns[0]}, {figure(work, row)}",
            )
        )
    return bars


def _figures(table: LinuxTable, rows: list[Row], notes: Notes) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    lines = []
    for work in table.works:
        baseline = find(rows, table.columns[0], work.name)
        cells = "".join(_cell(work, find(rows, column, work.name), baseline, notes) for column in table.columns)
        about = f"{escape(work.name)}<small>{escape(work.operation)}</small>"
        lines.append(f'<tr><th scope="row">{about}</th>{cells}</tr>\n')
    devices = "".join(
        f"<td><small>{_device(next((row for row in rows if row.technique == column), None))}</small></td>"
        for column in table.columns
    )
    if any(row.device for row in rows):
        lines.append(f'<tr><th scope="row">driver and device<small>sysfs and QMP agree</small></th>{devices}</tr>\n')
    return (
        f'<div class="scroll"><table>\n<thead><tr><th scope="col">work</th>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(lines)}</tbody></table></div>\n"
    )


def _device(row: Row | None) -> str:
    """What the hardware is, a fact a line, as HTML."""
    if row is None:
        return ""
    return "<br>".join(escape(row.device[name]) for name in ("driver", "name", "pci", "id") if name in row.device)


def _cell(work: Work, row: Row | None, baseline: Row | None, notes: Notes) -> str:
    if row is None:
        return "<td>not measured</td>"
    measured = shown_estimate(work, row)
    if measured is None:
        return f'<td class="{row.status.value}">{row.status.value}<small>note {notes.number(row)}</small></td>'
    spread = "" if work.figure is Figure.SIZE and not measured.mad else quantity.spread(measured.spread)
    more = " · ".join(details(work, row, baseline))
    return f"<td>{escape(figure(work, row))} <span class='dim'>{spread}</span><small>{escape(more)}</small></td>"
