"""The build: content decides what is compiled, files appear whole, and what goes wrong is told."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import guest_os
from guest_os import BuildError, image, native
from guest_os.build import build

PACKAGE = Path(guest_os.__file__).parent
BUILD = "import sys; from guest_os.build import build; build(sys.argv[1:] or None)"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of guest_os with its cache, to change at will; returns the folder it is in."""
    image("hello")
    shutil.copytree(PACKAGE, tmp_path / "guest_os", ignore=shutil.ignore_patterns("__pycache__", "zig-cache", "gcc"))
    (tmp_path / "minivmm").symlink_to(PACKAGE.parent / "minivmm")
    return tmp_path


def python(checkout: Path, code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def succeed(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output


def test_an_image_carries_the_pvh_note_and_a_low_entry() -> None:
    data = image("hello").read_bytes()
    assert data[:4] == b"\x7fELF"
    (entry,) = struct.unpack_from("<Q", data, 24)
    assert 0x100000 <= entry < 0x200000
    assert struct.pack("<III4s", 4, 4, 18, b"Xen\0") in data


def test_a_guest_nobody_knows_is_refused_with_the_names() -> None:
    with pytest.raises(BuildError, match="nonesuch") as caught:
        image("nonesuch")
    assert "hello" in caught.value.remedy


def test_a_compiler_nobody_knows_is_refused() -> None:
    with pytest.raises(BuildError, match="tcc"):
        build(["hello"], compiler_name="tcc")


def test_a_missing_compiler_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(BuildError) as caught:
        build(["hello"])
    assert "ziglang" in caught.value.remedy


def test_a_fresh_image_is_found_without_the_compilers_side() -> None:
    image("hello")
    code = "import sys, guest_os; guest_os.image('hello'); print(*sys.modules)"
    assert not {"guest_os.build", "ziglang", "subprocess"} & set(succeed(python(PACKAGE.parent, code)).split())


def test_a_changed_source_changes_the_image_and_nothing_else(checkout: Path) -> None:
    objects = checkout / "guest_os" / "build" / "objects"
    succeed(python(checkout, BUILD))
    before = {path.name for path in objects.iterdir()}
    hello = checkout / "guest_os" / "guests" / "hello.c"
    hello.write_text(hello.read_text().replace("Hello from vtk", "Changed by a test"))
    succeed(python(checkout, BUILD))
    assert b"Changed by a test" in (checkout / "guest_os" / "build" / "hello.elf").read_bytes()
    assert {name.rsplit("-", 1)[0] for name in {path.name for path in objects.iterdir()} - before} == {"hello"}


def test_a_source_that_does_not_compile_leaves_the_old_image(checkout: Path) -> None:
    succeed(python(checkout, BUILD))
    elf = checkout / "guest_os" / "build" / "hello.elf"
    before = elf.read_bytes()
    (checkout / "guest_os" / "guests" / "hello.c").write_text("int guest_main(void) { return nonesuch; }\n")
    process = python(checkout, BUILD)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "BuildError" in errors
    assert "nonesuch" in errors
    assert elf.read_bytes() == before


def test_two_builds_at_once_both_succeed(checkout: Path) -> None:
    (checkout / "guest_os" / "build" / "stamp").unlink()
    for path in (checkout / "guest_os" / "build" / "objects").glob("[a-h]*.o"):
        path.unlink()
    builds = [python(checkout, BUILD) for _ in range(2)]
    for process in builds:
        succeed(process)
    assert (checkout / "guest_os" / "build" / "hello.elf").read_bytes()[:4] == b"\x7fELF"
    assert not list((checkout / "guest_os" / "build").glob("tmp-*"))


def test_the_native_program_refuses_unknown_options() -> None:
    done = subprocess.run([native(), "--nonesuch"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "usage" in done.stderr
