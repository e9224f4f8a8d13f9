"""`vtk compare` as a user meets it: what it prints, writes, refuses, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from toolkit.compare.results import Report, Status, from_json, load

TIMEOUT = 120.0
QUICKLY = ["compare", "--quick", "--workload", "cpu", "--workload", "call"]


def command(techniques: Sequence[str], arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "tests.toolkit.compare.fake_vtk", *techniques, "--", *arguments]


def vtk(techniques: Sequence[str], arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(techniques, arguments), capture_output=True, text=True, timeout=TIMEOUT, check=False, env=environment()
    )


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
    return {**kept, "PYTHONPATH": os.getcwd(), **more}


def statuses(report: Report) -> list[tuple[str, str, Status]]:
    return [(result.technique, result.workload, result.status) for result in report.results]


def test_all_well_is_status_0_with_table_json_and_page(tmp_path: Path) -> None:
    files = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]

    done = vtk(["native", "hvm"], [*QUICKLY, *files])

    assert (done.returncode, done.stderr) == (0, "")
    assert "callret" in done.stdout
    assert "native = 1.00×" in done.stdout
    report = load(tmp_path / "r.json")
    assert len(statuses(report)) == 4
    assert {status for *_, status in statuses(report)} == {Status.OK}
    assert report.run["samples"] == 5
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")


def test_json_on_stdout_is_alone_there() -> None:
    done = vtk(["native"], [*QUICKLY, "--json", "-", "--samples", "1"])

    assert done.returncode == 0
    assert [len(result.samples) for result in from_json(done.stdout).results] == [1, 1]
    assert "native = 1.00×" in done.stderr


def test_a_failed_cell_is_status_1_and_the_rest_is_measured() -> None:
    done = vtk(["native", "hvm,lie:cpu"], [*QUICKLY, "--json", "-"])

    assert done.returncode == 1
    assert [status.value for *_, status in statuses(from_json(done.stdout))] == ["ok", "failed", "ok", "ok"]
    assert "wrong checksum" in done.stderr


def test_nothing_to_measure_with_is_status_3_with_the_reason_and_the_mend() -> None:
    done = vtk(["hvm,absent"], QUICKLY)

    assert done.returncode == 3
    assert "no such thing here" in done.stdout
    assert "try: buy one" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--technique", "vmware"], "'native', 'container', 'wasm', 'hvm', 'paravirt'"),
        (["--workload", "boot"], "'cpu', 'memory', 'call'"),
        (["--samples", "0"], "'--samples'"),
        (["--samples", "many"], "'--samples'"),
        (["--json", "/nonexistent/r.json"], "cannot be written: No such file or directory"),
        (["--html", "/"], "cannot be written: Is a directory"),
        (["--html", "/proc/version/x"], "cannot be written: Not a directory"),
        (["--json", "a\0b"], "cannot be written"),
        (["--json", "-", "--html", "-"], "cannot both go to the standard output"),
        (["extra"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_status_2_and_nothing_is_measured(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import toolkit.cli.compare
    from toolkit.cli import invoke

    monkeypatch.setattr(toolkit.cli.compare, "_measure", lambda *_: pytest.fail("it measured"))

    status = invoke(["compare", *arguments])

    assert status == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_file_of_ours_is_not_left_behind_when_another_is_refused(tmp_path: Path) -> None:
    from toolkit.cli import invoke

    kept = tmp_path / "kept.json"
    kept.write_text("before")
    files = ["--json", str(kept), "--html", str(tmp_path / "new.html")]

    assert invoke(["compare", *files, "--samples", "0"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]
    assert kept.read_text() == "before"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_keeps_and_writes_what_was_measured(tmp_path: Path, number: int, status: int) -> None:
    asleep = tmp_path / "asleep"
    arguments = command(
        ["native", "hvm,sleep:call"], [*QUICKLY, "--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]
    )
    with subprocess.Popen(
        arguments,
        env=environment(FAKE_BENCH_ASLEEP=str(asleep)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        until = time.monotonic() + TIMEOUT
        while not asleep.exists() and running.poll() is None and time.monotonic() < until:
            time.sleep(0.01)

        running.send_signal(number)
        output, errors = running.communicate(timeout=TIMEOUT)

    assert (running.returncode, errors) == (status, "")
    report = load(tmp_path / "r.json")
    assert statuses(report) == [("native", "cpu", Status.OK), ("hvm", "cpu", Status.OK)]
    assert report.run["interrupted"] is True
    assert "interrupted: not all was measured" in output
    assert (tmp_path / "r.html").read_text().endswith("</html>\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int(asleep.read_text()), 0)
