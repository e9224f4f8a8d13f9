"""Guests of a few bytes, for benchmarks that need to know every instruction."""

from __future__ import annotations

from pathlib import Path

from minivmm.boot import elf

ADDRESS = 0x100000


def write_elf(path: Path, code: bytes) -> Path:
    """An ELF64 file that loads `code` at 1 MiB and enters it there in long mode."""
    start = elf.FILE_HEADER_64.size + elf.PROGRAM_HEADER_64.size
    header = elf.FileHeader(
        type=elf.ET_EXEC,
        machine=elf.EM_X86_64,
        version=1,
        entry=ADDRESS,
        phoff=elf.FILE_HEADER_64.size,
        shoff=0,
        flags=0,
        ehsize=elf.FILE_HEADER_64.size,
        phentsize=elf.PROGRAM_HEADER_64.size,
        phnum=1,
        shentsize=0,
        shnum=0,
        shstrndx=0,
    )
    segment = elf.ProgramHeader(elf.PT_LOAD, 5, start, ADDRESS, ADDRESS, len(code), len(code), 0x1000)
    ident = (elf.MAGIC + bytes((elf.CLASS_64, elf.DATA_LITTLE_ENDIAN, 1))).ljust(16, b"\0")
    path.write_bytes(ident + elf.FILE_HEADER_64.pack(header)[16:] + elf.PROGRAM_HEADER_64.pack(segment) + code)
    return path
