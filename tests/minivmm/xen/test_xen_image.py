"""A Xen kernel is known by its notes, and a kernel whose notes make no sense is refused in words."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minivmm.boot.elf import Elf
from minivmm.boot.xen_image import XenElfNote, is_xen, read
from minivmm.errors import ImageError
from minivmm.xen.abi import Feature
from tests.minivmm.images import HLT, elf64
from tests.minivmm.test_bzimage import bz_image
from tests.minivmm.test_elf import PVH_NOTE
from tests.minivmm.xen.kernels import (
    KERNEL,
    LINUX_LIKE,
    SHT_NOTE,
    VIRT_BASE,
    kernel,
    kernel_bytes,
    legacy_kernel,
    loads,
    with_sections,
    write,
    xen_notes,
)

LEGACY = f"GUEST_OS=linux,XEN_VER=xen-3.0,VIRT_BASE={VIRT_BASE:#x},ELF_PADDR_OFFSET=0x0,LOADER=generic"


def test_every_note_is_read(tmp_path: Path) -> None:
    image = kernel(
        tmp_path,
        {
            **LINUX_LIKE,
            XenElfNote.HYPERCALL_PAGE: VIRT_BASE + KERNEL + 0x1000,
            XenElfNote.GUEST_VERSION: b"2.6",  # no zero at its end
            XenElfNote.PAE_MODE: b"yes\0",
            XenElfNote.BSD_SYMTAB: b"yes\0",
            XenElfNote.HV_START_LOW: 0xFFFF800000000000,
            XenElfNote.L1_MFN_VALID: struct.pack("<4Q", 1, 1, 3, 2),
            XenElfNote.SUSPEND_CANCEL: struct.pack("<I", 1),
            XenElfNote.INIT_P2M: 0x8000000000,
            XenElfNote.MOD_START_PFN: b"\1",
            XenElfNote.SUPPORTED_FEATURES: 1 << Feature.DOM0,
        },
    )
    assert image.entry == image.virt_start == VIRT_BASE + KERNEL
    assert image.virt_end == VIRT_BASE + KERNEL + 0x3000
    assert (image.virt_base, image.paddr_offset) == (VIRT_BASE, 0)
    assert image.hypercall_page == VIRT_BASE + KERNEL + 0x1000
    assert image.init_p2m == 0x8000000000
    assert image.required_features == 1 << Feature.WRITABLE_PAGE_TABLES
    assert image.supported_features == (
        1 << Feature.WRITABLE_PAGE_TABLES | 1 << Feature.PAE_PGDIR_ABOVE_4GB | 1 << Feature.DOM0
    )
    assert (image.loader, image.guest_os, image.guest_version) == ("generic", "linux", "2.6")
    assert (image.xen_version, image.pae_mode) == ("xen-3.0", "yes")
    assert image.hv_start_low == 0xFFFF800000000000
    assert image.l1_mfn_valid == ((1, 1), (3, 2))
    assert (image.bsd_symtab, image.suspend_cancel, image.mod_start_pfn) == (True, True, True)


def test_what_a_kernel_leaves_out_has_the_default_of_elfnote_h(tmp_path: Path) -> None:
    image = kernel(tmp_path, {XenElfNote.GUEST_OS: b"tiny"})
    assert (image.entry, image.virt_base, image.paddr_offset) == (KERNEL, 0, 0)
    assert (image.hypercall_page, image.init_p2m, image.hv_start_low) == (None, None, None)
    assert (image.suspend_cancel, image.mod_start_pfn, image.bsd_symtab) == (False, False, False)


def test_notes_in_sections_count_where_no_segment_has_them(tmp_path: Path) -> None:
    plain = elf64(HLT * 64, entry=KERNEL, segments=loads((KERNEL, 64, 64), count=1))
    noted = with_sections(plain, {".note.Xen": (SHT_NOTE, xen_notes(LINUX_LIKE))})
    assert read(write(tmp_path, noted)).virt_base == VIRT_BASE


def test_the_older_section_says_the_same_as_notes(tmp_path: Path) -> None:
    text = f"{LEGACY},VIRT_ENTRY={VIRT_BASE + KERNEL:#x},HYPERCALL_PAGE=0x101,PAE=yes,FEATURES=dom0|new,BSD_SYMTAB"
    image = read(write(tmp_path, legacy_kernel(text)))
    assert (image.entry, image.virt_base) == (VIRT_BASE + KERNEL, VIRT_BASE)
    assert image.hypercall_page == VIRT_BASE + 0x101000  # there it is a pfn
    assert (image.guest_os, image.pae_mode, image.bsd_symtab) == ("linux", "yes", True)
    assert image.supported_features == 1 << Feature.DOM0


def test_in_the_older_section_physical_addresses_start_at_virt_base_by_default(tmp_path: Path) -> None:
    image = read(write(tmp_path, legacy_kernel(f"VIRT_BASE={KERNEL:#x}")))
    assert image.paddr_offset == image.virt_base == image.virt_start == KERNEL


def test_a_bzimage_is_read_as_the_kernel_in_it(tmp_path: Path) -> None:
    assert read(write(tmp_path, bytes(bz_image(kernel_bytes())))).guest_os == "linux"


@pytest.mark.parametrize(
    ("xen", "data"),
    [
        (True, kernel_bytes()),
        (True, legacy_kernel(LEGACY)),
        (False, elf64(HLT)),
        (False, elf64(HLT, note=PVH_NOTE)),
    ],
    ids=["notes", "section", "no notes", "pvh only"],
)
def test_only_what_says_how_a_domain_enters_it_is_a_xen_kernel(tmp_path: Path, xen: bool, data: bytes) -> None:
    path = write(tmp_path, data)
    assert is_xen(Elf(path)) is xen
    if not xen:
        with pytest.raises(ImageError, match="no kernel for a Xen domain"):
            read(path)


@pytest.mark.parametrize(
    ("what", "notes"),
    [
        ("ENTRY is 3 bytes long", {XenElfNote.ENTRY: b"abc"}),
        ("entry point .* is not in the kernel", {XenElfNote.ENTRY: VIRT_BASE + KERNEL - 1}),
        ("not above VIRT_BASE", {XenElfNote.VIRT_BASE: VIRT_BASE, XenElfNote.PADDR_OFFSET: KERNEL + 0x1000}),
        ("not above VIRT_BASE", {XenElfNote.VIRT_BASE: (1 << 64) - KERNEL}),
        ("whole pages", {XenElfNote.VIRT_BASE: VIRT_BASE + 1}),
        ("hypercall page", {XenElfNote.HYPERCALL_PAGE: VIRT_BASE}),
        ("hypercall page", {XenElfNote.HYPERCALL_PAGE: VIRT_BASE + KERNEL + 8}),
        ("INIT_P2M", {XenElfNote.INIT_P2M: 0x8000000001}),
        ("loader 'special'", {XenElfNote.LOADER: b"special\0"}),
        ("made for 'xen-2.0'", {XenElfNote.XEN_VERSION: b"xen-2.0"}),
        ("requires the feature 'magic'", {XenElfNote.FEATURES: b"dom0|!magic"}),
        ("not pairs", {XenElfNote.L1_MFN_VALID: bytes(8)}),
    ],
)
def test_notes_that_make_no_sense_are_refused_in_words(
    tmp_path: Path, what: str, notes: dict[int, int | bytes]
) -> None:
    with pytest.raises(ImageError, match=what):
        kernel(tmp_path, {**LINUX_LIKE, **notes})


@pytest.mark.parametrize("value", ["", "0x", "-1", "0x10000000000000000", "four"])
def test_a_number_of_the_older_section_that_is_none_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ImageError, match="gives VIRT_BASE as"):
        read(write(tmp_path, legacy_kernel(f"VIRT_BASE={value}")))


def test_a_32_bit_kernel_is_refused(tmp_path: Path) -> None:
    data = bytearray(kernel_bytes())
    data[4] = 1  # EI_CLASS
    with pytest.raises(ImageError):
        read(write(tmp_path, bytes(data)))


WHOLE = with_sections(kernel_bytes({**LINUX_LIKE, XenElfNote.INIT_P2M: 0x8000000000}, code=HLT * 64), {})
OLDER = legacy_kernel(LEGACY + ",HYPERCALL_PAGE=0x101")


@pytest.mark.parametrize("whole", [WHOLE, OLDER], ids=["notes", "section"])
@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
def test_any_damage_is_an_image_error_or_an_image(tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        near_headers = st.integers(0, 300)
        near_sections = st.integers(len(whole) - 300, len(whole) - 1)
        at = data.draw(st.one_of(near_headers, near_sections))
        replacement = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.just(b"\xff" * 8)))
        damaged[at : at + len(replacement)] = replacement
    path = write(
        tmp_path, bytes(damaged[: data.draw(st.integers(1, len(whole)))] if data.draw(st.booleans()) else damaged)
    )
    with suppress(ImageError):
        read(path)
