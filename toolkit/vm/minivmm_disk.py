"""A minivmm machine's disk: raw, for minivmm reads no other format, and so a copy of the image and no overlay on it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from minivmm.errors import ConfigError, ImageError

DISK = "disk.img"
QCOW2_MAGIC = b"QFI\xfb"
CHUNK = 1 << 30  # bytes a call; the kernel copies, and shares blocks where the file system can


def copy_disk(source: Path, path: Path, size: int | None) -> None:
    """Copies the raw image, as large as `size` where one is given; holes stay holes.

    Raises ImageError for an image that is not raw or cannot be copied, ConfigError for a size that is too small.
    """
    try:
        with source.open("rb") as image, path.open("wb") as copy:
            if image.read(len(QCOW2_MAGIC)) == QCOW2_MAGIC:
                raise ImageError(
                    source,
                    "is not a raw image",
                    cause="it is qcow2, and minivmm's disks are raw",
                    remedy=f"qemu-img convert -O raw {source} disk.img",
                )
            length = image.seek(0, os.SEEK_END)
            if size is not None and size < length:
                raise ConfigError(
                    f"a disk of {size} bytes cannot hold {source}",
                    cause=f"the image has {length} bytes",
                    remedy=f"--disk-size {-(-length >> 20)}M",
                )
            _copy_data(image.fileno(), copy.fileno(), length)
            copy.truncate(size or length)
    except OSError as error:
        raise ImageError(source, "cannot be copied", cause=error.strerror or str(error)) from error


def _copy_data(source: int, destination: int, length: int) -> None:
    """Everything but the holes. Raises OSError."""
    end = 0
    while end < length:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        os.lseek(source, start, os.SEEK_SET)
        os.lseek(destination, start, os.SEEK_SET)
        while start < end:
            done = os.sendfile(destination, source, None, min(end - start, CHUNK))
            if not done:  # cut short meanwhile
                return
            start += done
