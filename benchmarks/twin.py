"""Building the C twins: the same work in C, and programs for Linux on RISC-V. Never needed by the product."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from minivmm.errors import HostError

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "twins"


GUEST = HERE.parent / "guest_os"
COMPILE_TIMEOUT = 600.0  # seconds; the first time, zig makes its C library too


def build(source: str) -> Path:
    """The program made from benchmarks/`source`, by the host's gcc or else ziglang. Raises HostError."""
    compiler = ["gcc"] if shutil.which("gcc") else [sys.executable, "-m", "ziglang", "cc"]
    return _build([*compiler, "-O2", "-Wall"], [HERE / source], "sudo apt install gcc libc6-dev")


def build_riscv64(source: str, workloads: tuple[str, ...]) -> Path:
    """The static program for Linux on RISC-V (RV64IMAC) made from benchmarks/`source` and these workloads of guest_os,
    by ziglang. Raises HostError."""
    sources = [HERE / source, *(GUEST / "workloads" / f"{name}.c" for name in (*workloads, "run"))]
    return _build(
        [
            *(sys.executable, "-m", "ziglang", "cc", "-target", "riscv64-linux-musl", "-mcpu=generic_rv64+m+a+c"),
            *("-static", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-fno-sanitize=all", "-fno-builtin"),
            *("-fno-stack-protector", "-fno-strict-aliasing", f"-I{GUEST / 'include'}"),
            f"-I{GUEST / 'processor' / 'riscv64'}",
        ],
        [*sources, GUEST / "kernel" / "text.c"],
        "pip install ziglang",
    )


def _build(command: list[str], sources: list[Path], remedy: str) -> Path:
    digest = hashlib.sha256(repr(command).encode())
    for source in sources:
        digest.update(source.read_bytes())
    program = BUILD / f"{sources[0].stem}-{digest.hexdigest()[:16]}"
    if not program.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        fresh = program.with_suffix(".new")
        built = subprocess.run(
            [*command, "-o", str(fresh), *map(str, sources)],
            capture_output=True,
            text=True,
            check=False,
            timeout=COMPILE_TIMEOUT,
        )
        if built.returncode:
            raise HostError(f"{sources[0].name} does not compile", cause=built.stderr.strip(), remedy=remedy)
        fresh.rename(program)
    return program
