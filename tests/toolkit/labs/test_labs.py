"""Every lab: it holds here, its page says what it prints, and `vtk lab` says how it went."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minivmm.errors import KvmMissing
from toolkit.cli import ExitStatus, invoke
from toolkit.labs.host import this_host
from toolkit.labs.registry import MODULES, SECTIONS, Lab, labs
from toolkit.labs.run import Status, run
from toolkit.labs.verdict import Check, Verdict

PAGES = Path(__file__).parents[3] / "docs" / "labs"


@pytest.fixture
def lab_of(monkeypatch: pytest.MonkeyPatch) -> object:
    """A table with one lab, called `made-up`, that ends as the test says."""

    def enter(*checks: Check) -> None:
        lab = Lab("made-up", "an idea", lambda _host: Verdict(checks))
        monkeypatch.setattr("toolkit.labs.registry._LABS", {"made-up": lab})
        monkeypatch.setattr("toolkit.labs.registry.MODULES", ())

    return enter


@pytest.mark.kvm
@pytest.mark.parametrize("name", labs())
def test_the_claim_holds_and_the_page_has_its_statements(name: str) -> None:
    result = run(labs()[name], this_host())
    assert result.status is Status.HOLDS, result
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert [check.statement for check in result.verdict.checks if check.statement not in page] == []
    assert [table.title for table in result.verdict.tables if table.title not in page] == []


def test_every_lab_states_its_claim_its_experiment_and_its_source() -> None:
    assert len(labs()) == len(MODULES)
    for lab in labs().values():
        assert tuple(lab.sections) == SECTIONS, lab.name
        assert all(lab.sections.values())


def test_a_verdict_without_a_statement_does_not_hold() -> None:
    assert not Verdict(()).holds
    assert Verdict((Check("one", True, ""),)).holds
    assert not Verdict((Check("one", True, ""), Check("two", False, ""))).holds


# -- the command


def test_the_list_has_a_line_a_lab(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["lab", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(labs())
    assert invoke(["lab", "list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert [set(entry) for entry in document["labs"]] == [{"name", "idea", "claim", "experiment", "source"}] * len(
        labs()
    )


@pytest.mark.parametrize("name", labs())
def test_show_prints_the_page(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["lab", "show", name]) == 0
    assert capsys.readouterr().out == (PAGES / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "nonsense"], ["run", "hypercalls", "--all"], ["show", "nonsense"]]
)
def test_wrong_usage_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["lab", *arguments]) == ExitStatus.USAGE
    told = capsys.readouterr()
    assert told.out == ""
    assert "Error: " in told.err


@pytest.mark.parametrize(("holds", "status"), [(True, ExitStatus.OK), (False, ExitStatus.FAILED)])
def test_the_exit_status_is_the_verdict(lab_of, holds: bool, status: int, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    lab_of(Check("water is wet", holds, "wet"))
    assert invoke(["lab", "run", "made-up"]) == status
    told = capsys.readouterr().out
    assert f"the claim {'holds' if holds else 'fails'}" in told
    assert "\x1b" not in told
    assert invoke(["lab", "run", "--all", "--json"]) == status
    (entry,) = json.loads(capsys.readouterr().out)["labs"]
    assert entry["status"] == ("holds" if holds else "fails")
    assert entry["checks"] == [{"statement": "water is wet", "holds": holds, "seen": "wet"}]


def test_without_kvm_a_lab_is_unsupported_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: object) -> None:
        raise KvmMissing("there is no /dev/kvm", cause="no module", remedy="sudo modprobe kvm")

    monkeypatch.setattr("minivmm.kvm.system.Kvm.__init__", missing)
    assert invoke(["lab", "run", "--all", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["labs"]}
    assert entries.pop("translation")["status"] == "holds"  # the one that needs no KVM
    assert {entry["status"] for entry in entries.values()} == {"unsupported"}
    assert {entry["remedy"] for entry in entries.values()} == {"sudo modprobe kvm"}
    assert invoke(["lab", "run", "hypercalls"]) == ExitStatus.HOST
    assert "unsupported: there is no /dev/kvm" in capsys.readouterr().out


def test_completion_offers_the_labs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_VTK_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "vtk lab run ev")
    monkeypatch.setenv("COMP_CWORD", "3")
    invoke([])
    assert capsys.readouterr().out.split() == ["plain,event-channels"]
