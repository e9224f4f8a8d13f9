"""The recipes for lab machines are well-formed, by their own tools' judgement."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ansible-lint") is None, reason="no ansible-lint (make test-lab brings it)")
def test_ansible_lint_has_nothing_to_say(tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "ansible", tmp_path / "ansible")  # it leaves a cache beside what it reads
    done = subprocess.run(
        ["ansible-lint", "--offline", "--strict", "--profile", "production", "site.yml", "localhost.yml"],
        cwd=tmp_path / "ansible",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("vagrant") is None, reason="no vagrant (sudo apt-get install vagrant)")
def test_vagrant_validates_the_machines(tmp_path: Path) -> None:
    shutil.copy(CHECKOUT / "Vagrantfile", tmp_path)
    shutil.copytree(CHECKOUT / "ansible", tmp_path / "ansible")
    done = subprocess.run(
        ["vagrant", "validate", "--ignore-provider"],
        cwd=tmp_path,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "VTK_LAB_MACHINES": "3",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
