"""Structures of the specifications, declared once: a `struct` format joined to a NamedTuple with the field names.

class Descriptor(NamedTuple): ...
DESCRIPTOR = Layout("<QIHH", Descriptor)
DESCRIPTOR.unpack(memory, address).addr
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

Record = TypeVar("Record", bound=tuple[Any, ...])


class Layout(Generic[Record]):
    """The bytes of one structure. `size` is in bytes; the format gives byte order and padding (`x`)."""

    __slots__ = ("_struct", "record", "size")

    def __init__(self, layout: str, record: type[Record]) -> None:
        self._struct = struct.Struct(layout)
        self.record = record
        self.size = self._struct.size

    def unpack(self, buffer: Any, offset: int = 0) -> Record:
        """The structure at `offset` of any buffer. Raises struct.error when it does not fit."""
        return self.record(*self._struct.unpack_from(buffer, offset))

    def pack(self, record: Record) -> bytes:
        """The structure's bytes. Raises struct.error for a value out of its field's range."""
        return self._struct.pack(*record)

    def pack_into(self, buffer: Any, offset: int, record: Record) -> None:
        """Writes the structure at `offset` of a writable buffer."""
        self._struct.pack_into(buffer, offset, *record)

    def pack_all(self, records: Iterable[Record]) -> bytes:
        """An array of the structure."""
        return b"".join(map(self.pack, records))
