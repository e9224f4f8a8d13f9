"""A domain starts in the memory that xen.h promises: walked here by page tables alone, without the builder's words."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minivmm.boot import xen_image
from minivmm.boot.xen_image import XenElfNote, XenImage
from minivmm.errors import ConfigError, ImageError
from minivmm.memory import GuestMemory
from minivmm.xen import abi
from minivmm.xen.builder import StartOfDay, build
from tests.minivmm.images import elf64
from tests.minivmm.xen.kernels import KERNEL, LINUX_LIKE, VIRT_BASE, kernel, kernel_bytes, loads, write, xen_notes

MIB = 1 << 20
PAGE = 4096
MACHINE = 40 * MIB
INIT_P2M = 0x8000000000
SHARED_INFO = 7  # mfn
TOP = (1 << 64) - KERNEL - 0x10000  # a VIRT_BASE above which there is room for the kernel and little more
MOVED = {**LINUX_LIKE, XenElfNote.INIT_P2M: INIT_P2M, XenElfNote.MOD_START_PFN: 1}


class Leaf(NamedTuple):
    """A page that the domain's tables map, and the rights that all four entries leave."""

    mfn: int
    writable: bool
    user: bool


def walk(memory: GuestMemory, cr3: int) -> tuple[dict[int, Leaf], dict[int, int]]:
    """Everything mapped from `cr3` (SDM 3A 4.5): leaves by virtual page address, and table frames with their levels."""
    leaves: dict[int, Leaf] = {}
    tables: dict[int, int] = {}

    def visit(table: int, level: int, address: int, writable: bool, user: bool) -> None:
        assert tables.setdefault(table, level) == level
        for index, entry in enumerate(struct.unpack("<512Q", memory.read(table * PAGE, PAGE))):
            if not entry & 1:
                assert entry == 0
                continue
            assert not entry & 0x80, "a large page"
            virtual = address + (index << 12 + 9 * (level - 1))
            if level == 4 and index >= 256:
                virtual |= 0xFFFF << 48
            below = entry >> 12 & (1 << 40) - 1
            rights = (writable and bool(entry & 2), user and bool(entry & 4))
            if level == 1:
                leaves[virtual] = Leaf(below, *rights)
            else:
                visit(below, level - 1, virtual, *rights)

    visit(cr3 // PAGE, 4, 0, True, True)
    return leaves, tables


class Domain:
    """A built domain, seen through its own page tables."""

    def __init__(self, memory: GuestMemory, image: XenImage, mfns: list[int], start: StartOfDay) -> None:
        self.memory, self.image, self.mfns, self.start = memory, image, mfns, start
        self.leaves, self.tables = walk(memory, start.registers.cr3)
        self.info = abi.START_INFO.unpack(self.read(start.registers.rsi, abi.START_INFO.size))

    def read(self, address: int, size: int) -> bytes:
        """What the guest reads at a virtual address."""
        parts = []
        while size:
            step = min(size, PAGE - address % PAGE)
            parts.append(self.memory.read(self.leaves[address & -PAGE].mfn * PAGE + address % PAGE, step))
            address, size = address + step, size - step
        return b"".join(parts)

    def region(self) -> Iterator[tuple[int, Leaf]]:
        """The start-of-day region: pages mapped one after the other from VIRT_BASE on."""
        address = self.image.virt_base
        while address in self.leaves:
            yield address, self.leaves[address]
            address += PAGE


def frames(count: int, seed: int = 1) -> list[int]:
    """`count` frames of the machine in disorder."""
    free = [mfn for mfn in range(MACHINE // PAGE) if mfn != SHARED_INFO]
    random.Random(seed).shuffle(free)
    return free[:count]


def domain(image: XenImage, mfns: list[int], initrd: bytes = b"", **options: int) -> Domain:
    memory = GuestMemory(MACHINE)
    start = build(memory, image, mfns, shared_info_mfn=SHARED_INFO, cmdline=b"quiet", initrd=initrd, **options)
    return Domain(memory, image, mfns, start)


def check(domain: Domain, code: bytes, initrd: bytes) -> None:
    """Everything that xen.h promises of a domain that has just started."""
    image, info, start, mfns = domain.image, domain.info, domain.start, domain.mfns
    region = dict(domain.region())
    end = image.virt_base + len(region) * PAGE
    pfn_of = {mfn: pfn for pfn, mfn in enumerate(mfns)}

    # 2, 5: pfn after pfn, to a 4 MiB boundary; ring 3 reaches all of it.
    assert end % (4 * MIB) == 0
    assert [leaf.mfn for leaf in region.values()] == mfns[: len(region)]
    assert all(leaf.user for leaf in domain.leaves.values())
    # 6: writable, but for the page tables, of which none is mapped writable anywhere.
    assert all(not leaf.writable for leaf in domain.leaves.values() if leaf.mfn in domain.tables)
    assert all(leaf.writable for leaf in domain.leaves.values() if leaf.mfn not in domain.tables)

    assert domain.read(image.virt_start, len(code)) == code
    bss = image.virt_start + len(code)
    assert domain.read(bss, image.virt_end - bss) == bytes(image.virt_end - bss)

    assert info.magic.rstrip(b"\0") == b"xen-3.0-x86_64"
    assert info.nr_pages == len(mfns)
    assert info.shared_info == SHARED_INFO * PAGE
    assert info.cmd_line.rstrip(b"\0") == b"quiet"
    assert (info.store_mfn, info.console_mfn) == (start.store_mfn, start.console_mfn)
    p2m = domain.read(info.mfn_list, len(mfns) * 8)
    assert list(struct.unpack(f"<{len(mfns)}Q", p2m)) == mfns
    first_p2m = domain.leaves[info.mfn_list].mfn
    assert first_p2m == start.p2m_mfns[0]

    # 3g: the tables, the root first; what the p2m list needs besides is after it.
    pt_pfns = range(
        pfn_of[domain.leaves[info.pt_base].mfn], pfn_of[domain.leaves[info.pt_base].mfn] + info.nr_pt_frames
    )
    p2m_pfns = range(info.first_p2m_pfn, info.first_p2m_pfn + info.nr_p2m_frames)
    assert start.registers.cr3 == domain.leaves[info.pt_base].mfn * PAGE
    assert {pfn_of[table] for table in domain.tables} <= {*pt_pfns, *p2m_pfns}
    assert {table.mfn: table.level for table in start.page_tables} == domain.tables
    assert {pfn_of[mfn] for mfn in start.p2m_mfns} <= {*p2m_pfns} or not p2m_pfns

    # 3: the order of what is in the region, 4: each on its own pages, 7: the padding.
    start_info, store, console = (pfn_of[mfn] for mfn in (start.start_info_mfn, start.store_mfn, start.console_mfn))
    stack = start.registers.rsp // PAGE - image.virt_base // PAGE - 1
    kernel_end = -(-(image.virt_end - image.virt_base) // PAGE)
    elements = [("kernel", 0, kernel_end)]
    if initrd:
        size = -(-len(initrd) // PAGE)
        if info.flags & abi.StartInfoFlag.MOD_START_PFN:
            assert info.mod_start >= len(region)
            content = b"".join(domain.memory.read(mfns[info.mod_start + n] * PAGE, PAGE) for n in range(size))
            assert not {*range(info.mod_start, info.mod_start + size)} & {*p2m_pfns}
        else:
            elements.append(("initrd", (info.mod_start - image.virt_base) // PAGE, size))
            content = domain.read(info.mod_start, len(initrd))
        assert content[: len(initrd)] == initrd
    assert info.mod_len == len(initrd)
    if not info.nr_p2m_frames:
        elements.append(("p2m", pfn_of[first_p2m], len(start.p2m_mfns)))
    elements += [("start_info", start_info, 1), ("store", store, 1), ("console", console, 1)]
    elements += [("page tables", pt_pfns.start, len(pt_pfns)), ("stack", stack, 1)]
    for (_, before, size), (name, at, _) in pairwise(elements):
        assert at == before + size, name
    assert end - start.registers.rsp >= 512 << 10


def test_a_small_kernel_starts_as_xen_h_promises(tmp_path: Path) -> None:
    code, initrd = bytes(range(256)) * 16, b"initrd" * 3000
    image = xen_image.read(write(tmp_path, kernel_bytes(code=code)))
    built = domain(image, frames(2048), initrd, store_evtchn=1, console_evtchn=2)
    check(built, code, initrd)
    assert (built.info.store_evtchn, built.info.console_evtchn) == (1, 2)
    assert built.info.mod_start == VIRT_BASE + KERNEL + 0x3000
    assert built.start.registers.rip == image.entry
    assert (built.start.registers.cs, built.start.registers.ss) == (0xE033, 0xE02B)


def test_a_p2m_list_with_a_place_of_its_own_is_mapped_there(tmp_path: Path) -> None:
    code, initrd = bytes(range(256)) * 16, b"initrd" * 3000
    built = domain(xen_image.read(write(tmp_path, kernel_bytes(MOVED, code=code))), frames(2048), initrd)
    check(built, code, initrd)
    assert built.info.mfn_list == INIT_P2M
    assert built.info.nr_p2m_frames == 4 + 3  # 2048 entries, and their L1, L2 and L3 table
    assert built.info.flags & abi.StartInfoFlag.MOD_START_PFN
    assert {page for page in built.leaves if page < VIRT_BASE} == {INIT_P2M + PAGE * n for n in range(4)}


@pytest.mark.parametrize(
    "virt_base", [0, 0x400000, 0x40000000 - 0x1FF000, 0x7FFFFFC00000, 0xFFFF880000000000, (1 << 64) - (2 << 20)]
)
def test_the_region_may_begin_anywhere(tmp_path: Path, virt_base: int) -> None:
    notes = {**LINUX_LIKE, XenElfNote.ENTRY: virt_base + KERNEL, XenElfNote.VIRT_BASE: virt_base}
    check(domain(kernel(tmp_path, notes), frames(2048)), b"\xf4" * 4096, b"")


def test_a_p2m_list_just_below_the_region_shares_its_tables(tmp_path: Path) -> None:
    virt_base = 0x40000000 + 0x100000
    notes = {
        **LINUX_LIKE,
        XenElfNote.ENTRY: virt_base + KERNEL,
        XenElfNote.VIRT_BASE: virt_base,
        XenElfNote.INIT_P2M: virt_base - 4 * PAGE,
    }
    built = domain(kernel(tmp_path, notes), frames(2048))
    check(built, b"\xf4" * 4096, b"")
    assert built.info.nr_p2m_frames == 4


def test_the_hypercall_page_is_named_by_its_frame(tmp_path: Path) -> None:
    page = VIRT_BASE + KERNEL + 0x1000
    mfns = frames(2048)
    built = domain(kernel(tmp_path, {**LINUX_LIKE, XenElfNote.HYPERCALL_PAGE: page}), mfns)
    assert built.start.hypercall_page_mfn == built.leaves[page].mfn == mfns[KERNEL // PAGE + 1]
    assert domain(kernel(tmp_path), mfns).start.hypercall_page_mfn is None


def test_events_are_masked_and_none_is_pending(tmp_path: Path) -> None:
    memory = domain(kernel(tmp_path), frames(2048)).memory
    shared = memory.read(SHARED_INFO * PAGE, abi.SharedInfo.SIZE)
    for vcpu in range(abi.XEN_LEGACY_MAX_VCPUS):
        assert shared[vcpu * abi.VcpuInfo.SIZE : (vcpu + 1) * abi.VcpuInfo.SIZE] == b"\0\1" + bytes(62)
    assert not any(shared[abi.SharedInfo.EVTCHN_PENDING :])


@given(
    pages=st.integers(300, 9000),
    seed=st.integers(0, 1000),
    moved=st.booleans(),
    initrd=st.integers(0, 3 * MIB),
    bss=st.integers(0, 6 * MIB),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_any_size_and_any_frames_start_or_are_too_small(
    tmp_path: Path, pages: int, seed: int, moved: bool, initrd: int, bss: int
) -> None:
    module = random.Random(seed).randbytes(initrd)
    image = kernel(tmp_path, MOVED if moved else LINUX_LIKE, bss=bss)
    needed = 0
    try:
        built = domain(image, frames(pages, seed), module)
    except ConfigError as error:
        needed = int(error.remedy.removeprefix("--mem ").removesuffix("M")) * MIB // PAGE
    if needed:  # what the error suggests is enough
        assert pages < needed < MACHINE // PAGE
        built = domain(image, frames(needed, seed), module)
    check(built, b"\xf4" * 4096, module)


def test_a_domain_just_large_enough_starts_and_a_page_less_does_not(tmp_path: Path) -> None:
    image = kernel(tmp_path, MOVED)
    needed = next(pages for pages in range(1024, 2048) if _fits(image, pages))
    check(domain(image, frames(needed)), b"\xf4" * 4096, b"")
    with pytest.raises(ConfigError, match="--mem"):
        domain(image, frames(needed - 1))


def _fits(image: XenImage, pages: int) -> bool:
    try:
        domain(image, frames(pages))
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize(
    ("what", "notes"),
    [
        ("lies in the region", {XenElfNote.INIT_P2M: VIRT_BASE + 0x200000}),
        ("lies in the region", {XenElfNote.INIT_P2M: VIRT_BASE - PAGE}),
        ("INIT_P2M.*cannot use", {XenElfNote.INIT_P2M: 0xFFFF800000000000}),
        ("INIT_P2M.*cannot use", {XenElfNote.INIT_P2M: 1 << 47}),
        ("INIT_P2M.*beyond the last", {XenElfNote.INIT_P2M: (1 << 64) - PAGE}),
        ("auto_translated_physmap", {XenElfNote.FEATURES: b"!auto_translated_physmap"}),
        ("dom0", {XenElfNote.FEATURES: b"!dom0|writable_page_tables"}),
        ("cannot use", {XenElfNote.ENTRY: 0xFFFF87FFFFC00000 + KERNEL, XenElfNote.VIRT_BASE: 0xFFFF87FFFFC00000}),
        ("beyond the last", {XenElfNote.ENTRY: TOP + KERNEL, XenElfNote.VIRT_BASE: TOP}),
    ],
)
def test_a_kernel_that_cannot_be_placed_is_refused_in_words(
    tmp_path: Path, what: str, notes: dict[int, int | bytes]
) -> None:
    image = kernel(tmp_path, {**LINUX_LIKE, **notes})
    with pytest.raises((ConfigError, ImageError), match=what):
        domain(image, frames(2048))


def test_overlapping_segments_are_refused(tmp_path: Path) -> None:
    notes = xen_notes(LINUX_LIKE)
    image = elf64(
        b"\xf4" * 64, entry=KERNEL, segments=loads((KERNEL, 64, 0x2000), (KERNEL + 0x1000, 64, 64)), note=notes
    )
    with pytest.raises(ImageError, match="overlaps"):
        domain(xen_image.read(write(tmp_path, image)), frames(2048))


def test_a_kernel_that_claims_a_huge_size_is_refused_at_once(tmp_path: Path) -> None:
    image = kernel(tmp_path, {XenElfNote.GUEST_OS: b"tiny", XenElfNote.INIT_P2M: INIT_P2M}, bss=1 << 46)
    with pytest.raises(ConfigError, match="too small"):
        domain(image, frames(2048))


@given(at=st.integers(0, 600), replacement=st.one_of(st.binary(min_size=1, max_size=8), st.just(b"\xff" * 8)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
def test_any_damage_to_a_kernel_is_refused_or_builds(tmp_path: Path, at: int, replacement: bytes) -> None:
    damaged = bytearray(kernel_bytes(MOVED, code=b"\xf4" * 64))
    damaged[at : at + len(replacement)] = replacement
    path = write(tmp_path, bytes(damaged))
    with suppress(ConfigError, ImageError):
        domain(xen_image.read(path), frames(2048))


@pytest.mark.parametrize("cmdline", [b"x" * 1024, b"a\0b"])
def test_a_command_line_that_cannot_be_passed_is_refused(tmp_path: Path, cmdline: bytes) -> None:
    with pytest.raises(ConfigError, match="command line"):
        build(GuestMemory(MACHINE), kernel(tmp_path), frames(2048), shared_info_mfn=SHARED_INFO, cmdline=cmdline)


@pytest.mark.parametrize("bad", [SHARED_INFO, MACHINE // PAGE, -1, 1 << 60])
def test_a_frame_that_is_taken_or_no_memory_is_refused(tmp_path: Path, bad: int) -> None:
    with pytest.raises(ConfigError, match="machine frame"):
        domain(kernel(tmp_path), [*frames(2048), bad])
