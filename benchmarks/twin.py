"""Building the C twins: the same work in C, for comparison. Never needed by the product."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from minivmm.errors import HostError

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "twins"


def build(source: str) -> Path:
    """The program made from benchmarks/`source`, by the host's gcc or else ziglang. Raises HostError."""
    path = HERE / source
    compiler = ["gcc"] if shutil.which("gcc") else [sys.executable, "-m", "ziglang", "cc"]
    command = [*compiler, "-O2", "-Wall", "-o"]
    key = hashlib.sha256(path.read_bytes() + repr(command).encode()).hexdigest()[:16]
    program = BUILD / f"{path.stem}-{key}"
    if not program.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        fresh = program.with_suffix(".new")
        built = subprocess.run([*command, str(fresh), str(path)], capture_output=True, text=True, check=False)
        if built.returncode:
            raise HostError(
                f"{source} does not compile", cause=built.stderr.strip(), remedy="sudo apt install gcc libc6-dev"
            )
        fresh.rename(program)
    return program
