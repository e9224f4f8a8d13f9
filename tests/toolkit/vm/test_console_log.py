"""A guest that talks for ever does not fill the host's disk, and what it said last is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toolkit.vm.conftest import MakeMachine
from toolkit.cli import ExitStatus, invoke
from toolkit.vm import console_log
from toolkit.vm.waiting import wait


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_log, "KEPT", 64 << 10)
    monkeypatch.setattr(console_log, "SLACK", 64 << 10)


def occupied(file: Path) -> int:
    return file.stat().st_blocks * 512


def test_the_oldest_goes_and_the_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    with log.open("wb") as writer:
        for count in range(100_000):
            writer.write(b"%09d\n" % count)
        writer.flush()
        console_log.bound(log)
        assert occupied(log) <= 72 << 10
        writer.write(b"end\n")
    with log.open("rb") as reader:
        start = console_log.seek(reader, 0)
        assert 900_000 < start < 1_000_000
        lines = reader.read().splitlines()
    assert lines[-2:] == [b"000099999", b"end"]


def test_a_short_one_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(b"x" * (128 << 10))
    console_log.bound(log)
    assert log.read_bytes() == b"x" * (128 << 10)
    console_log.bound(tmp_path / "absent")


def test_a_reader_is_taken_to_what_is_left_and_never_back(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(b"x" * (1 << 20))
    console_log.bound(log)
    with log.open("rb") as reader:
        assert console_log.seek(reader, 0) == (1 << 20) - (64 << 10)
        assert console_log.seek(reader, (1 << 20) - 5) == (1 << 20) - 5
        assert console_log.seek(reader, 1 << 20) == 1 << 20  # at its end


def test_whoever_looks_at_a_machine_bounds_its_log(
    make: MakeMachine, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    machine = make()
    log = machine.directory / "console.log"
    log.write_bytes(b"old\n" + b"x" * (1 << 20) + b"\nlast line\n")
    machine.status()
    assert occupied(log) <= 72 << 10
    assert wait(machine, "console:last line", 10.0) == "last line"
    capfdbinary.readouterr()
    assert invoke(["vm", "logs", "a"]) == ExitStatus.OK
    said = capfdbinary.readouterr().out
    assert said.startswith(b"x")
    assert said.endswith(b"last line\n")
    assert len(said) < 72 << 10
