"""Imports point down: the layers of the project, kept by reading every import statement."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Rooms of minivmm from the bottom up: a module imports its own room and rooms on lower lines only.
LAYERS = [
    {"errors", "layout", "outcome", "tail", "tally"},
    {"kvm", "life", "memory"},
    {"exits", "x86", "bus"},
    {"devices", "boot", "virtio", "deprivileged"},
    {"xen", "emulator"},
    {"slots", "processor"},
    {"machine"},
    {"control"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def modules(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py") if "build" not in path.parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a module imports, wherever in it. Not what only the type checker sees."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            hidden.update(ast.walk(node))
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


@pytest.mark.parametrize("path", modules("minivmm"), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_of_minivmm_imports_only_rooms_below_it(path: Path) -> None:
    inside = path.relative_to(ROOT / "minivmm").parts
    if inside == ("__init__.py",):
        return
    room = inside[0].removesuffix(".py")
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] != "minivmm" or len(parts) == 1:
            continue
        other = parts[1]
        assert other == room or LEVEL[other] < LEVEL[room], f"{path.name}:{line}: {room} imports {name}"


@pytest.mark.parametrize("path", modules("minivmm"), ids=lambda path: str(path.relative_to(ROOT)))
def test_minivmm_needs_the_standard_library_only_and_a_decoder_in_one_room(path: Path) -> None:
    decoder = {"iced_x86"} if path.parent == ROOT / "minivmm" / "x86" else set()
    for line, name in imports(path):
        top = name.split(".")[0]
        assert top == "minivmm" or top in sys.stdlib_module_names | decoder, f"{path.name}:{line}: imports {name}"


@pytest.mark.parametrize("package", ["minivmm", "guest_os"])
def test_nothing_below_the_toolkit_imports_it(package: str) -> None:
    for path in modules(package):
        for line, name in imports(path):
            assert name.split(".")[0] not in ("toolkit", "tests", "benchmarks"), f"{path}:{line}: imports {name}"


def test_files_stay_short_enough_to_be_one_room() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for package in ("minivmm", "guest_os", "toolkit", "benchmarks")
        for path in modules(package)
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 440
    }
    assert long == {}
