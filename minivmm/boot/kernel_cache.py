"""Kernels taken out of bzImages before, kept in a directory: LZ4, Debian's choice, takes Python seconds to unpack.

A file there is named for the SHA-256 of the compressed kernel and appears by rename, whole: what has a name is right.
The cache only saves time: one that cannot be read or written is done without.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from minivmm.boot import bzimage
from minivmm.boot.elf import MAGIC

KEPT = 4  # kernels: Debian's have 50 MB each
SUFFIX = ".elf"


def vmlinux(path: Path, directory: Path) -> bytes:
    """The ELF kernel inside the bzImage at `path`: out of `directory`, or unpacked and put there. Raises ImageError."""
    packed = bzimage.payload(path)
    place = _place(packed, directory)
    with contextlib.suppress(OSError):
        kernel = place.read_bytes()
        if kernel.startswith(MAGIC):
            os.utime(place)  # used: the last to be removed
            return kernel
    kernel = bzimage.unpack(path, packed)
    with contextlib.suppress(OSError):
        _put(kernel, place)
        _forget_oldest(directory)
    return kernel


def _place(packed: bytes, directory: Path) -> Path:
    return directory / (hashlib.sha256(packed).hexdigest() + SUFFIX)


def _put(kernel: bytes, place: Path) -> None:
    """Written beside its place, synced and renamed: neither two at once nor a power cut leave half a kernel."""
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=place.parent, prefix=".unpacking-")
    try:
        with open(descriptor, "wb") as file:
            file.write(kernel)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, place)
    except BaseException:
        os.unlink(temporary)
        raise


def _forget_oldest(directory: Path) -> None:
    """Removes all but the KEPT kernels used last."""
    kernels = sorted(directory.glob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in kernels[KEPT:]:
        file.unlink(missing_ok=True)
