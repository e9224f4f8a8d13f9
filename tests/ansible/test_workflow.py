"""The workflow shown in docs/ci.md is what README.md says to do."""

from __future__ import annotations

from typing import Any

import yaml

from tests.docs.documents import ROOT, blocks, commands

PAGE = ROOT / "docs" / "ci.md"


def workflow() -> dict[Any, Any]:
    (shown,) = [block for block in blocks(PAGE) if block.language == "yaml"]
    content = yaml.safe_load(shown.text)
    assert isinstance(content, dict)
    return content


def steps() -> list[dict[str, Any]]:
    return [step for job in workflow()["jobs"].values() for step in job["steps"]]


def test_its_steps_are_the_commands_of_the_readme() -> None:
    readme = {command for command, block in commands() if block.document.name == "README.md"}
    lines = [line for step in steps() for line in step.get("run", "").splitlines()]
    assert "make test PYTEST_ARGS=--require-kvm" in lines
    assert set(lines) <= readme, "a step of docs/ci.md that README.md does not show"


def test_it_is_a_workflow() -> None:
    content = workflow()
    assert True in content  # YAML 1.1 reads the key `on` as true
    for job in content["jobs"].values():
        assert job["runs-on"]
        assert 0 < job["timeout-minutes"] <= 120
    assert all(("uses" in step) != ("run" in step) for step in steps())
