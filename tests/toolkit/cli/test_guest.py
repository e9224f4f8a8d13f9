"""`vtk guest`: what there is, and where it is built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toolkit.cli import ExitStatus, invoke


def test_the_list_has_a_line_a_guest(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["guest", "list"]) == 0
    assert any(line.startswith("hello") for line in capsys.readouterr().out.splitlines())


def test_the_list_is_had_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["guest", "list", "--json"]) == 0
    names = [guest["name"] for guest in json.loads(capsys.readouterr().out)["guests"]]
    assert "hello" in names


def test_a_built_guest_is_where_it_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["guest", "build", "hello", "--json"]) == 0
    path = Path(json.loads(capsys.readouterr().out)["built"]["hello"])
    assert path.read_bytes().startswith(b"\x7fELF")


def test_an_unknown_guest_is_refused_and_the_known_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["guest", "build", "nonsense"]) == ExitStatus.FAILED
    assert "hello" in capsys.readouterr().err


def test_a_build_that_takes_seconds_is_announced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guest_os.catalog.is_built", lambda: False)
    assert invoke(["guest", "build", "hello"]) == 0
    assert "building the guests" in capsys.readouterr().err
    monkeypatch.setattr("guest_os.catalog.is_built", lambda: True)
    assert invoke(["guest", "build", "hello"]) == 0
    assert capsys.readouterr().err == ""
