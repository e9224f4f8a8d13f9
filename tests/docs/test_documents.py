"""Every command, example and table in README.md and docs/ is tried here, as written."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import guest_os
from minivmm import Outcome
from tests.docs.documents import DOCUMENTS, ROOT, Block, blocks, commands
from tests.minivmm.test_bzimage import bz_image

# Commands that take minutes as shown: the same command, asked for less. Each still runs as a whole.
SHORTENED = {
    "vtk compare": "vtk compare --quick --workload cpu --workload portin",
    "vtk compare --quick": "vtk compare --quick --workload cpu --workload portin",
    "vtk compare --json results.json --html report.html": (
        "vtk compare --quick --workload cpu --json results.json --html report.html"
    ),
    "vtk bench": "vtk bench exit-loop --rounds 1",
    "vtk bench life-cycle": "vtk bench life-cycle --cycles 20",
}
# What a test must not do to the machine it runs on, or does elsewhere: tests/project tries the make targets,
# tests/toolkit/compare/linux boots Linux.
NOT_HERE = re.compile(
    r"^(make\b|sudo\b|ansible-playbook\b|vagrant\b|VTK_LAB_MACHINES=|git clone\b|cd\b|pip install\b"
    r"|python3? -m (venv|tests\.svm)\b|vtk compare --linux\b)"
)

# Exit statuses that are the point of the command.
EXPECTED_STATUS = {"vtk run panic": 22}


def _commands() -> list[tuple[str, Block]]:
    seen: dict[str, Block] = {}
    for command, block in commands():
        if not NOT_HERE.match(command):
            seen.setdefault(command, block)
    return list(seen.items())


@pytest.mark.kvm
@pytest.mark.qemu
@pytest.mark.parametrize(("command", "block"), [pytest.param(*found, id=found[0]) for found in _commands()])
def test_every_command_shown_runs(command: str, block: Block, tmp_path: Path) -> None:
    run = SHORTENED.get(command, command)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_COLOR": "1"}
    environment.pop("VTK_DEBUG", None)
    for name in ("disk.img", "data.img"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
    (tmp_path / "kernel.elf").write_bytes(guest_os.image("hello").read_bytes())
    (tmp_path / "vmlinuz").write_bytes(bz_image(guest_os.image("hello", "xen").read_bytes()))
    (tmp_path / "initrd").write_bytes(bytes(4096))
    ended = subprocess.run(
        ["bash", "-c", run],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == EXPECTED_STATUS.get(command, 0), f"{block.name}: {run}\n{ended.stdout}\n{ended.stderr}"
    assert "Traceback" not in ended.stderr


def _examples() -> list[tuple[Block, Block | None]]:
    """Each Python block with the `text` block that follows it at once: its output."""
    found = []
    for document in DOCUMENTS:
        fenced = blocks(document)
        for index, block in enumerate(fenced):
            if block.language == "python":
                after = fenced[index + 1] if index + 1 < len(fenced) else None
                found.append((block, after if after is not None and after.language == "text" else None))
    return found


@pytest.mark.kvm
@pytest.mark.parametrize(("block", "output"), [pytest.param(*found, id=found[0].name) for found in _examples()])
def test_every_python_example_does_what_it_says(
    block: Block, output: Block | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "example"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.text, block.name, "exec"), namespace)
        for name, value in list(namespace.items()):
            # One that takes a fixture is tried in tests/toolkit/pytest_plugin.
            if name.startswith("test_") and callable(value) and not inspect.signature(value).parameters:
                value()
    if output is not None:
        assert printed.getvalue() == output.text


def test_the_table_of_outcomes_is_the_enum() -> None:
    text = (ROOT / "docs" / "machine.md").read_text(encoding="utf-8")
    rows = {match[1]: match[2] for match in re.finditer(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE)}
    expected = {outcome.value: str(outcome.exit_status) for outcome in Outcome}
    expected["exited"] = "1 to 19"
    assert {name: status.strip() for name, status in rows.items()} == expected


def test_every_path_a_document_names_exists() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for path in re.findall(
            r"`((?:docs|minivmm|toolkit|guest_os|tests|benchmarks|ansible|scripts)/[\w./-]*)`", text
        ):
            assert (ROOT / path).exists(), f"{document.name} names {path}, which is not there"


def test_every_link_leads_to_a_file() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}, which is not there"


def test_commands_are_split_as_a_shell_does() -> None:
    for command, block in commands():
        assert shlex.split(command), block.name
