"""A first root file system for a Debian kernel: busybox, the modules it must load, and a script as init."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from toolkit.images import debian_package
from toolkit.images.cpio import Archive
from toolkit.images.debian_kernel import DebianKernel, read_module

# /dev/console must be there before init: the kernel opens it as init's standard input and output.
CONSOLE_DEVICE = (5, 1)  # Linux, Documentation/admin-guide/devices.txt


def busybox(cache: Path | None = None) -> Path:
    """Debian's statically linked busybox. Raises PackageMissing."""
    root = debian_package.unpacked("busybox-static", cache)
    # Debian 12 has it in /bin, later ones in /usr/bin.
    return next(path for path in (root / "bin/busybox", root / "usr/bin/busybox") if path.is_file())


def build(busybox_file: Path, kernel: DebianKernel, modules: Iterable[str], init: str) -> bytes:
    """A cpio archive whose /init is `init`, a script for busybox sh, run after `modules` and all they need are loaded.

    The script starts with /proc, /sys and /dev mounted and busybox's commands on the path.
    """
    archive = Archive()
    archive.add_file("bin/busybox", busybox_file.read_bytes(), 0o755)
    archive.add_symlink("bin/sh", "busybox")
    for mount_point in ("dev", "proc", "sys"):
        archive.add_directory(mount_point)
    archive.add_character_device("dev/console", *CONSOLE_DEVICE)

    loads = []
    for file in kernel.module_files(modules):
        name = file.name.removesuffix(".xz")
        archive.add_file(f"modules/{name}", read_module(file))
        loads.append(f"insmod /modules/{name}")
    prologue = [
        "#!/bin/sh",
        "/bin/busybox mount -t devtmpfs dev /dev",
        "/bin/busybox mount -t proc proc /proc",
        "/bin/busybox mount -t sysfs sys /sys",
        "/bin/busybox --install -s /bin",
        *loads,
    ]
    archive.add_file("init", "\n".join([*prologue, init, ""]).encode(), 0o755)
    return archive.to_bytes()
