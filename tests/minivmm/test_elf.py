"""The ELF loader believes nothing in the file."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minivmm.boot import flat, linux64, pvh
from minivmm.boot.elf import FILE_HEADER_64, MAGIC, PROGRAM_HEADER_64, PT_LOAD, Elf, ProgramHeader
from minivmm.boot.loader import Boot, load
from minivmm.errors import ConfigError, ImageError
from minivmm.memory import GuestMemory
from tests.minivmm.images import CODE, HLT, elf64

MIB = 1 << 20
START = FILE_HEADER_64.size + PROGRAM_HEADER_64.size
LOWEST = flat.BOOT_END

PVH_NOTE = b"\4\0\0\0\4\0\0\0\x12\0\0\0Xen\0\x00\x00\x10\0"


def image(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "image"
    path.write_bytes(data)
    return path


def segment(paddr: int, filesz: int = 1, memsz: int = 1, offset: int = START) -> ProgramHeader:
    return ProgramHeader(PT_LOAD, 5, offset, paddr, paddr, filesz, memsz, 4096)


def test_a_segment_goes_to_its_physical_address_and_the_rest_stays_zero(tmp_path: Path) -> None:
    memory = GuestMemory(2 * MIB)
    data = elf64(b"code", segments=[segment(CODE, 4, 64)])
    assert Elf(image(tmp_path, data)).load(memory, lowest=LOWEST) == CODE + 64
    assert memory.read(CODE, 64) == b"code".ljust(64, b"\0")


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("is empty", b""),
        ("not an ELF file", b"#!/bin/sh\n"),
        ("truncated", MAGIC + b"\2\1\1"),
        ("little-endian", MAGIC + b"\2\2\1" + bytes(100)),
        ("another machine", elf64(HLT)[:18] + b"\xf3\0" + elf64(HLT)[20:]),
        ("not an executable", elf64(HLT)[:16] + b"\1\0" + elf64(HLT)[18:]),
        ("nothing to load", elf64(HLT)[:56] + b"\0\0" + elf64(HLT)[58:]),
        ("program headers lie beyond", elf64(HLT)[:32] + b"\xff" * 8 + elf64(HLT)[40:]),
        ("beyond the end of the file", elf64(HLT, segments=[segment(CODE, 4096, 4096)])),
        ("larger in the file than in memory", elf64(b"four", segments=[segment(CODE, 4, 3)])),
    ],
)
def test_a_malformed_image_is_refused_in_words(tmp_path: Path, what: str, data: bytes) -> None:
    with pytest.raises(ImageError, match=what):
        Elf(image(tmp_path, data))


@pytest.mark.parametrize(
    ("what", "segments"),
    [
        ("does not fit guest memory", [segment(16 * MIB)]),
        ("does not fit guest memory", [segment(2 * MIB - 1, 1, 2)]),
        ("does not fit guest memory", [segment(1 << 63, 1, (1 << 64) - 1)]),
        ("overlaps the segment before it", [segment(CODE, 1, 4096), segment(CODE + 4095)]),
        ("overlaps the loader's boot structures", [segment(0x7000)]),
        ("no segment to load", [segment(CODE, 0, 0)]),
    ],
)
def test_segments_that_cannot_be_placed_are_refused(tmp_path: Path, what: str, segments: list[ProgramHeader]) -> None:
    elf = Elf(image(tmp_path, elf64(b"x", segments=segments)))
    with pytest.raises(ImageError, match=what):
        elf.load(GuestMemory(2 * MIB), lowest=LOWEST)


def test_too_little_memory_names_the_option_that_mends_it(tmp_path: Path) -> None:
    elf = Elf(image(tmp_path, elf64(b"x", segments=[segment(100 * MIB)])))
    with pytest.raises(ImageError, match="--mem 101M"):
        elf.load(GuestMemory(2 * MIB), lowest=LOWEST)


@pytest.mark.parametrize("what", ["no such file", "is a directory", "not a regular file"])
def test_what_is_no_regular_file_is_refused_in_words(tmp_path: Path, what: str) -> None:
    path = tmp_path / "image"
    if what == "is a directory":
        path.mkdir()
    elif what == "not a regular file":
        path = Path("/dev/zero")
    with pytest.raises(ImageError, match=what):
        Elf(path)


@pytest.mark.usefixtures("ordinary_user")
def test_a_file_that_may_not_be_read_is_refused_in_words(tmp_path: Path) -> None:
    path = image(tmp_path, elf64(HLT))
    path.chmod(0)
    with pytest.raises(ImageError, match="may not be read"):
        Elf(path)


def test_a_pvh_note_decides_how_the_image_is_entered(tmp_path: Path) -> None:
    path = image(tmp_path, elf64(HLT, note=PVH_NOTE))
    assert pvh.entry_point(Elf(path)) == CODE
    assert load(path, GuestMemory(2 * MIB), "").regs.rbx == pvh.START_INFO
    assert load(path, GuestMemory(2 * MIB), "", Boot.LINUX64).regs.rsi == linux64.ZERO_PAGE
    bare = image(tmp_path, elf64(HLT))
    assert load(bare, GuestMemory(2 * MIB), "").regs.rsi == linux64.ZERO_PAGE
    with pytest.raises(ImageError, match="no PVH note"):
        load(bare, GuestMemory(2 * MIB), "", Boot.PVH)


@pytest.mark.parametrize("note", [PVH_NOTE[:14], b"\xff" * 20, PVH_NOTE[:4] + b"\xff\xff\0\0" + PVH_NOTE[8:]])
def test_a_malformed_note_is_no_note(tmp_path: Path, note: bytes) -> None:
    assert pvh.entry_point(Elf(image(tmp_path, elf64(HLT, note=note)))) is None


def test_an_entry_point_outside_every_segment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="lies in no loaded segment"):
        load(image(tmp_path, elf64(HLT, entry=CODE + 1)), GuestMemory(2 * MIB), "")


@pytest.mark.parametrize("cmdline", ["x" * 5000, "a\0b"])
def test_a_command_line_that_cannot_be_passed_is_refused(tmp_path: Path, cmdline: str) -> None:
    with pytest.raises(ConfigError, match="command line"):
        load(image(tmp_path, elf64(HLT)), GuestMemory(2 * MIB), cmdline)


@given(position=st.integers(0, 300), replacement=st.binary(min_size=1, max_size=16), cut=st.integers(0, 400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_any_damage_is_an_image_error_or_a_loadable_image(
    tmp_path: Path, position: int, replacement: bytes, cut: int
) -> None:
    whole = elf64(HLT * 32, segments=[segment(CODE, 16, 32), segment(CODE + 4096, 8, 8)], note=PVH_NOTE)
    damaged = bytearray(whole[: len(whole) - cut] if cut < len(whole) else b"")
    damaged[position : position + len(replacement)] = replacement
    path = image(tmp_path, bytes(damaged))
    with contextlib.suppress(ImageError):
        load(path, GuestMemory(2 * MIB), "quiet")
