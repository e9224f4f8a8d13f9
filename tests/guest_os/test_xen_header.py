"""Every number, size and offset of the guests' own declarations of the Xen ABI is the public headers'."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import guest_os

OURS = Path(guest_os.__file__).parent / "hal" / "xen_x86_64" / "xen.h"
HEADERS = Path("/usr/include/xen")
INCLUDED = (
    *("xen.h", "elfnote.h", "callback.h", "event_channel.h", "sched.h", "vcpu.h", "io/console.h"),
    "arch-x86/xen.h",
)
PARTIAL = {"shared_info"}  # declared as far as it is used

pytestmark = pytest.mark.skipif(
    not (HEADERS / "xen.h").is_file(),
    reason="Xen's public headers are not installed (try: sudo apt install libxen-dev)",
)


def source() -> str:
    return re.sub(r"/\*.*?\*/", "", OURS.read_text(encoding="utf-8"), flags=re.DOTALL)


def members(body: str, prefix: str = "") -> Iterator[str]:
    """The members of a structure's body, those of what is nested in it as `outer.inner`."""
    nested = re.compile(r"(?:struct|union)\s*\{((?:[^{}]|\{[^{}]*\})*)\}\s*(\w+);")
    for inner, name in nested.findall(body):
        yield from members(inner, f"{prefix}{name}.")
    for declaration in nested.sub("", body).split(";"):
        names = re.sub(r"\[[^\]]*\]", "", declaration).split(",")
        yield from (prefix + name.replace("*", " ").split()[-1] for name in names if name.strip())


def structures(text: str) -> dict[str, str]:
    """Name and body of each structure."""
    return dict(re.findall(r"^struct (\w+) \{(.*?)^\};", text, re.DOTALL | re.MULTILINE))


def claims(text: str, constants: list[str]) -> list[str]:
    """What must hold between ours and theirs, as C expressions."""
    claimed = [f"our_{name} == ({name})" for name in constants]
    for name, body in structures(text).items():
        if name not in PARTIAL:
            claimed.append(f"sizeof(struct our_{name}) == sizeof(struct {name})")
        for member in members(body):
            claimed.append(f"offsetof(struct our_{name}, {member}) == offsetof(struct {name}, {member})")
            claimed.append(f"sizeof(((struct our_{name} *)0)->{member}) == sizeof(((struct {name} *)0)->{member})")
    return claimed


def compiles(directory: Path, text: str) -> str:
    """What the compiler says to the header's text against Xen's; nothing when they agree."""
    constants = re.findall(r"^#define (\w+) ", text, re.MULTILINE)
    asserts = "".join(f'_Static_assert({claim}, "{claim}");\n' for claim in claims(text, constants))
    renamed = re.sub(r"^#define (\w+) (.*)$", r"enum { \1 = \2 };", text, flags=re.MULTILINE)
    renamed = re.sub(r"^#.*$", "", renamed, flags=re.MULTILINE)
    for name in constants:
        renamed = re.sub(rf"\b{name}\b", f"our_{name}", renamed)
    renamed = re.sub(r"\bstruct (\w+)", r"struct our_\1", renamed)
    includes = "".join(f"#include <xen/{name}>\n" for name in INCLUDED)
    (directory / "xen").symlink_to(HEADERS)
    file = directory / "header.c"
    file.write_text(
        "#define __XEN_INTERFACE_VERSION__ 0x00040e00\n#include <stddef.h>\n#include <stdint.h>\n"
        f"{renamed}{includes}{asserts}"
    )
    compiler = [*(sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-musl", "-I", str(directory))]
    command = [*compiler, "-c", "-o", str(directory / "header.o"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.stderr if done.returncode else ""


def test_numbers_sizes_and_offsets_are_those_of_the_headers(tmp_path: Path) -> None:
    text = source()
    assert len(claims(text, re.findall(r"^#define (\w+) ", text, re.MULTILINE))) > 250
    assert compiles(tmp_path, text) == ""


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("_mmu_update 1", "_mmu_update 2"), ("uint32_t in_cons, in_prod;", "uint32_t in_prod, in_cons;")],
)
def test_a_wrong_declaration_does_not_compile(tmp_path: Path, right: str, wrong: str) -> None:
    text = source()
    assert right in text
    assert "static assertion failed" in compiles(tmp_path, text.replace(right, wrong))
