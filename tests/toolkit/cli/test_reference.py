"""docs/cli.md says what the program does."""

from __future__ import annotations

from pathlib import Path

from minivmm.outcome import Outcome
from toolkit.cli import COMMANDS, ExitStatus
from toolkit.host import REQUIRABLE

PAGE = (Path(__file__).parents[3] / "docs" / "cli.md").read_text(encoding="utf-8")


def test_every_command_is_in_the_reference() -> None:
    assert [name for name in COMMANDS if f"`vtk {name}" not in PAGE] == []


def test_every_exit_status_is_in_the_reference() -> None:
    assert [status for status in ExitStatus if f"\n| {status.value} | " not in PAGE] == []


def test_every_outcome_is_in_the_reference_with_its_status() -> None:
    rows = {
        outcome: f"| {'1–19' if outcome is Outcome.EXITED else outcome.exit_status} | `{outcome.value}` |"
        for outcome in Outcome
    }
    assert [outcome for outcome, row in rows.items() if row not in PAGE] == []


def test_everything_that_can_be_required_is_in_the_reference() -> None:
    assert [name for name in REQUIRABLE if f"`{name}`" not in PAGE] == []
