"""Finding QEMU: asked once, believed until it changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from toolkit.qemu.errors import QemuMissing
from toolkit.qemu.find import cache_file, find_qemu

FAKE = """#!/bin/sh
echo asked >> {log}
case "$1" in
-version) echo "QEMU emulator version {version} (fake)";;
-accel) printf 'Accelerators supported in QEMU binary:\\ntcg\\n';;
-machine) printf 'Supported machines are:\\nmicrovm  a machine\\npc  another\\n';;
esac
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    binary = tmp_path / "qemu-system-x86_64"
    write(binary, "9.1.2")
    return binary


def write(binary: Path, version: str) -> None:
    binary.write_text(FAKE.format(log=binary.with_suffix(".log"), version=version))
    binary.chmod(0o755)


def questions(binary: Path) -> int:
    return binary.with_suffix(".log").read_text().count("asked")


def test_a_binary_says_what_it_is(fake: Path) -> None:
    found = find_qemu()
    assert (found.path, found.version, found.version_text) == (str(fake), (9, 1, 2), "9.1.2")
    assert (found.accelerators, found.machines) == (("tcg",), ("microvm", "pc"))


def test_an_unchanged_binary_is_asked_once(fake: Path) -> None:
    first = find_qemu()
    asked = questions(fake)
    assert find_qemu() == first
    assert questions(fake) == asked


def test_a_changed_binary_is_asked_again(fake: Path) -> None:
    find_qemu()
    write(fake, "10.0.0")
    assert find_qemu().version == (10, 0, 0)


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"x": 1}'])
def test_a_damaged_cache_is_not_believed(fake: Path, damage: bytes) -> None:
    find_qemu()
    cache_file().write_bytes(damage)
    assert find_qemu().path == str(fake)


@pytest.mark.usefixtures("fake")
def test_a_cache_entry_of_another_form_is_not_believed() -> None:
    find_qemu()
    cache_file().write_text(cache_file().read_text().replace("version", "versions"))
    assert find_qemu().version == (9, 1, 2)


def test_a_cache_that_cannot_be_written_only_costs_time(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert find_qemu().path == str(fake)


def test_a_missing_binary_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QemuMissing) as caught:
        find_qemu()
    assert caught.value.remedy == "sudo apt install qemu-system-x86"


def test_a_binary_that_does_not_run_is_missing(fake: Path) -> None:
    fake.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(QemuMissing):
        find_qemu()
