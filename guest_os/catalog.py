"""Which guests there are, and where their files are.

An installed wheel carries the images (guest_os/images); a checkout builds them on first use (`guest_os.build`) and
again when a source changed. Deciding that nothing changed costs one stat(2) a source: no compiler is looked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent
SHIPPED = ROOT / "images"  # in a wheel only
STAMP = "stamp"
NATIVE = "native"
PROCESSES = {"x86_64": NATIVE, "riscv64": "native.riscv64", "wasm32": "native.wasm"}
"""The programs of the workloads, by processor."""


PLATFORMS = ("bare", "xen", "riscv64")
"""What a guest is built for: the bare x86-64 machine (PVH and the Linux 64-bit boot protocol), a paravirtual domain of
Xen, the bare RISC-V machine (QEMU's `virt`)."""
NOT_XEN = frozenset({"drivers", "rings"})  # they drive virtio-mmio, which a paravirtual domain does not have
# About what a bare machine does not have.
ONLY_XEN = frozenset({"hypercalls", "lab_events", "lab_hypercalls", "lab_paging", "lab_traps"})
NOT_RISCV64 = frozenset({"smp", "triplefault"})  # one hart; no shutdown by a fault


class Guest(NamedTuple):
    """One guest: the file guests/NAME.c and the images made of it."""

    name: str
    description: str  # one line
    source: Path
    platforms: tuple[str, ...]  # of PLATFORMS

    @property
    def images(self) -> dict[str, str]:
        """What each platform's image is called, without its suffix."""
        return {platform: image_name(self.name, platform) for platform in self.platforms}


def guests() -> dict[str, Guest]:
    """Every guest by name. The description is the first line of its source."""
    table = {}
    for source in sorted((ROOT / "guests").glob("*.c")):
        with open(source, encoding="utf-8") as text:
            description = text.readline().strip().removeprefix("/*").removesuffix("*/").strip()
        excluded = {
            "bare": source.stem in ONLY_XEN,
            "xen": source.stem in NOT_XEN,
            "riscv64": source.stem in ONLY_XEN | NOT_RISCV64,
        }
        platforms = tuple(platform for platform in PLATFORMS if not excluded[platform])
        table[source.stem] = Guest(source.stem, description, source, platforms)
    return table


def image_name(name: str, platform: str = "bare") -> str:
    """What the image of a guest for a platform is called: `hello`, `hello.xen`."""
    return name if platform == "bare" else f"{name}.{platform}"


def image(name: str, platform: str = "bare") -> Path:
    """The ELF file of guest `name` for one of PLATFORMS. Raises BuildError when there is no such guest or it cannot be
    built."""
    name = image_name(name, platform)
    return _built(f"{name}.elf", name)


def native(processor: str = "x86_64") -> Path:
    """The workloads as an ordinary program: of this host (static Linux x86-64), of Linux on RISC-V ("riscv64"), of a
    WebAssembly runtime ("wasm32", WASI preview 1). Raises BuildError."""
    name = PROCESSES[processor]
    return _built(name, name)


def build_directory(compiler: str = "zig") -> Path:
    """Where built images go: guest_os/build in a checkout, the user's cache where that cannot be written."""
    base = ROOT / "build"
    if not os.access(base if base.is_dir() else ROOT, os.W_OK):
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        base = Path(cache) / "vtk"
    return base if compiler == "zig" else base / compiler


def stamp_of(paths: Iterable[str]) -> str:
    """What tells a changed file: modification time (ns), size and name of each path, below this folder or absolute."""
    lines = []
    for path in paths:
        status = os.stat(os.path.join(ROOT, path))
        lines.append(f"{status.st_mtime_ns} {status.st_size} {path}\n")
    return "".join(lines)


def is_fresh(directory: Path) -> bool:
    """Whether nothing in the stamp of the last build changed. Directories are in it, so a new file shows."""
    try:
        with open(directory / STAMP, encoding="utf-8") as file:
            stamp = file.read()
        return stamp_of(line.split(" ", 2)[2] for line in stamp.splitlines()) == stamp != ""
    except (OSError, IndexError, UnicodeDecodeError):
        return False


def is_built() -> bool:
    """Whether `image` and `native` answer without compiling: from a wheel, or built since the last change."""
    return SHIPPED.is_dir() or is_fresh(build_directory())


def _built(file: str, name: str) -> Path:
    shipped = SHIPPED / file
    if shipped.exists():
        return shipped
    directory = build_directory()
    path = directory / file
    if path.exists() and is_fresh(directory):
        return path
    from guest_os.build import build  # the compiler's side is loaded only when something must be compiled

    return build([name])[name]
