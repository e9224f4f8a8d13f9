"""What a technique may do wrong is the failure of its own cells, with the right reason, and of nothing else."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from toolkit.compare.cell import Settings
from toolkit.compare.results import Result, Status
from toolkit.compare.runner import Comparison
from toolkit.compare.session import ProcessSession, Session, SessionEnded
from toolkit.compare.techniques import Bench, Obstacle, Technique

FAKE = Path(__file__).with_name("fake_bench.py")
SETTINGS = Settings(target=0.01, samples=3, markers=2, deadline=60.0, budget=600.0)
ENDLESS = ("sleep", "flood-text", "flood-line")  # vices that only a deadline ends
IMPATIENT = replace(SETTINGS, deadline=2.0)


class Scripted:
    """A technique made of fake_bench.py with the vices given."""

    summary = "a fake"

    def __init__(self, name: str, *vices: str) -> None:
        self.name = name
        self.opened: list[Session] = []
        self._vices = vices

    def obstacle(self) -> Obstacle | None:
        return Obstacle("no such thing here", "buy one") if "absent" in self._vices else None

    def open(self, bench: Bench) -> Session:  # noqa: ARG002 - a fake needs no disk
        self.opened.append(ProcessSession([sys.executable, "-S", FAKE, *self._vices]))
        return self.opened[-1]


def compare(
    techniques: Sequence[Technique], workloads: Sequence[str] = ("cpu",), settings: Settings = SETTINGS
) -> dict[tuple[str, str], Result]:
    bench = Bench(Path(tempfile.gettempdir()), 1 << 20, 60.0)
    results: list[Result] = []
    Comparison(techniques, workloads, bench, settings, results, lambda *_: None).run()
    assert len(results) == len(techniques) * len(workloads)
    return {(result.technique, result.workload): result for result in results}


def test_an_honest_technique_is_measured() -> None:
    result = compare([Scripted("native")])["native", "cpu"]

    assert result.status is Status.OK
    assert len(result.samples) == 3
    assert result.iterations % 10 == 0
    assert result.checksum == "00000000deadbeef"
    assert result.median is not None
    assert result.median * result.iterations >= SETTINGS.target * 1e9 / 2


@pytest.mark.parametrize(
    ("vice", "reason"),
    [
        ("die", "killed by SIGABRT; its last words: kernel panic: a wild pointer"),
        ("sleep", "no answer in time"),
        ("flood-text", "no answer in time, but"),
        ("flood-line", "no answer in time"),
        ("flood-json", "the end line of cpu expected"),
        ("refuse", "no disk"),
        ("waver", "the checksum changes from run to run"),
        ("no-checksum", '"none" is no checksum'),
        ("boast", "no number of operations"),
        ("instant", "batches take no time"),
        ("lie", "wrong checksum: ffffffffffffffff, where native computed 00000000deadbeef"),
    ],
)
def test_a_vice_fails_its_own_cell_and_no_other(vice: str, reason: str) -> None:
    wicked = Scripted("wicked", f"{vice}:cpu")

    results = compare([Scripted("native"), wicked], ["cpu", "call"], IMPATIENT if vice in ENDLESS else SETTINGS)

    assert results["wicked", "cpu"].status is Status.FAILED
    assert reason in results["wicked", "cpu"].reason
    assert results["wicked", "cpu"].median is None
    assert results["wicked", "call"].reason == ""
    assert [results["native", name].reason for name in ("cpu", "call")] == ["", ""]


def test_a_technique_that_never_starts_is_given_up() -> None:
    dead = Scripted("dead", "dead-on-arrival")

    results = compare([dead], ["cpu", "call", "syscall", "cr"])

    assert {result.status for result in results.values()} == {Status.FAILED}
    assert "status 7; its last words: panic: no memory" in results["dead", "cpu"].reason
    assert "given up after 3 lost sessions" in results["dead", "cr"].reason
    assert len(dead.opened) == 3


def test_a_mute_technique_costs_one_deadline() -> None:
    results = compare([Scripted("mute", "mute"), Scripted("native")], settings=IMPATIENT)

    assert results["mute", "cpu"].reason == "no answer in time"
    assert results["native", "cpu"].status is Status.OK


def test_garbage_before_the_ready_line_is_told() -> None:
    result = compare([Scripted("noisy", "garbage")])["noisy", "cpu"]

    assert result.status is Status.FAILED
    assert "not JSON" in result.reason


def test_what_a_technique_cannot_do_is_unsupported() -> None:
    results = compare([Scripted("native"), Scripted("missing", "absent")], ["cr", "mmio"])

    assert results["native", "cr"].status is Status.UNSUPPORTED
    assert results["native", "cr"].reason == "a process has no control registers"
    assert results["native", "mmio"].reason == "the bench program has no such workload"
    assert results["missing", "cr"].status is Status.UNSUPPORTED
    assert results["missing", "cr"].remedy == "buy one"


def test_without_a_reference_the_majority_is_believed() -> None:
    results = compare([Scripted("a", "lie"), Scripted("b"), Scripted("c")])

    assert results["a", "cpu"].reason == "wrong checksum: ffffffffffffffff, where b, c computed 00000000deadbeef"
    assert results["b", "cpu"].status is Status.OK


def test_an_interrupted_comparison_keeps_what_it_has() -> None:
    def interrupt(done: int, total: int, _what: str) -> None:
        if done > total * 0.8:
            raise KeyboardInterrupt

    results: list[Result] = []
    fake = Scripted("native")
    comparison = Comparison([fake], ["cpu", "call"], Bench(Path(), 0, 1.0), SETTINGS, results, interrupt)

    with pytest.raises(KeyboardInterrupt):
        comparison.run()

    assert [(result.workload, len(result.samples)) for result in results] == [("cpu", 3), ("call", 2)]
    with pytest.raises(SessionEnded):
        fake.opened[0].send_line("quit")


class Counted(Session):
    """A session whose guest takes 3 exits a batch and 8 a marker pair, by a script without any clock."""

    def __init__(self) -> None:
        self._lines = [b'{"ready":"bench","workloads":["cpu"]}']
        self._now = 0
        self._exits = 0

    def send_line(self, line: str) -> None:
        batches = int(line.split()[2])
        self._exits += 8 + 3 * batches
        end = f'{{"end":"cpu","checksum":"00000000deadbeef","ops":{batches * 10}}}'
        self._lines += [b'{"begin":"cpu"}', str(500 + 2000 * batches).encode(), end.encode()]

    def read_line(self, deadline: float) -> tuple[int, bytes]:
        assert deadline > 0
        line = self._lines.pop(0)
        if line.isdigit():
            self._now += int(line)
            line = self._lines.pop(0)
        return self._now, line

    def exits(self) -> dict[str, int]:
        return {"exits": self._exits, "io_exits": self._exits - 1, "halt_exits": 0}

    def text(self) -> str:
        return ""

    def close(self) -> None:
        pass


class CountedTechnique(Scripted):
    """A technique of Counted sessions."""

    def open(self, bench: Bench) -> Session:  # noqa: ARG002 - a fake needs no disk
        return Counted()


def test_the_markers_time_and_exits_are_subtracted() -> None:
    result = compare([CountedTechnique("hvm")])["hvm", "cpu"]

    assert result.marker == 500
    assert result.median == 200
    assert result.exits == {"exits": pytest.approx(0.3), "io_exits": pytest.approx(0.3)}
