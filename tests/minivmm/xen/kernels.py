"""Kernels for Xen domains, made in the test that reads or builds them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from minivmm.boot.elf import FILE_HEADER_64, PROGRAM_HEADER_64, PT_LOAD, SECTION_HEADER_64, ProgramHeader, SectionHeader
from minivmm.boot.xen_image import XenElfNote, XenImage, read
from tests.minivmm.images import elf64

VIRT_BASE = 0xFFFFFFFF80000000
KERNEL = 0x100000  # physical
CODE_SIZE = 0x1000

SHT_PROGBITS, SHT_STRTAB, SHT_NOTE = 1, 3, 7

Notes = Mapping[int, int | bytes]

LINUX_LIKE: dict[int, int | bytes] = {
    XenElfNote.ENTRY: VIRT_BASE + KERNEL,
    XenElfNote.VIRT_BASE: VIRT_BASE,
    XenElfNote.GUEST_OS: b"linux\0",
    XenElfNote.XEN_VERSION: b"xen-3.0\0",
    XenElfNote.LOADER: b"generic\0",
    XenElfNote.FEATURES: b"!writable_page_tables|pae_pgdir_above_4gb\0",
}


def xen_notes(notes: Notes) -> bytes:
    """The notes as an ELF file holds them."""
    parts = []
    for type, value in notes.items():
        desc = value if isinstance(value, bytes) else struct.pack("<Q", value)
        parts.append(struct.pack("<III", 4, len(desc), type) + b"Xen\0" + desc + bytes(-len(desc) % 4))
    return b"".join(parts)


def loads(*segments: tuple[int, int, int], count: int = 0) -> list[ProgramHeader]:
    """PT_LOADs of (physical address, bytes in the file, bytes in memory); `count` program headers in all."""
    offset = FILE_HEADER_64.size + (count or len(segments) + 1) * PROGRAM_HEADER_64.size
    return [ProgramHeader(PT_LOAD, 7, offset, paddr, paddr, filesz, memsz, 4096) for paddr, filesz, memsz in segments]


def kernel_bytes(
    notes: Notes = LINUX_LIKE,
    *,
    code: bytes = b"\xf4" * CODE_SIZE,
    bss: int = 0x2000,
    paddr: int = KERNEL,
) -> bytes:
    """An ELF kernel with PT_NOTE: `code`, and `bss` bytes after it."""
    return elf64(code, entry=paddr, segments=loads((paddr, len(code), len(code) + bss)), note=xen_notes(notes))


def with_sections(image: bytes, sections: Mapping[str, tuple[int, bytes]]) -> bytes:
    """`image` with section headers: name to type and content."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in [*sections, ".shstrtab"])
    content, headers = bytearray(image), [SectionHeader(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)]
    for name, (type, data) in {**sections, ".shstrtab": (SHT_STRTAB, names)}.items():
        at = names.index(name.encode() + b"\0")
        headers.append(SectionHeader(at, type, 0, 0, len(content), len(data), 0, 0, 1, 0))
        content += data
    header = FILE_HEADER_64.unpack(image)._replace(
        shoff=len(content), shentsize=SECTION_HEADER_64.size, shnum=len(headers), shstrndx=len(headers) - 1
    )
    content += SECTION_HEADER_64.pack_all(headers)
    content[16 : FILE_HEADER_64.size] = FILE_HEADER_64.pack(header)[16:]
    return bytes(content)


def legacy_kernel(text: str, **options: int) -> bytes:
    """A kernel that describes itself in a section __xen_guest only."""
    code = b"\xf4" * CODE_SIZE
    image = elf64(code, entry=KERNEL, segments=loads((KERNEL, len(code), options.get("memsz", 0x3000)), count=1))
    return with_sections(image, {"__xen_guest": (SHT_PROGBITS, text.encode() + b"\0")})


def write(directory: Path, data: bytes) -> Path:
    """A file of these bytes."""
    path = directory / "kernel"
    path.write_bytes(data)
    return path


def kernel(directory: Path, notes: Notes = LINUX_LIKE, **options: int) -> XenImage:
    """The kernel of `kernel_bytes`, read."""
    return read(write(directory, kernel_bytes(notes, **options)))  # type: ignore[arg-type]
