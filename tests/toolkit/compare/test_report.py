"""The table and the page say what was found, and nothing that came from a guest can change what they are."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from rich.console import Console

from toolkit.compare import charts
from toolkit.compare.html import page
from toolkit.compare.report import Notes, concerned, render
from toolkit.compare.results import Report, Result, Status, from_json
from toolkit.compare.techniques import FAMILIES
from toolkit.compare.techniques import TECHNIQUES as ALL_TECHNIQUES

HOSTILE = "</script><script>alert(1)</script><img src=x> & \"quoted\" 'too' [bold]rich[/bold]"
TECHNIQUES = ("native", "hvm", "qemu-kvm", "qemu-tcg")


def measured(technique: str, workload: str, ns: float, **more: float) -> Result:
    return Result(
        technique,
        workload,
        Status.OK,
        median=ns,
        mad=ns / 50,
        samples=(ns, ns * 1.02, ns * 0.98),
        iterations=1000,
        checksum="0123456789abcdef",
        exits=more,
    )


def sample_report() -> Report:
    results = [
        measured(name, workload, base * factor, **({"exits": 1.5, "io_exits": 1.0} if factor > 5 else {}))
        for workload, base in (("cpu", 1.2e6), ("syscall", 72.3), ("blk-rand", 9800.0))
        for name, factor in zip(TECHNIQUES, (1.0, 0.7, 16.7, 1234.5), strict=True)
    ]
    results += [
        Result("native", "cr", Status.UNSUPPORTED, reason="a process has no control registers"),
        measured("hvm", "cr", 512.0),
        Result("qemu-kvm", "cr", Status.FAILED, reason=HOSTILE, remedy="<b>mend</b>"),
        Result("qemu-tcg", "cr", Status.FAILED, reason=HOSTILE, remedy="<b>mend</b>"),
    ]
    return Report({"cpu": "A <CPU>", "cpus": "2"}, {"samples": 5, "target_ms": 15, "seconds": 61.2}, tuple(results))


def printed(report: Report, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    for part in render(report):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_fits_100_columns_and_says_what_was_found() -> None:
    text = printed(sample_report())

    assert max(map(len, text.splitlines())) <= 100
    for expected in (
        "72.3 ns ±2.0%",
        "50.6 ns",
        "0.700×",
        "16.7×",
        "1230×",
        "1.50 exits",
        "cr8wr",
        "failed [2]",
        "2 CPUs",
    ):
        assert expected in text
    assert "…" not in text
    assert "[2] failed: qemu-kvm (cr); qemu-tcg (cr): " in text
    assert "5 samples of at least 15 ms a cell · 1 min 1 s in all" in text


def five_techniques() -> Report:
    report = sample_report()
    exits = {"exits": 1.5, "hypercall_update_va_mapping": 1.0, "irq_exits": 0.001}
    return replace(report, results=(*report.results, measured("paravirt", "syscall", 1234.5, **exits)))


def test_a_fifth_technique_still_fits_100_columns() -> None:
    lines = printed(five_techniques()).splitlines()

    assert max(map(len, lines)) <= 100
    assert not any("…" in line for line in lines)
    assert [line.split() for line in lines if "17.1×" in line] == [["0.700×", "16.7×", "1230×", "17.1×"]]
    assert any(line.split()[-1:] == ["exits"] for line in lines)


def test_many_techniques_are_a_table_for_each_family_with_native_in_each() -> None:
    results = [measured(technique.name, "cpu", 123456.0 * 10**n) for n, technique in enumerate(ALL_TECHNIQUES)]
    report = Report({}, {}, (*results, measured("of another version", "cpu", 1.0)))
    lines = printed(report).splitlines()

    heads = [line.split()[1:] for line in lines if line.split()[:1] == ["workload"]]
    assert max(map(len, lines)) <= 100
    assert not any("…" in line for line in lines)
    assert [head[0] for head in heads] == ["native"] * 4
    assert [name for head in heads[:3] for name in head[1:]] == [technique.name for technique in ALL_TECHNIQUES[1:]]
    assert heads[3][1:] == ["of", "another", "version"]
    for family in FAMILIES:
        assert family.title in lines[0] or any(line.startswith(family.title) for line in lines)
        assert f"<caption>{family.title}</caption>" in page(report)


def test_exits_by_reason_are_told_where_they_are_told_apart() -> None:
    console = Console(file=io.StringIO(), width=100, highlight=False)
    for part in render(five_techniques(), by_reason=True):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()

    assert re.search(r"syscall +paravirt +exits 1\.50, hypercall_update_va_mapping 1\.00 *$", text, re.MULTILINE)
    assert "irq_exits" not in text
    assert "hypercall_update_va_mapping" not in printed(five_techniques())
    assert '<td class="text">exits 1.50, hypercall_update_va_mapping 1.00</td>' in page(five_techniques())


def test_a_reason_is_printed_as_it_is() -> None:
    assert "[bold]rich[/bold]" in printed(sample_report(), width=400)


def test_an_empty_and_a_partial_report_are_printed() -> None:
    assert "native = 1.00×" in printed(Report({}, {}))
    assert "interrupted" in printed(Report({}, {"samples": 1, "interrupted": True}))
    assert "not measured" in printed(Report({}, {}, (measured("native", "cpu", 1.0), measured("hvm", "cr", 1.0))))


def test_one_reason_is_one_note() -> None:
    results = [Result("hvm", f"w{number}", Status.UNSUPPORTED, reason="no KVM") for number in range(9)]
    (note,) = Notes(Report({}, {}, tuple(results)))

    assert note == (1, Status.UNSUPPORTED, "hvm (9 workloads)", "no KVM", "")
    assert concerned(results[:2]) == "hvm (w0, w1)"


VOID = {"meta", "br", "img", "link", "input"}


class Reader(HTMLParser):
    """Checks that every element is closed in order; collects what could reach outside, and the embedded data."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.scripts: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action") or name.startswith("on"):
                self.outside.append(f"{tag} {name}={value}")
        if tag == "script":
            assert ("type", "application/json") in attrs
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        if self.open and self.open[-1] == "style":
            assert "url(" not in data
            assert "@import" not in data


