"""Disks in qcow2 by qemu-img: overlays, conversion, and what a file says it is."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from minivmm.errors import ImageError
from toolkit.images.errors import ImageBuildFailed, ToolMissing
from toolkit.images.store import Image

TIMEOUT = 600.0  # seconds, for one qemu-img: it may copy a whole disk

PACKAGES = {
    "qemu-img": "qemu-utils",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "tar": "tar",
    "newuidmap": "uidmap",
}
"""The Debian package of each program images are made with."""

SYSTEM_PATH = "/usr/sbin:/sbin"  # an ordinary user's PATH lacks them, and mke2fs is there


def tool(name: str) -> str:
    """The path of a program that builds images. Raises ToolMissing."""
    path = shutil.which(name) or shutil.which(name, path=SYSTEM_PATH)
    if path is None:
        raise ToolMissing(
            f"{name} is not installed",
            cause="it is not on PATH, and images are made with it",
            remedy=f"sudo apt install {PACKAGES[name]}",
        )
    return path


def overlay(image: Image, path: Path, size: int | None = None) -> Path:
    """Makes `path` a qcow2 whose backing file is the image's disk, of `size` bytes when given. Returns `path`.

    The image must not go while it has overlays: see ImageStore.in_use. Raises ImageError, ToolMissing.
    """
    if image.disk is None:
        raise ImageError(image.directory, f"image {image.name!r} has no disk", remedy="vtk image build debian")
    return overlay_on(image.disk.resolve(), "qcow2", path, size)


def overlay_on(backing: Path, form: str, path: Path, size: int | None = None) -> Path:
    """Makes `path` a qcow2 on top of any disk, of QEMU's format `form`, which is only read. Returns `path`.

    Raises ImageBuildFailed, ToolMissing.
    """
    extent = [] if size is None else [str(size)]
    _qemu_img("create", "-q", "-f", "qcow2", "-F", form, "-b", str(backing), str(path), *extent)
    return path


def to_qcow2(source: Path, target: Path, size: int | None = None) -> None:
    """Copies a disk of any format QEMU reads into a qcow2 without a backing file. Raises ImageError, ToolMissing.

    A disk that names a backing or data file of its own is refused: it came from elsewhere and must not choose
    which of this host's files are read.
    """
    found = info(source)
    if "backing-filename" in found or "data-file" in found.get("format-specific", {}).get("data", {}):
        raise ImageError(source, "is not a whole disk", cause="it refers to another file of this host")
    _qemu_img("convert", "-q", "-f", found["format"], "-O", "qcow2", str(source), str(target))
    if size is not None and size > found["virtual-size"]:
        _qemu_img("resize", "-q", "-f", "qcow2", str(target), str(size))


def info(path: Path) -> dict[str, Any]:
    """What `qemu-img info` says of a disk: "format", "virtual-size" in bytes, … Raises ImageError, ToolMissing."""
    answer = json.loads(_qemu_img("info", "-U", "--output=json", str(path)))
    assert isinstance(answer, dict)
    return answer


def _qemu_img(*arguments: str) -> str:
    try:
        done = subprocess.run(
            [tool("qemu-img"), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ImageBuildFailed(f"qemu-img {arguments[0]} did not end within {TIMEOUT:.0f} s") from error
    if done.returncode != 0:
        raise ImageBuildFailed(f"qemu-img {arguments[0]} failed", cause=done.stderr.strip())
    return done.stdout
