"""`vtk doctor`: the report, its JSON and what can be required."""

from __future__ import annotations

import json

import pytest

from toolkit.cli import ExitStatus, doctor, invoke
from toolkit.host import Fact, Host, State

FAKE = Host(
    (
        Fact("system", "cpu", State.OK, "a CPU"),
        Fact("kvm", "kvm", State.OK, "API 12"),
        Fact("kvm", "kvm-hw", State.WARN, "software", "slow", "another host"),
        Fact("qemu", "qemu", State.MISSING, "not installed", "not on PATH", "sudo apt install qemu-system-x86"),
    )
)


@pytest.fixture(autouse=True)
def _fake_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gather", lambda: FAKE)
    monkeypatch.setenv("NO_COLOR", "1")


def test_states_are_told_in_words_beside_the_marks(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["doctor"]) == 0
    shown = capsys.readouterr().out
    for word in ("ok", "warn", "missing", "sudo apt install qemu-system-x86"):
        assert word in shown
    assert "\x1b[" not in shown


@pytest.mark.parametrize(
    ("names", "status"),
    [
        (["kvm"], ExitStatus.OK),
        (["kvm-hw"], ExitStatus.REQUIRED_MISSING),
        (["qemu"], ExitStatus.REQUIRED_MISSING),
        (["kvm", "qemu"], ExitStatus.REQUIRED_MISSING),
        (["nonsense"], ExitStatus.USAGE),
    ],
)
def test_a_requirement_is_met_by_ok_alone(names: list[str], status: ExitStatus) -> None:
    assert invoke(["doctor", *(word for name in names for word in ("--require", name))]) == status


def test_an_unknown_requirement_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    invoke(["doctor", "--require", "nonsense"])
    assert "kvm-hw" in capsys.readouterr().err


def test_the_remedy_of_what_is_required_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    invoke(["doctor", "--json", "--require", "qemu"])
    assert "sudo apt install qemu-system-x86" in capsys.readouterr().err


def test_the_json_says_everything(capsys: pytest.CaptureFixture[str]) -> None:
    invoke(["doctor", "--json", "--require", "qemu", "--require", "kvm"])
    report = json.loads(capsys.readouterr().out)
    assert (report["schema"], report["required"], report["missing"]) == (1, ["qemu", "kvm"], ["qemu"])
    assert report["summary"]["cpu"] == "a CPU"
    assert report["facts"][2] == {
        "group": "kvm",
        "name": "kvm-hw",
        "state": "warn",
        "value": "software",
        "cause": "slow",
        "remedy": "another host",
    }
