"""The tables and the page of hardware say what was found, in people's units, and nothing a guest said harms them."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from toolkit.compare.linux.html import page
from toolkit.compare.linux.report import compared, figure, render
from toolkit.compare.linux.results import BYTES, Row, from_json
from toolkit.compare.linux.works import BY_NAME, SLEEP_NS
from toolkit.compare.results import Report, ResultsError, Status, to_json

HOSTILE = '</script><script>alert(1)</script><b>bold</b> [red]rich[/red] & "q"'


def row(table: str, technique: str, workload: str, median: float, **more: object) -> Row:
    measured = Row(
        technique,
        workload,
        Status.OK,
        median=median,
        mad=median / 50,
        samples=(median,),
        iterations=8,
        checksum="0123456789abcdef",
        table=table,
        accelerator="tcg",
    )
    return replace(measured, **more)  # type: ignore[arg-type]


def missing(table: str, technique: str, workload: str, status: Status, reason: str, accelerator: str = "tcg") -> Row:
    return Row(technique, workload, status, reason=reason, remedy="mend it", table=table, accelerator=accelerator)


def sample() -> Report:
    rows = [
        row("disk", "ide", "disk-read", 2e6, device={"driver": "ata_piix", "pci": "0000:00:01.1"}),
        row("disk", "virtio-blk", "disk-read", 1e6, device={"driver": "virtio_blk", "name": HOSTILE}),
        missing("disk", "nvme", "disk-read", Status.FAILED, HOSTILE),
        row("disk", "ide", "disk-random", 500_000.0),
        row("together", "process", "memory", 100 << 10, unit=BYTES, checksum=None),
        row("together", "microvm", "memory", 41 << 20, unit=BYTES, checksum=None),
    ]
    rows += (
        missing("clock", column, "clock", Status.UNSUPPORTED, "no VMX here", "kvm")
        for column in BY_NAME["clock"].columns
    )
    return Report({"cpu": "A <CPU>"}, {"samples": 5, "seconds": 61.2, "interrupted": False}, tuple(rows))


def printed(report: Report, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    for part in render(report):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_report_survives_being_written_and_read() -> None:
    report = sample()

    assert from_json(to_json(report)) == report


@pytest.mark.parametrize(
    "wrong", [{"table": "tape"}, {"accelerator": ""}, {"unit": "furlongs"}, {"device": {"pci": 3}}, {"median": None}]
)
def test_a_report_that_is_none_is_refused(wrong: dict[str, object]) -> None:
    document = json.loads(to_json(sample()))
    document["results"][0] |= wrong

    with pytest.raises(ResultsError):
        from_json(json.dumps(document))


def test_figures_are_in_the_units_of_their_work() -> None:
    disk, net, together = BY_NAME["disk"], BY_NAME["net"], BY_NAME["together"]

    assert figure(disk.work("disk-read"), row("disk", "ide", "disk-read", 2e6)) == "500 MiB/s"
    assert figure(disk.work("disk-random"), row("disk", "ide", "disk-random", 500_000.0)) == "2000 IOPS"
    assert figure(net.work("net-roundtrip"), row("net", "e1000", "net-roundtrip", 125_000.0)) == "125 µs"
    assert figure(net.work("net-send"), row("net", "e1000", "net-send", 10_000.0)) == "100000 packets/s"
    assert figure(together.work("memory"), row("together", "process", "memory", 41 << 20)) == "41.0 MiB"


def test_a_sleep_is_told_by_how_much_it_is_late() -> None:
    sleep = BY_NAME["machine"].work("sleep")
    pc, microvm = (row("machine", name, "sleep", SLEEP_NS + late) for name, late in (("pc", 200e3), ("microvm", 100e3)))

    assert figure(sleep, pc) == "200 µs"
    ratio = compared(sleep, microvm, pc)
    assert ratio is not None
    assert ratio.median == pytest.approx(2.0)


def test_a_ratio_above_one_is_faster_of_time_and_more_of_memory() -> None:
    text = printed(sample())

    assert "2.00×" in text  # 1 ms where IDE takes 2 ms
    assert "420×" in text  # 41 MiB where a process takes 100 KiB


def test_a_whole_table_that_cannot_be_had_is_one_note_and_no_table() -> None:
    text = printed(sample())

    assert "Clocksource" not in text
    assert "unsupported: all of clock under kvm: no VMX here" in text


def test_a_failed_cell_has_no_figure_and_its_reason_is_told_as_it_is() -> None:
    text = printed(sample(), width=200)

    assert "failed [1]" in text
    assert HOSTILE in text


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_is_one_file_and_what_a_guest_said_is_only_text_in_it() -> None:
    text = page(sample())
    tags = Tags()
    tags.feed(text)

    assert tags.links == []
    assert tags.seen.count("script") == 1  # the data
    assert "b" not in tags.seen
    assert "svg" in tags.seen
    assert from_json(text.split('id="results">\n')[1].split("</script>")[0]) == sample()
