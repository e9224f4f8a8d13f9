"""The report as one HTML file that needs nothing else: no script, no font, no picture from elsewhere.

Every word in it that came from a guest or the host is escaped; the results are embedded as JSON, so the file is also
the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

from toolkit.compare import charts, quantity
from toolkit.compare.report import Notes, details, explained, footer, groups, reasons
from toolkit.compare.results import Report, Result, Status, to_json
from toolkit.compare.statistics import ratio
from toolkit.compare.techniques import BY_NAME, REFERENCE
from toolkit.compare.workloads import operation, other_name

# Okabe and Ito's palette, told apart by every kind of colour vision; lighter on dark ground. Text contrasts by 4.5.
STYLE = """
:root { color-scheme: light dark; --ground: #fff; --card: #f6f7f9; --ink: #1b1f24; --dim: #59636e; --line: #d5dae0;
  --failed: #b3261e; --s0: #6e7781; --s1: #0072b2; --s2: #d55e00; --s3: #8a5aa8; --s4: #009e73; --s5: #b8860b;
  --s6: #c2427d; --s7: #3d8ea8; --s8: #7a5230; --s9: #4c5fd5; --s10: #5f7a1f; --s11: #a33b3b; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --card: #1d2126; --ink: #e8eaed; --dim: #a2abb5;
  --line: #3a4149; --failed: #ff8a80; --s0: #9aa4af; --s1: #56b4e9; --s2: #f0893e; --s3: #c39bdc; --s4: #35c79a;
  --s5: #e0b341; --s6: #f08ab8; --s7: #7cc7de; --s8: #c9996b; --s9: #98a6ff; --s10: #abc95c; --s11: #e88c8c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p { margin: .4rem 0; max-width: 52rem; }
.dim, caption, figcaption { color: var(--dim); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem;
  overflow-x: auto; }
.chart { display: block; width: 100%; min-width: 40rem; height: auto; font: 12px system-ui, sans-serif; }
.chart .name { fill: var(--ink); font-weight: 600; font-size: 13px; }
.chart .value { fill: var(--ink); font-variant-numeric: tabular-nums; }
.chart .axis { fill: var(--dim); }
.chart .grid { stroke: var(--line); }
.chart .origin { stroke: var(--ink); stroke-width: 1.5; }
.chart .whisker { stroke: var(--ink); stroke-width: 1.5; opacity: .7; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; list-style: none; margin: 0 0 .75rem; padding: 0; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .45em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 1rem 0 .5rem; font-weight: 600; }
th, td { text-align: right; padding: .45rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; }
th:first-child { text-align: left; font-weight: 600; white-space: normal; min-width: 10rem; }
td small, th small { display: block; color: var(--dim); font-weight: 400; font-size: .85em; }
td.text { text-align: left; white-space: normal; }
td.failed { color: var(--failed); font-weight: 600; }
td.unsupported { color: var(--dim); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0; }
dt { color: var(--dim); }
dd { margin: 0; overflow-wrap: anywhere; }
code { font: .9em ui-monospace, monospace; background: var(--card); padding: .1em .3em; border-radius: 3px; }
"""
SERIES = 12  # colours in STYLE


def page(report: Report) -> str:
    """The whole file."""
    parts = [
        _head(report),
        _charts(report),
        _tables(report),
        _exits(report),
        notes_list(Notes(report)),
    ]
    return document("vtk compare: virtualization techniques on the same work", parts, report)


def document(title: str, parts: Iterable[str], report: Report) -> str:
    """A file of `parts`, then the host, the run, and the results as data."""
    data = to_json(report).replace("<", "\\u003c")  # inside strings only, where JSON allows it; no `</script>` is left
    series = "".join(f".s{number} {{ fill: var(--s{number}); }}" for number in range(SERIES))
    return "".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            f"<title>{escape(title)}</title>\n",
            f"<style>{STYLE}{series}</style>\n</head>\n<body>\n<main>\n",
            *parts,
            _facts("The host", report.host),
            _facts("The run", report.run),
            f'<script type="application/json" id="results">\n{data}</script>\n',
            "</main>\n</body>\n</html>\n",
        ]
    )


def _head(report: Report) -> str:
    lines = "".join(f'<p class="dim">{escape(line)}</p>\n' for line in footer(report)[1:])
    return (
        "<h1>One work, every technique</h1>\n"
        "<p>The same workloads, timed by the host from outside, under each technique of virtualization that this "
        "machine has.</p>\n"
        f"{lines}"
    )


def _legend(techniques: list[tuple[int, str]]) -> str:
    summaries = {technique: BY_NAME[technique].summary for _, technique in techniques if technique in BY_NAME}
    return legend(techniques, summaries)


def legend(series_of: Iterable[tuple[int, str]], summaries: Mapping[str, str]) -> str:
    """Which colour is what, with a line on each."""
    items = []
    for series, technique in series_of:
        summary = summaries.get(technique, "")
        text = f"<strong>{escape(technique)}</strong> <span class='dim'>{escape(summary)}</span>"
        items.append(f'<li><span class="swatch" style="background: var(--s{series})"></span>{text}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>\n'


def _charts(report: Report) -> str:
    series = [(number % SERIES, technique) for number, technique in enumerate(report.techniques)]
    rest = [(number, technique) for number, technique in series if technique != REFERENCE]
    compared, alone = [], []
    for workload in report.workloads:
        reference = report.find(REFERENCE, workload)
        literature = other_name(workload)
        if reference is not None and reference.estimate is not None:
            compared.append(charts.Group(workload, literature, _ratios(report, reference, rest)))
        else:
            alone.append(charts.Group(workload, literature, _times(report, workload, rest)))
    parts = []
    ratios = charts.bar_chart(
        "chart-ratios",
        "Time of one operation as a multiple of native, logarithmic",
        compared,
        "{:g}×".format,
        origin=1.0,
    )
    if ratios:
        parts += [
            "<h2>How many times as long as natively</h2>\n",
            "<p>Time of one operation over the time of the same operation in an ordinary process. Shorter is better; ",
            "each grid line is ten times the one before.</p>\n",
            f"<figure>{_legend(rest)}{ratios}</figure>\n",
        ]
    times = charts.bar_chart("chart-times", "Time of one operation, logarithmic", alone, quantity.round_time)
    if times:
        parts += [
            "<h2>What was not measured natively</h2>\n",
            "<p>An ordinary process has no control registers, ports or devices of its own, so these have no 1.0: ",
            "the time of one operation, each grid line ten times the one before.</p>\n",
            f"<figure>{_legend(rest)}{times}</figure>\n",
        ]
    return "".join(parts)


def _ratios(report: Report, reference: Result, series: list[tuple[int, str]]) -> list[charts.Bar]:
    bars = []
    for number, technique in series:
        result = report.find(technique, reference.workload)
        measured = result.estimate if result is not None else None
        base = reference.estimate
        compared = ratio(measured, base) if measured is not None and base is not None else None
        if measured is None or compared is None:
            bars.append(absent(number, technique, result))
            continue
        value = quantity.times(compared.median)
        label = f"{value} {quantity.spread(compared.spread)}"
        title = f"{reference.workload} under {technique}: {value} native, {quantity.time(measured.median)} an operation"
        low, high = compared.median - compared.mad, compared.median + compared.mad
        bars.append(charts.Bar(number, compared.median, low, high, label, title))
    return bars


def _times(report: Report, workload: str, series: list[tuple[int, str]]) -> list[charts.Bar]:
    bars = []
    for number, technique in series:
        result = report.find(technique, workload)
        measured = result.estimate if result is not None else None
        if measured is None:
            bars.append(absent(number, technique, result))
            continue
        value = quantity.time(measured.median)
        label = f"{value} {quantity.spread(measured.spread)}"
        low, high = measured.median - measured.mad, measured.median + measured.mad
        bars.append(charts.Bar(number, measured.median, low, high, label, f"{workload} under {technique}: {value}"))
    return bars


def absent(number: int, technique: str, result: Result | None) -> charts.Bar:
    """The place of a bar that there is none for."""
    status = result.status.value if result is not None else "not measured"
    return charts.Bar(number, None, 0.0, 0.0, f"{technique}: {status}", "")


def _tables(report: Report) -> str:
    notes = Notes(report)
    caption = (
        f"<p class='dim'>{escape(footer(report)[0])} Exits: from the guest to its hypervisor, an operation; of "
        "translated code to its translator. In brackets, the names of Adams and Agesen's nanobenchmarks (ASPLOS 2006)."
        "</p>\n"
    )
    return f"<h2>All figures</h2>\n{caption}" + "".join(
        _table(report, title, techniques, notes) for title, techniques in groups(report)
    )


def _table(report: Report, title: str, techniques: tuple[str, ...], notes: Notes) -> str:
    head = "".join(f'<th scope="col">{escape(technique)}</th>' for technique in techniques)
    rows = []
    for workload in report.workloads:
        reference = report.find(REFERENCE, workload)
        cells = "".join(_cell(report.find(technique, workload), reference, notes) for technique in techniques)
        literature = other_name(workload)
        about = operation(workload) + (f" ({literature})" if literature else "")
        rows.append(f'<tr><th scope="row">{escape(workload)}<small>{escape(about)}</small></th>{cells}</tr>\n')
    return (
        f'<div class="scroll"><table>\n<caption>{escape(title or "Time of one operation")}</caption>\n'
        f'<thead><tr><th scope="col">workload</th>{head}</tr></thead>\n<tbody>\n{"".join(rows)}</tbody></table></div>\n'
    )


def _cell(result: Result | None, reference: Result | None, notes: Notes) -> str:
    if result is None:
        return "<td>not measured</td>"
    measured = result.estimate
    if measured is None:
        return f'<td class="{result.status.value}">{result.status.value}<small>note {notes.number(result)}</small></td>'
    by_reason = reasons(result)
    tip = f' title="{escape(by_reason)}"' if by_reason else ""
    more = " · ".join(details(result, reference))
    return (
        f"<td{tip}>{escape(quantity.time(measured.median))} <span class='dim'>{quantity.spread(measured.spread)}</span>"
        f"<small>{escape(more)}</small></td>"
    )


def _exits(report: Report) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(result.workload)}</th><td class="text">{escape(result.technique)}</td>'
        f'<td class="text">{escape(reasons(result))}</td></tr>\n'
        for result in explained(report)
    )
    if not rows:
        return ""
    return (
        "<h2>Exits by reason</h2>\n<details><summary>The exits of an operation, and a domain's hypercalls by name, as "
        f'far as they are counted</summary>\n<div class="scroll"><table>\n{rows}</table></div></details>\n'
    )


def notes_list(notes: Notes) -> str:
    """Why cells have no figure, as the notes of a table."""
    items = []
    for number, status, cells, reason, remedy in notes:
        style = "failed" if status is Status.FAILED else "unsupported"
        mend = f" Try: <code>{escape(remedy)}</code>" if remedy else ""
        items.append(
            f'<li value="{number}" class="{style}"><strong>{status.value}</strong>: {escape(cells)}: '
            f"{escape(reason)}{mend}</li>\n"
        )
    return f"<h2>Notes</h2>\n<ol>{''.join(items)}</ol>\n" if items else ""


def _facts(title: str, facts: dict[str, object]) -> str:
    rows = "".join(
        f"<dt>{escape(str(name).replace('_', ' '))}</dt><dd>{escape(_plain(value))}</dd>\n"
        for name, value in facts.items()
    )
    return f"<h2>{title}</h2>\n<dl>{rows}</dl>\n" if rows else ""


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(entry)}" for name, entry in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None or value == "" else str(value)
