"""Guest images made in the test that runs them: an ELF around a few bytes of machine code."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from minivmm.boot.elf import (
    CLASS_64,
    DATA_LITTLE_ENDIAN,
    EM_X86_64,
    ET_EXEC,
    FILE_HEADER_64,
    MAGIC,
    PROGRAM_HEADER_64,
    PT_LOAD,
    PT_NOTE,
    FileHeader,
    ProgramHeader,
)

CODE = 0x100000

OUT_DEBUG_EXIT = b"\xe6\xf4"  # out 0xf4, al
HLT = b"\xf4"
CLI = b"\xfa"
SPIN = b"\xeb\xfe"  # jmp .


def exit_with(code: int) -> bytes:
    """Code that ends the machine through the debug-exit port."""
    return b"\xb0" + bytes([code]) + OUT_DEBUG_EXIT


def print_text(text: bytes) -> bytes:
    """Code that writes `text` to the serial port, a byte an exit."""
    return b"\xba" + struct.pack("<I", 0x3F8) + b"".join(b"\xb0" + bytes([byte]) + b"\xee" for byte in text)


def elf64(code: bytes, *, entry: int = CODE, segments: Sequence[ProgramHeader] = (), note: bytes = b"") -> bytes:
    """An ELF64 executable: `code` at CODE unless `segments` say otherwise, and an optional PT_NOTE."""
    count = (len(segments) or 1) + bool(note)
    start = FILE_HEADER_64.size + count * PROGRAM_HEADER_64.size
    headers = list(segments) or [
        ProgramHeader(PT_LOAD, 5, start, CODE, CODE, len(code), len(code), 0x1000),
    ]
    if note:
        headers.append(ProgramHeader(PT_NOTE, 4, start + len(code), 0, 0, len(note), len(note), 4))
    header = FileHeader(
        ET_EXEC, EM_X86_64, 1, entry, FILE_HEADER_64.size, 0, 0, FILE_HEADER_64.size, 56, count, 64, 0, 0
    )
    ident = (MAGIC + bytes([CLASS_64, DATA_LITTLE_ENDIAN, 1])).ljust(16, b"\0")
    return ident + FILE_HEADER_64.pack(header)[16:] + PROGRAM_HEADER_64.pack_all(headers) + code + note


def write_elf(directory: Path, code: bytes, name: str = "guest.elf") -> Path:
    """The file of an ELF around `code`."""
    path = directory / name
    path.write_bytes(elf64(code))
    return path
