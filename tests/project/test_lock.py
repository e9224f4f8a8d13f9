"""The lock files pin everything, with hashes, and say nothing about where it was made."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-libvirt.lock")
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==\S+(?: ;.*)? \\$", re.MULTILINE)


def normalized(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lock: str) -> set[str]:
    return {normalized(name) for name in PINNED.findall((CHECKOUT / lock).read_text())}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_requirement_is_pinned_and_hashed(lock: str) -> None:
    text = (CHECKOUT / lock).read_text()
    logical = [line for line in re.sub(r" \\\n", " ", text).splitlines() if not line.lstrip().startswith("#")]
    assert logical
    for line in logical:
        assert re.match(r"^\S+==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line


@pytest.mark.parametrize("lock", LOCKS)
def test_no_package_index_is_named(lock: str) -> None:
    text = (CHECKOUT / lock).read_text()
    assert "://" not in text
    assert "index-url" not in text
    assert "find-links" not in text


def test_whatever_the_project_asks_for_is_in_the_lock() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = {
        normalized(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0])
        for requirement in [*project["dependencies"], *extras["dev"], *extras["guests"]]
    }
    assert asked <= pins("requirements.lock")
    assert pins("requirements-libvirt.lock") == {"libvirt-python"}


def test_what_builds_the_project_is_pinned_to_the_same_version() -> None:
    build = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["build-system"]["requires"]
    lock = (CHECKOUT / "requirements.lock").read_text()
    for requirement in build:
        assert f"{requirement} \\" in lock
