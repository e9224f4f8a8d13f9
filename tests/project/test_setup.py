"""scripts/setup, run in a copy of the project with stand-ins for the system's tools: what it installs, says and skips.

The stand-in for python3 makes a `.venv` whose interpreter notes every call in the file `calls`; so do apt-get and sudo.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
# What the script may use from the system. No python, no apt, no QEMU: those are stand-ins or absent.
SYSTEM_TOOLS = ("sh", "cat", "chmod", "cp", "dirname", "env", "find", "grep", "head", "mkdir", "rm", "sha256sum")

PYTHON = """#!/bin/sh
echo "python $*" >>"$CALLS"
case "$1 $2" in
"-m venv")
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    printf '#!%s\\n' "$PWD/$3/bin/python" >"$3/bin/pip"
    cp "$0" "$3/bin/vtk" ;;
esac
exit 0
"""
NOTED = """#!/bin/sh
echo "{name} $*" >>"$CALLS"
{then}
"""


class Project:
    """A copy of what setup reads, and a PATH with only the tools given to it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "checkout"
        self.tools = directory / "bin"
        self.calls_file = directory / "calls"
        self.tools.mkdir(parents=True)
        (self.directory / "scripts").mkdir(parents=True)
        for name in ("scripts/setup", "requirements.lock", "requirements-libvirt.lock", "pyproject.toml"):
            shutil.copy(CHECKOUT / name, self.directory / name)
        for name in SYSTEM_TOOLS:
            (self.tools / name).symlink_to(shutil.which(name) or name)

    def give(self, name: str, script: str | None = None, then: str = "") -> None:
        tool = self.tools / name
        tool.unlink(missing_ok=True)
        tool.write_text(script or NOTED.format(name=name, then=then))
        tool.chmod(0o755)

    def setup(self, **environment: str) -> subprocess.CompletedProcess[str]:
        self.calls_file.unlink(missing_ok=True)
        return subprocess.run(
            ["scripts/setup"],
            cwd=self.directory,
            env={"PATH": str(self.tools), "CALLS": str(self.calls_file), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def calls(self, name: str) -> list[str]:
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        return [line for line in lines if line.split()[0] == name]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A machine with Python, QEMU and the image tools, for an ordinary user, without apt and sudo."""
    project = Project(tmp_path)
    project.give("python3", PYTHON)
    for name in ("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mke2fs"):
        project.give(name)
    project.give("id", then="echo 1000")
    return project


def test_the_lock_is_installed_with_its_hashes(project: Project) -> None:
    done = project.setup()
    assert done.returncode == 0, done.stdout + done.stderr
    installs = [call for call in project.calls("python") if "pip install" in call]
    assert "--require-hashes -r requirements.lock" in installs[0]
    assert installs[-1].endswith("-e .")
    assert all("--no-deps" in call for call in installs)


def test_a_second_run_does_nothing_and_says_nothing(project: Project) -> None:
    project.setup()
    again = project.setup()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert project.calls("python") == []


def test_a_changed_lock_is_installed(project: Project) -> None:
    project.setup()
    with (project.directory / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    project.setup()
    assert any("requirements.lock" in call for call in project.calls("python"))


def test_a_checkout_that_was_moved_gets_a_new_environment(project: Project) -> None:
    project.setup()
    moved = project.directory.with_name("moved")
    project.directory.rename(moved)
    project.directory = moved
    done = project.setup()
    assert "anew" in done.stdout
    assert str(moved) in (moved / ".venv/bin/pip").read_text()


def test_a_failed_install_is_tried_again(project: Project) -> None:
    project.give(
        "python3", PYTHON.replace('case "$1 $2"', 'case "$*" in *requirements.lock*) exit 1; esac\ncase "$1 $2"')
    )
    first = project.setup()
    assert first.returncode == 1
    assert "cannot go on" in first.stdout
    second = project.setup()
    assert second.returncode == 1
    assert project.calls("python")


def test_without_root_what_is_left_out_is_said_with_its_mend(project: Project) -> None:
    (project.tools / "qemu-system-x86_64").unlink()
    project.give("apt-get")
    done = project.setup()
    assert done.returncode == 0
    assert "left out: QEMU" in done.stdout
    assert "sudo apt-get install qemu-system-x86" in done.stdout
    assert project.calls("apt-get") == []


def test_sudo_that_would_ask_is_not_used_without_a_terminal(project: Project) -> None:
    (project.tools / "qemu-system-x86_64").unlink()
    project.give("apt-get")
    project.give("sudo", then="exit 1")
    done = project.setup()
    assert "left out: QEMU" in done.stdout
    assert project.calls("sudo") == ["sudo -n true"]


def test_root_installs_what_is_missing_and_says_why(project: Project) -> None:
    (project.tools / "qemu-system-x86_64").unlink()
    project.give("id", then="echo 0")
    project.give("apt-get")
    done = project.setup()
    assert "installing with apt-get: qemu-system-x86 (QEMU" in done.stdout
    assert any("install --no-install-recommends qemu-system-x86" in call for call in project.calls("apt-get"))


def test_the_tools_of_vm_and_image_are_installed_too(project: Project) -> None:
    for name in ("qemu-img", "mmdebstrap"):
        (project.tools / name).unlink()
    project.give("id", then="echo 0")
    project.give("apt-get")
    done = project.setup()
    installs = [call.split("--no-install-recommends ")[1] for call in project.calls("apt-get") if "install" in call]
    assert [install.strip() for install in installs] == ["qemu-utils", "mmdebstrap"]
    assert "vtk image build debian" in done.stdout


def test_image_tools_that_cannot_be_had_are_said_once(project: Project) -> None:
    (project.tools / "mmdebstrap").unlink()
    done = project.setup()
    assert done.returncode == 0
    assert "left out: image tools" in done.stdout
    assert "mend: sudo apt-get install mmdebstrap" in done.stdout
    assert project.setup().stdout == ""


def test_a_failed_apt_get_does_not_stop_the_rest(project: Project) -> None:
    (project.tools / "qemu-system-x86_64").unlink()
    project.give("id", then="echo 0")
    project.give("apt-get", then="exit 100")
    done = project.setup()
    assert done.returncode == 0
    assert "left out: QEMU" in done.stdout


def test_the_system_is_left_alone_when_asked(project: Project) -> None:
    (project.tools / "qemu-system-x86_64").unlink()
    project.give("id", then="echo 0")
    project.give("apt-get")
    done = project.setup(VTK_NO_INSTALL="1")
    assert "VTK_NO_INSTALL" in done.stdout
    assert project.calls("apt-get") == []


def test_without_python_and_apt_it_ends_with_the_mend(project: Project) -> None:
    (project.tools / "python3").unlink()
    done = project.setup()
    assert done.returncode == 1
    assert "mend: sudo apt-get install python3 python3-venv" in done.stdout


def test_beside_a_python_that_is_too_old_a_newer_one_is_installed(project: Project) -> None:
    project.give("python3", PYTHON.replace("exit 0", "exit 1"))  # as the version check sees it
    project.give("id", then="echo 0")
    project.give("apt-get")
    project.setup()
    assert any("python3.11 python3.11-venv" in call for call in project.calls("apt-get"))


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck (sudo apt-get install shellcheck)")
def test_shellcheck_has_nothing_to_say() -> None:
    scripts = [*sorted((CHECKOUT / "scripts").iterdir()), CHECKOUT / ".ci/run"]
    done = subprocess.run(
        ["shellcheck", *map(os.fspath, scripts)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout
