"""The programs of guest_os/linux: ordinary static programs for Linux on x86-64, built with musl.

    bench    runs in a Linux guest (a container, the host): workloads on the devices that Linux drives there
    peer     runs on the host: the other end of a guest's network card or console

An installed wheel carries them; a checkout compiles them on first use and keeps them under a name made of all they are
made from. The very first time the compiler builds its C library too, which takes about a minute.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from guest_os.catalog import ROOT, SHIPPED, build_directory

SOURCES = ROOT / "linux"
PROGRAMS = {
    "bench": ("main.c", "sysfs.c", "disk.c", "net.c", "console.c", "clock.c", "cpu.c"),
    "peer": ("peer.c",),
}
FLAGS = ("-target", "x86_64-linux-musl", "-static", "-O2", "-s", "-std=gnu11", "-Wall", "-Wextra", "-Werror")
COMPILE_TIMEOUT = 600.0  # seconds; 0.2 once there is a C library


def linux_program(name: str) -> Path:
    """The program `name` of PROGRAMS. Raises BuildError when it cannot be built."""
    shipped = SHIPPED / "linux" / name
    if shipped.exists():
        return shipped
    path = _place(name)
    return path if path.exists() else _compile(name, path)


def is_linux_program_built(name: str) -> bool:
    """Whether `linux_program` answers without compiling."""
    return (SHIPPED / "linux" / name).exists() or _place(name).exists()


def _place(name: str) -> Path:
    digest = hashlib.sha256(repr(FLAGS).encode())
    for file in (*sorted(path.name for path in SOURCES.glob("*.h")), *PROGRAMS[name]):
        digest.update(file.encode() + b"\0" + (SOURCES / file).read_bytes())
    return build_directory() / "linux" / f"{name}-{digest.hexdigest()[:24]}"


def _compile(name: str, path: Path) -> Path:
    from guest_os.build import BuildError, compiler

    zig = compiler("zig").executable
    caches = {
        variable: str(build_directory() / "zig-cache") for variable in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")
    }
    sources = [str(SOURCES / file) for file in PROGRAMS[name]]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="tmp-") as scratch:
            output = Path(scratch, name)
            done = subprocess.run(
                [zig, "cc", *FLAGS, *sources, "-o", str(output)],
                capture_output=True,
                text=True,
                errors="replace",
                env={**os.environ, **caches},
                timeout=COMPILE_TIMEOUT,
                check=False,
            )
            if done.returncode != 0:
                raise BuildError(f"zig refused guest_os/linux/{name}", cause=done.stderr.strip()[-4000:])
            os.replace(output, path)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"zig did not finish guest_os/linux/{name} in {COMPILE_TIMEOUT:g} s") from error
    except OSError as error:
        raise BuildError(f"cannot build guest_os/linux/{name}", cause=str(error)) from error
    for old in path.parent.glob(f"{name}-*"):
        if old != path:
            with contextlib.suppress(OSError):  # another process may have removed it
                old.unlink()
    return path
