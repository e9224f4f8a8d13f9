"""Flattened device trees (Devicetree Specification 0.4, chapter 5): a tree of nodes to the blob a kernel is given."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from minivmm.layout import Layout

MAGIC = 0xD00D_FEED
VERSION, COMPATIBLE_VERSION = 17, 16
FDT_BEGIN_NODE, FDT_END_NODE, FDT_PROP, FDT_END = 1, 2, 3, 9


class FdtHeader(NamedTuple):
    """struct fdt_header (5.2)."""

    magic: int
    totalsize: int
    off_dt_struct: int
    off_dt_strings: int
    off_mem_rsvmap: int
    version: int
    last_comp_version: int
    boot_cpuid_phys: int
    size_dt_strings: int
    size_dt_struct: int


FDT_HEADER = Layout(">10I", FdtHeader)
NO_RESERVATION = bytes(16)  # 5.3: the memory reservation block, which ends with an empty entry

Value = bytes | str | int | tuple[int, ...] | tuple[str, ...] | None


@dataclass
class Node:
    """A node: properties, then children, by name (with the unit address). What a value becomes: see `encoded`."""

    properties: Mapping[str, Value] = field(default_factory=dict)
    children: Mapping[str, Node] = field(default_factory=dict)


def encoded(value: Value) -> bytes:
    """2.2.4: None is <empty>, numbers are <u32> cells, strings end in a zero."""
    match value:
        case None:
            return b""
        case bytes():
            return value
        case str():
            return value.encode() + b"\0"
        case int():
            return struct.pack(">I", value)
        case _:
            return b"".join(map(encoded, value))


def cells64(*values: int) -> tuple[int, ...]:
    """Each number as two cells, the high one first (2.3.5: #address-cells and #size-cells of 2)."""
    return tuple(cell for value in values for cell in (value >> 32, value & 0xFFFF_FFFF))


def flatten(root: Node, boot_cpu: int = 0) -> bytes:
    """The blob of the whole tree."""
    strings: dict[str, int] = {}
    structure = bytearray()
    _node(structure, strings, "", root)
    structure += struct.pack(">I", FDT_END)
    names = b"".join(name.encode() + b"\0" for name in strings)
    reservations = FDT_HEADER.size
    start = reservations + len(NO_RESERVATION)
    header = FdtHeader(
        MAGIC,
        start + len(structure) + len(names),
        start,
        start + len(structure),
        reservations,
        VERSION,
        COMPATIBLE_VERSION,
        boot_cpu,
        len(names),
        len(structure),
    )
    return FDT_HEADER.pack(header) + NO_RESERVATION + bytes(structure) + names


def _padded(data: bytes) -> bytes:
    """5.4: everything in the structure block is aligned to 4 bytes."""
    return data + bytes(-len(data) % 4)


def _node(structure: bytearray, strings: dict[str, int], name: str, node: Node) -> None:
    """5.4.1: FDT_BEGIN_NODE, properties, children, FDT_END_NODE."""
    structure += struct.pack(">I", FDT_BEGIN_NODE) + _padded(name.encode() + b"\0")
    for property_name, value in node.properties.items():
        if property_name not in strings:
            strings[property_name] = sum(len(known) + 1 for known in strings)
        data = encoded(value)
        structure += struct.pack(">III", FDT_PROP, len(data), strings[property_name]) + _padded(data)
    for child_name, child in node.children.items():
        _node(structure, strings, child_name, child)
    structure += struct.pack(">I", FDT_END_NODE)
