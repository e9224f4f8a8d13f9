"""Which QEMU this host has, and what each one can do.

A binary is asked once (`-version`, `-accel help`, `-machine help`: about 0.1 s together); the answers are kept in
the user's cache directory under the binary's path, size and modification time, and asked again only when those
change.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.asking import answer_of
from toolkit.qemu.errors import QemuMissing

TARGETS = ("x86_64", "i386", "riscv64", "aarch64")
"""Targets vtk has a use for; other qemu-system-* binaries are not looked at."""

INSTALL = {
    "x86_64": "sudo apt install qemu-system-x86",
    "i386": "sudo apt install qemu-system-x86",
    "riscv64": "sudo apt install qemu-system-misc",
    "aarch64": "sudo apt install qemu-system-arm",
}
"""The Debian and Ubuntu package of each target."""

QUESTION_TIMEOUT = 10.0  # seconds; `qemu -version` takes 0.02


@dataclass(frozen=True, slots=True)
class QemuBinary:
    """One qemu-system-* executable."""

    path: str
    target: str
    version: tuple[int, int, int]
    accelerators: tuple[str, ...]
    """As `-accel help` lists them: what was compiled in, not what this user may use."""
    machines: tuple[str, ...]

    @property
    def version_text(self) -> str:
        """The version as QEMU writes it, `7.2.22`."""
        return ".".join(map(str, self.version))


def find_qemu(target: str = "x86_64") -> QemuBinary:
    """The QEMU for `target` on PATH. Raises QemuMissing, with the package to install."""
    name = f"qemu-system-{target}"
    path = shutil.which(name)
    if path is None:
        raise QemuMissing(
            f"{name} is not installed",
            cause="it is not on PATH",
            remedy=INSTALL.get(target, f"install {name}"),
        )
    binary = _ask(path, target)
    if binary is None:
        raise QemuMissing(
            f"{path} does not run",
            cause="`-version` gave no QEMU version",
            remedy=INSTALL.get(target, f"install {name}"),
        )
    return binary


def binaries() -> Iterator[QemuBinary]:
    """Every QEMU of `TARGETS` that is on PATH and runs."""
    for target in TARGETS:
        path = shutil.which(f"qemu-system-{target}")
        if path is not None and (binary := _ask(path, target)) is not None:
            yield binary


def _ask(path: str, target: str) -> QemuBinary | None:
    """What the binary says of itself, from the cache where that is still true. None when it is not a working QEMU."""
    status = os.stat(path)
    key = f"{path}:{status.st_size}:{status.st_mtime_ns}"
    cache = cache_file()
    known = _load(cache)
    if key in known:
        entry = known[key]
        try:
            major, minor, micro = entry["version"]
            return QemuBinary(
                path, target, (major, minor, micro), tuple(entry["accelerators"]), tuple(entry["machines"])
            )
        except (KeyError, TypeError, ValueError):
            pass  # written by another version of vtk: ask again
    version = re.search(r"version (\d+)\.(\d+)\.(\d+)", answer_of(path, "-version", timeout=QUESTION_TIMEOUT))
    if version is None:
        return None
    accelerators = answer_of(path, "-accel", "help", timeout=QUESTION_TIMEOUT)
    machines = answer_of(path, "-machine", "help", timeout=QUESTION_TIMEOUT)
    binary = QemuBinary(
        path,
        target,
        (int(version[1]), int(version[2]), int(version[3])),
        tuple(sorted(accelerators.split()[5:])),  # after "Accelerators supported in QEMU binary:"
        tuple(line.split()[0] for line in machines.splitlines()[1:] if line.strip()),
    )
    entry = asdict(binary)
    del entry["path"], entry["target"]
    known = {k: v for k, v in known.items() if not k.startswith(f"{path}:")} | {key: entry}
    _store(cache, known)
    return binary


def cache_file() -> Path:
    """Where the answers are kept: the XDG cache directory's vtk/qemu.json."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vtk" / "qemu.json"


def _load(cache: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _store(cache: Path, known: dict[str, dict[str, Any]]) -> None:
    """Replaces the cache whole, so a reader never sees half of it. A cache that cannot be written is only slower."""
    part = cache.with_suffix(f".{os.getpid()}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(known))
        part.replace(cache)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
