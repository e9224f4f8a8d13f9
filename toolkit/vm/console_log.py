"""A machine's console.log, kept within bounds: its hypervisor only ever adds to it, and a guest may talk for ever.

Whoever looks at the machine takes the oldest of it away, as a hole in the file (fallocate(2), FALLOC_FL_PUNCH_HOLE):
the hypervisor goes on writing where it was. Offsets stay what they are, so a reader that goes along loses nothing else.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO

KEPT = 32 << 20  # bytes that stay
SLACK = 32 << 20  # bytes more than that before any go: holes are not made for a line
BLOCK = 4096

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 0x01, 0x02  # linux/falloc.h


def bound(file: Path) -> None:
    """Frees what lies before the last KEPT bytes. Costs one stat(2) when there is nothing to do; a file system without
    holes keeps it all."""
    try:
        found = os.stat(file)
    except OSError:
        return
    if found.st_blocks * 512 <= KEPT + SLACK or found.st_size <= KEPT:
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    length = (found.st_size - KEPT) // BLOCK * BLOCK
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:  # deleted meanwhile, or a daemon's
        return
    try:
        libc.fallocate(
            descriptor, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, ctypes.c_int64(0), ctypes.c_int64(length)
        )
    finally:
        os.close(descriptor)


def seek(file: IO[bytes], offset: int) -> int:
    """Goes to `offset`, or to where what is left begins when that is later. Returns where it is."""
    try:
        return file.seek(offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.EINVAL):  # nothing after it; a file system without holes
            raise
        return file.seek(offset)
