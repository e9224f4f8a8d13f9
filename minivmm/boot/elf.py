"""ELF executables (System V ABI, chapters 4 and 5), as far as a boot loader needs them: segments, notes, sections.

Nothing in the file is believed: every offset and size is checked against the file and against guest memory before a
byte is copied.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from minivmm.errors import GuestMemoryError, ImageError
from minivmm.layout import Layout
from minivmm.memory import GuestMemory

MAX_IMAGE = 1 << 30
MAX_SEGMENTS = 128


class FileHeader(NamedTuple):
    """Elf64_Ehdr and Elf32_Ehdr without e_ident."""

    type: int
    machine: int
    version: int
    entry: int
    phoff: int
    shoff: int
    flags: int
    ehsize: int
    phentsize: int
    phnum: int
    shentsize: int
    shnum: int
    shstrndx: int


class ProgramHeader(NamedTuple):
    """Elf64_Phdr: one segment. Offsets and sizes in bytes."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


class SectionHeader(NamedTuple):
    """Elf64_Shdr and Elf32_Shdr, which differ in the fields' sizes only."""

    name: int  # offset in the section of names
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int
    info: int
    addralign: int
    entsize: int


class _ProgramHeader32(NamedTuple):
    """Elf32_Phdr: the same fields in another order."""

    type: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    flags: int
    align: int


class _NoteHeader(NamedTuple):
    """Elf_Nhdr: followed by the name and the descriptor, each padded to 4 bytes."""

    namesz: int
    descsz: int
    type: int


class Note(NamedTuple):
    """One ELF note."""

    name: str
    type: int
    desc: bytes


FILE_HEADER_64 = Layout("<16xHHIQQQIHHHHHH", FileHeader)
FILE_HEADER_32 = Layout("<16xHHIIIIIHHHHHH", FileHeader)
PROGRAM_HEADER_64 = Layout("<IIQQQQQQ", ProgramHeader)
PROGRAM_HEADER_32 = Layout("<IIIIIIII", _ProgramHeader32)
SECTION_HEADER_64 = Layout("<IIQQQQIIQQ", SectionHeader)
SECTION_HEADER_32 = Layout("<IIIIIIIIII", SectionHeader)
NOTE_HEADER = Layout("<III", _NoteHeader)

MAGIC = b"\x7fELF"
CLASS_32, CLASS_64 = 1, 2
DATA_LITTLE_ENDIAN = 1
EM_386, EM_X86_64, EM_RISCV = 3, 62, 243
_MACHINE_NAMES = {EM_386: "80386", EM_X86_64: "x86-64", EM_RISCV: "RISC-V"}

PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4
SHT_NOTE, SHT_NOBITS = 7, 8
ET_EXEC, ET_DYN = 2, 3


