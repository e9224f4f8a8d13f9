"""Disks in qcow2 by qemu-img: overlays, conversion, and what a file says it is."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

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


def empty(path: Path, size: int) -> None:
    """Makes `path` a qcow2 of `size` bytes with nothing in it. Raises ImageBuildFailed, ToolMissing."""
    _qemu_img("create", "-q", "-f", "qcow2", str(path), str(size))


def snapshot(path: Path, action: Literal["-c", "-a", "-d"], name: str) -> None:
    """Makes (-c), goes back to (-a) or deletes (-d) an internal snapshot of a qcow2 that nobody has open.

    Raises ImageBuildFailed, ToolMissing.
    """
    _qemu_img("snapshot", "-q", action, name, str(path))


def reclaim(path: Path) -> None:
    """Frees what a killed QEMU had set aside in a qcow2 and not used yet. Raises ImageBuildFailed, ToolMissing."""
    _qemu_img("check", "-q", "-f", "qcow2", "-r", "leaks", str(path))


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


def check_whole(path: Path, form: str) -> None:
    """Raises ImageError for a qcow2 whose tables point beyond its end, or at what is not there: one that was cut off.
    Other formats cannot tell. Some 80 ms for a disk of 400 MB."""
    if form != "qcow2":
        return
    # Status 2 is corruption; leaks (3) and what the program itself could not do (1) are for others to tell.
    status, _, words = _run_qemu_img("check", "-q", "-U", "-f", form, str(path))
    if status == 2:
        raise ImageError(
            path,
            "is damaged",
            cause=words.partition("\n")[0] or "its tables are not right",
            remedy="fetch it again: a copy or a download of it was interrupted",
        )


def _qemu_img(*arguments: str) -> str:
    """What it prints. Raises ImageBuildFailed when it fails."""
    status, output, words = _run_qemu_img(*arguments)
    if status != 0:
        raise ImageBuildFailed(f"qemu-img {arguments[0]} failed", cause=words)
    return output


def _run_qemu_img(*arguments: str) -> tuple[int, str, str]:
    """Its exit status, what it prints, and its last words."""
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
    return done.returncode, done.stdout, done.stderr.strip()
