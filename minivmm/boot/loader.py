"""Which boot protocol an image wants, and carrying it out."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from minivmm.boot import flat, linux64, pvh
from minivmm.boot.elf import Elf
from minivmm.boot.flat import InitialState
from minivmm.errors import ConfigError, ImageError
from minivmm.memory import GuestMemory


class Boot(Enum):
    """How a guest is entered."""

    AUTO = "auto"
    """PVH where the image has the note, else the Linux 64-bit protocol."""
    PVH = "pvh"
    LINUX64 = "linux64"


def load(image: str | Path, memory: GuestMemory, cmdline: str, boot: Boot = Boot.AUTO) -> InitialState:
    """Puts `image` and what its boot protocol wants into `memory`; returns the first vCPU's registers.

    Raises ImageError for an image that cannot be booted that way, ConfigError for a command line that cannot be passed.
    """
    line = cmdline.encode("utf-8", "surrogateescape")
    if len(line) > flat.MAX_COMMAND_LINE or b"\0" in line:
        raise ConfigError(
            f"the command line of {len(line)} bytes cannot be passed",
            cause=f"at most {flat.MAX_COMMAND_LINE} bytes fit, none of them zero",
        )
    elf = Elf(image)
    elf.load(memory, lowest=flat.BOOT_END)
    pvh_entry = pvh.entry_point(elf) if boot is not Boot.LINUX64 else None
    if pvh_entry is not None:
        return pvh.prepare(memory, _inside(elf, pvh_entry), line)
    if boot is Boot.PVH:
        raise ImageError(image, "has no PVH note", cause="no XEN_ELFNOTE_PHYS32_ENTRY in it", remedy="--boot linux64")
    if not elf.is_64:
        raise ImageError(image, "is a 32-bit image without a PVH note", remedy="an ELF64 image, or one with the note")
    return linux64.prepare(memory, _inside(elf, elf.header.entry), line)


def _inside(elf: Elf, entry: int) -> int:
    """`entry` itself. Raises ImageError when no loaded segment holds it."""
    if any(segment.paddr <= entry < segment.paddr + segment.memsz for segment in elf.loads):
        return entry
    raise ImageError(elf.path, f"its entry point {entry:#x} lies in no loaded segment", offset=24)