def test_the_page_is_well_formed_and_needs_nothing_else() -> None:
    report = sample_report()
    reader = Reader()
    reader.feed(page(report))
    reader.close()

    assert reader.open == []
    assert reader.outside == []
    assert {"svg", "table", "h1", "dl", "caption"} <= reader.seen
    assert not {"img", "link", "iframe", "object"} & reader.seen
    (embedded,) = reader.scripts
    assert from_json(embedded) == report


def test_the_charts_are_xml_with_a_bar_for_every_figure() -> None:
    text = page(sample_report())
    drawings = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]

    assert [len(drawing.findall(".//rect")) for drawing in drawings] == [9, 1]  # native is the line at 1.00×
    assert all(drawing.find("title") is not None for drawing in drawings)


@pytest.mark.parametrize("value", [1e-9, 0.5, 1.0, 7.0, 1e3, 12345.6])
def test_bars_stay_on_the_picture(value: float) -> None:
    bar = charts.Bar(1, value, value / 2, value * 2, "x", "y")
    drawing = ElementTree.fromstring(charts.bar_chart("c", "t", [charts.Group("g", "", [bar])], str, origin=1.0))

    for rect in drawing.iter("rect"):
        left, width = float(rect.attrib["x"]), float(rect.attrib["width"])
        assert charts.LABELS <= left <= left + width <= charts.WIDTH - charts.VALUES + charts.LEAST


def test_a_page_without_results_is_a_page() -> None:
    reader = Reader()
    reader.feed(page(Report({}, {})))

    assert json.loads(reader.scripts[0])["results"] == []
    assert "svg" not in reader.seen