class Elf:
    """A parsed ELF image, for x86 unless told otherwise. Raises ImageError: where in the file, and what is wrong."""

    def __init__(
        self, path: str | Path, data: bytes | None = None, *, machines: tuple[int, ...] = (EM_X86_64, EM_386)
    ) -> None:
        """`data`: the image, where it is not the file at `path` itself but was unpacked from it. `machines`: which
        values of e_machine are wanted, the usual one first."""
        self.path = Path(path)
        self._data = read_image(self.path) if data is None else data
        if self._data[:4] != MAGIC:
            raise self._error("not an ELF file", 0, cause=f"it starts with {self._data[:4]!r}", remedy="vtk guest list")
        if len(self._data) < FILE_HEADER_64.size:
            raise self._error("truncated: the ELF header is incomplete", len(self._data))
        if self._data[5] != DATA_LITTLE_ENDIAN or self._data[4] not in (CLASS_32, CLASS_64):
            raise self._error("not a little-endian ELF32 or ELF64 file", 4)
        self.is_64 = self._data[4] == CLASS_64
        self.header = (FILE_HEADER_64 if self.is_64 else FILE_HEADER_32).unpack(self._data)
        if self.header.machine not in machines:
            wanted = f"{_MACHINE_NAMES[machines[0]]} is {machines[0]}"
            raise self._error(f"made for another machine (e_machine {self.header.machine}, {wanted})", 18)
        if self.header.type not in (ET_EXEC, ET_DYN):
            raise self._error(f"not an executable (e_type {self.header.type}): an object file or a core dump?", 16)
        self.segments = self._program_headers()

    def _error(self, message: str, offset: int, *, cause: str = "", remedy: str = "") -> ImageError:
        return ImageError(self.path, message, offset=offset, cause=cause, remedy=remedy)

    def _program_headers(self) -> tuple[ProgramHeader, ...]:
        header = self.header
        size = PROGRAM_HEADER_64.size if self.is_64 else PROGRAM_HEADER_32.size
        if not 0 < header.phnum <= MAX_SEGMENTS or header.phentsize < size:
            raise self._error(f"{header.phnum} program headers of {header.phentsize} bytes: nothing to load", 54)
        if header.phoff + header.phnum * header.phentsize > len(self._data):
            raise self._error("truncated: the program headers lie beyond the end of the file", header.phoff)
        segments = []
        for index in range(header.phnum):
            offset = header.phoff + index * header.phentsize
            if self.is_64:
                segment = PROGRAM_HEADER_64.unpack(self._data, offset)
            else:
                segment = ProgramHeader(**PROGRAM_HEADER_32.unpack(self._data, offset)._asdict())
            if segment.type in (PT_LOAD, PT_NOTE):
                if segment.offset + segment.filesz > len(self._data):
                    raise self._error(f"truncated: segment {index} lies beyond the end of the file", segment.offset)
                if segment.type == PT_LOAD and segment.filesz > segment.memsz:
                    raise self._error(f"segment {index} is larger in the file than in memory", offset)
            segments.append(segment)
        return tuple(segments)

    @property
    def loads(self) -> tuple[ProgramHeader, ...]:
        """The segments to load, those that occupy memory."""
        return tuple(segment for segment in self.segments if segment.type == PT_LOAD and segment.memsz)

    def notes(self) -> Iterator[Note]:
        """The notes of every PT_NOTE segment. A malformed note ends its segment."""
        for segment in self.segments:
            if segment.type == PT_NOTE:
                yield from self._notes(segment.offset, segment.filesz)

    def section_notes(self) -> Iterator[Note]:
        """The notes of every SHT_NOTE section, for images whose linker made no PT_NOTE of them."""
        for _, section in self.sections():
            if section.type == SHT_NOTE:
                yield from self._notes(section.offset, section.size)

    def _notes(self, position: int, size: int) -> Iterator[Note]:
        end = position + size
        while position + NOTE_HEADER.size <= end:
            header = NOTE_HEADER.unpack(self._data, position)
            name_at = position + NOTE_HEADER.size
            desc_at = name_at + (header.namesz + 3 & ~3)
            position = desc_at + (header.descsz + 3 & ~3)
            if desc_at + header.descsz > end:
                break
            name = self._data[name_at : name_at + header.namesz].rstrip(b"\0").decode("ascii", "replace")
            yield Note(name, header.type, self._data[desc_at : desc_at + header.descsz])

    def sections(self) -> tuple[tuple[str, SectionHeader], ...]:
        """The sections with their names; none when the image was stripped of them. Raises ImageError."""
        header, layout = self.header, SECTION_HEADER_64 if self.is_64 else SECTION_HEADER_32
        if not header.shoff or not header.shnum:
            return ()
        if header.shentsize < layout.size or header.shstrndx >= header.shnum:
            raise self._error(f"{header.shnum} section headers of {header.shentsize} bytes: malformed", 58)
        if header.shoff + header.shnum * header.shentsize > len(self._data):
            raise self._error("truncated: the section headers lie beyond the end of the file", header.shoff)
        sections = [layout.unpack(self._data, header.shoff + index * header.shentsize) for index in range(header.shnum)]
        for index, section in enumerate(sections):
            if section.type != SHT_NOBITS and section.offset + section.size > len(self._data):
                raise self._error(f"truncated: section {index} lies beyond the end of the file", section.offset)
        names = self.section_bytes(sections[header.shstrndx])
        return tuple(
            (names[section.name :].partition(b"\0")[0].decode("ascii", "replace"), section) for section in sections
        )

    def section_bytes(self, section: SectionHeader) -> bytes:
        """What the file holds of a section."""
        return b"" if section.type == SHT_NOBITS else self._data[section.offset : section.offset + section.size]

    def segment_bytes(self, segment: ProgramHeader) -> memoryview:
        """What the file holds of a segment, not copied."""
        return memoryview(self._data)[segment.offset : segment.offset + segment.filesz]

    def load(self, memory: GuestMemory, *, lowest: int) -> int:
        """Copies the segments to their physical addresses (p_paddr) and returns the first address after them.

        Fresh guest memory is zero, so what memsz has beyond filesz needs no work. `lowest` is where the loader's own
        structures end. Raises ImageError for segments that overlap one another or those, or do not fit memory.
        """
        loads = sorted(self.loads, key=lambda segment: segment.paddr)
        if not loads:
            raise self._error("no segment to load", self.header.phoff)
        end = lowest
        for segment in loads:
            if segment.paddr < end:
                what = "the loader's boot structures" if segment is loads[0] else "the segment before it"
                raise self._error(f"a segment at {segment.paddr:#x} overlaps {what}, which end at {end:#x}", 0)
            try:
                memory.view(segment.paddr, segment.memsz).release()
            except GuestMemoryError:
                raise self._error(
                    f"a segment at {segment.paddr:#x} of {segment.memsz:#x} bytes does not fit guest memory",
                    segment.offset,
                    cause=f"the machine has {memory.size >> 20} MiB",
                    remedy=_more_memory(segment),
                ) from None
            memory.write(segment.paddr, self.segment_bytes(segment))
            end = segment.paddr + segment.memsz
        return end


def _more_memory(segment: ProgramHeader) -> str:
    needed = (segment.paddr + segment.memsz >> 20) + 1
    return f"--mem {needed}M" if needed <= 64 << 10 else "an image linked at a lower physical address"


def read_image(path: Path) -> bytes:
    """The file's bytes. Raises ImageError for what is no readable, non-empty regular file of at most 1 GiB."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(path, "is not a regular file")
            if status.st_size > MAX_IMAGE:
                raise ImageError(path, f"is larger than {MAX_IMAGE >> 30} GiB: not a kernel")
            data = file.read()
    except FileNotFoundError:
        raise ImageError(path, "no such file", remedy="vtk guest list") from None
    except IsADirectoryError:
        raise ImageError(path, "is a directory, not an image") from None
    except PermissionError:
        raise ImageError(path, "may not be read by this user", remedy=f"ls -l {path}") from None
    except (OSError, ValueError) as error:
        raise ImageError(path, f"cannot be read: {error}") from error
    if not data:
        raise ImageError(path, "is empty")
    return data
