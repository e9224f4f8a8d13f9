"""Which segment descriptors (SDM 3A 3.4.5) a guest may have in its GDT or LDT."""

from __future__ import annotations

import errno
import struct

from minivmm.xen.errors import HypercallError
from minivmm.xen.frame_words import ENTRIES

SEGMENT = 1 << 44  # S: code or data; else a gate, a TSS or an LDT
DPL = 3 << 45
PRESENT = 1 << 47

_TABLE = struct.Struct(f"<{ENTRIES}Q")


def checked(descriptor: int) -> int:
    """The descriptor as it may be stored: a present code or data segment is moved to ring 3.

    Raises HypercallError for gates and system segments: they are ways into ring 0, or name memory only Xen may name.
    """
    if not descriptor & PRESENT:
        return descriptor
    if not descriptor & SEGMENT:
        raise HypercallError(errno.EINVAL, f"descriptor {descriptor:#018x} is a gate or a system segment")
    return descriptor | DPL


def checked_table(table: bytes) -> bytes:
    """A page of descriptors, each `checked`."""
    return _TABLE.pack(*map(checked, _TABLE.unpack(table)))
