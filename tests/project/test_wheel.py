"""A wheel is whole: installed on its own it has its guests, and needs no compiler."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


def run(command: list[str], directory: Path) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)], CHECKOUT)
    (path,) = directory.glob("vtk-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of a new virtual environment with the wheel in it.

    What vtk depends on is borrowed from this environment, by a path entry, so that nothing is downloaded. The
    editable install of this checkout is not borrowed with it: path files are read in site directories only.
    """
    environment = tmp_path_factory.mktemp("installed")
    run([sys.executable, "-m", "venv", "--without-pip", str(environment)], environment)
    python = environment / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    run([*pip, str(wheel)], environment)
    site = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], environment).strip())
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin"


def test_the_wheel_holds_the_packages_and_nothing_of_the_checkout(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"toolkit", "minivmm", "guest_os"}


def test_the_wheel_carries_license_and_type_markers(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {f"{package}/py.typed" for package in ("toolkit", "minivmm", "guest_os")} <= set(names)


def test_the_installed_command_lists_its_guests(installed: Path, tmp_path: Path) -> None:
    assert "hello" in run([str(installed / "vtk"), "guest", "list"], tmp_path)


def test_the_installed_package_has_its_guests_without_a_compiler(installed: Path, tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['ziglang'] = None\n"  # importing it fails from here on
        "import guest_os\n"
        "for guest in guest_os.guests().values():\n"
        "    for platform in guest.platforms:\n"
        "        assert guest_os.image(guest.name, platform).read_bytes()[:4] == b'\\x7fELF'\n"
        "print(guest_os.__file__)\n"
    )
    environment = {"PATH": os.devnull, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [str(installed / "python"), "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(CHECKOUT) not in done.stdout
