"""A domain's memory as it starts: xen/include/public/xen.h, "Start-of-day memory layout".

    VIRT_BASE                                                                  a whole 4 MiB
    | ... kernel | initrd | p2m list | start_info | store | console | page tables | stack | at least 512 KiB |
      pfn 0 ->

Everything in this region is mapped, pfn after pfn, writable; the page tables alone are read-only. What a kernel's
notes move out of it follows in pfn order: the p2m list at INIT_P2M, with the tables that map it, and, for a kernel
with MOD_START_PFN, the initrd, which is then not mapped at all. Which machine frame stands behind a pfn is the
caller's choice.
"""

from __future__ import annotations

import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from minivmm.boot.xen_image import FEATURE_NAMES, XenImage
from minivmm.errors import ConfigError, ImageError
from minivmm.memory import PAGE_SIZE, GuestMemory
from minivmm.x86.paging import Pte
from minivmm.x86.registers import RFLAGS_IF, RFLAGS_RESERVED
from minivmm.xen import abi

PAGE_SHIFT = 12
TABLE_ENTRIES = 512
ENTRY_SIZE = 8
ZERO_PAGE = bytes(PAGE_SIZE)
REGION_ALIGNMENT = 4 << 20
PADDING = 512 << 10
ADDRESS_SPACE = 1 << 64
MAX_SUGGESTED_MIB = 64 << 10  # an image that wants more is damaged
CANONICAL_HOLE = range(1 << 47, ADDRESS_SPACE - (1 << 47))  # SDM 1, 3.3.7.1
HYPERVISOR_HOLE = range(abi.HYPERVISOR_VIRT_START, abi.HYPERVISOR_VIRT_END)

LEVELS = 4
TABLE_SHIFT = {1: 21, 2: 30, 3: 39, 4: 48}  # log2 of what one table of a level maps
VIRTUAL_BITS = 48

# The guest's kernel runs at ring 3: every entry has the user bit.
LINK = Pte.PRESENT | Pte.WRITABLE | Pte.USER | Pte.ACCESSED | Pte.DIRTY
READ_WRITE = Pte.PRESENT | Pte.WRITABLE | Pte.USER | Pte.ACCESSED
READ_ONLY = Pte.PRESENT | Pte.USER | Pte.ACCESSED

# What a kernel may require and an unprivileged paravirtual domain is not.
REFUSED_FEATURES = (
    1 << abi.Feature.AUTO_TRANSLATED_PHYSMAP | 1 << abi.Feature.SUPERVISOR_MODE_KERNEL | 1 << abi.Feature.DOM0
)

Table = tuple[int, int]  # level, and virtual address (of VIRTUAL_BITS) shifted by TABLE_SHIFT


class Plan(NamedTuple):
    """Where everything comes to lie: pfns, counts of pages, and virtual addresses where named so."""

    initrd: int
    initrd_mapped: bool
    p2m: int
    p2m_pages: int
    p2m_virt: int
    p2m_moved: bool  # to INIT_P2M
    p2m_tables: int  # the page tables that only the moved p2m list needs, from `p2m + p2m_pages` on
    start_info: int
    store: int
    console: int
    tables: int
    table_count: int
    stack: int
    region_end: int  # the first pfn that is not mapped from VIRT_BASE on
    region_end_virt: int
    end: int  # the first pfn that nothing here uses


class PageTable(NamedTuple):
    """One page-table frame of the domain."""

    level: int  # 4: the root
    mfn: int


class InitialRegisters(NamedTuple):
    """The first vCPU's registers, where the ABI gives them a value. RFLAGS.IF is on, as always at ring 3."""

    rip: int
    rsp: int
    rsi: int  # virtual address of start_info
    cr3: int  # machine address
    rflags: int = RFLAGS_RESERVED | RFLAGS_IF
    cs: int = abi.FlatRing3.CS64
    ss: int = abi.FlatRing3.SS64
    ds: int = abi.FlatRing3.DS64  # and ES, FS, GS


class StartOfDay(NamedTuple):
    """A domain ready to run, but for its page tables' types and the hypervisor's own slots in them."""

    registers: InitialRegisters
    page_tables: tuple[PageTable, ...]  # the root first, each after its parent
    start_info_mfn: int
    store_mfn: int
    console_mfn: int
    hypercall_page_mfn: int | None  # for the hypervisor to fill
    p2m_mfns: tuple[int, ...]
    plan: Plan


def build(
    memory: GuestMemory,
    kernel: XenImage,
    mfns: Sequence[int],
    *,
    shared_info_mfn: int,
    cmdline: bytes = b"",
    initrd: bytes = b"",
    store_evtchn: int = 0,
    console_evtchn: int = 0,
    flags: int = 0,
) -> StartOfDay:
    """Builds a domain whose pfn n is the machine frame `mfns[n]`; the frames must be zero, as they are handed out.

    `shared_info_mfn` is a frame of the hypervisor's; `flags` are bits of abi.StartInfoFlag. Raises ConfigError for
    what does not fit together or into the domain, ImageError for a kernel that cannot be loaded.
    """
    _check_kernel(kernel)
    if len(cmdline) >= abi.MAX_GUEST_CMDLINE or b"\0" in cmdline:
        raise ConfigError(
            f"the command line of {len(cmdline)} bytes cannot be passed",
            cause=f"at most {abi.MAX_GUEST_CMDLINE - 1} bytes fit, none of them zero",
        )
    plan = plan_layout(kernel, len(mfns), len(initrd))
    _check_frames(memory, mfns, shared_info_mfn)

    for segment in kernel.elf.loads:
        _write(memory, mfns, segment.paddr - kernel.paddr_offset, kernel.elf.segment_bytes(segment))
    _write(memory, mfns, plan.initrd << PAGE_SHIFT, memoryview(initrd))
    _write(memory, mfns, plan.p2m << PAGE_SHIFT, memoryview(array.array("Q", mfns)).cast("B"))
    page_tables = _write_page_tables(memory, kernel, mfns, plan)

    if initrd and not plan.initrd_mapped:
        flags |= abi.StartInfoFlag.MOD_START_PFN
    mod_start = plan.initrd if not plan.initrd_mapped else _virt(kernel, plan.initrd)
    info = abi.StartInfo(
        magic=abi.START_INFO_MAGIC,
        nr_pages=len(mfns),
        shared_info=shared_info_mfn << PAGE_SHIFT,
        flags=flags,
        store_mfn=mfns[plan.store],
        store_evtchn=store_evtchn,
        console_mfn=mfns[plan.console],
        console_evtchn=console_evtchn,
        pt_base=_virt(kernel, plan.tables),
        nr_pt_frames=plan.table_count,
        mfn_list=plan.p2m_virt,
        mod_start=mod_start if initrd else 0,
        mod_len=len(initrd),
        cmd_line=cmdline,
        first_p2m_pfn=plan.p2m if plan.p2m_moved else 0,
        nr_p2m_frames=plan.p2m_pages + plan.p2m_tables if plan.p2m_moved else 0,
    )
    memory.write(mfns[plan.start_info] << PAGE_SHIFT, abi.START_INFO.pack(info))
    _write_shared_info(memory, shared_info_mfn)

    page = kernel.hypercall_page
    return StartOfDay(
        registers=InitialRegisters(
            rip=kernel.entry,
            rsp=_virt(kernel, plan.stack + 1),
            rsi=_virt(kernel, plan.start_info),
            cr3=mfns[plan.tables] << PAGE_SHIFT,
        ),
        page_tables=page_tables,
        start_info_mfn=mfns[plan.start_info],
        store_mfn=mfns[plan.store],
        console_mfn=mfns[plan.console],
        hypercall_page_mfn=None if page is None else mfns[page - kernel.virt_base >> PAGE_SHIFT],
        p2m_mfns=tuple(mfns[plan.p2m : plan.p2m + plan.p2m_pages]),
        plan=plan,
    )


def plan_layout(kernel: XenImage, nr_pages: int, initrd_size: int) -> Plan:
    """Where everything lies in a domain of `nr_pages`. Raises ConfigError and ImageError."""
    p2m_pages = _pages(nr_pages * ENTRY_SIZE)
    p2m_moved = kernel.init_p2m is not None
    initrd_mapped = not kernel.mod_start_pfn

    initrd = _pages(kernel.virt_end - kernel.virt_base)
    p2m = initrd + (_pages(initrd_size) if initrd_mapped else 0)
    start_info = p2m + (0 if p2m_moved else p2m_pages)
    store, console, tables = start_info + 1, start_info + 2, start_info + 3

    # The tables must map themselves, and the region that holds them may thereby need one more of them.
    count, previous = 0, -1
    region_end_virt = kernel.virt_base
    while count != previous:
        previous = count
        unaligned = _virt(kernel, tables + count + 1) + PADDING
        region_end_virt = -(-unaligned // REGION_ALIGNMENT) * REGION_ALIGNMENT
        count = sum(len(_table_indices(level, kernel.virt_base, region_end_virt)) for level in TABLE_SHIFT)
    end = region_end = region_end_virt - kernel.virt_base >> PAGE_SHIFT
    _check_range("the start-of-day region", kernel.virt_base, region_end_virt)

    end += (p2m_pages if p2m_moved else 0) + (0 if initrd_mapped else _pages(initrd_size))
    _check_size(kernel, end, nr_pages)  # from here on everything is bounded by nr_pages

    p2m_virt, p2m_tables = _virt(kernel, p2m), 0
    if kernel.init_p2m is not None:
        p2m, p2m_virt = region_end, kernel.init_p2m
        p2m_end_virt = p2m_virt + p2m_pages * PAGE_SIZE
        _check_range("INIT_P2M", p2m_virt, p2m_end_virt)
        if p2m_virt < region_end_virt and p2m_end_virt > kernel.virt_base:
            raise ImageError(
                kernel.elf.path, f"INIT_P2M {p2m_virt:#x} lies in the region from VIRT_BASE {kernel.virt_base:#x} on"
            )
        p2m_tables = len(_own_tables(p2m_virt, p2m_end_virt, kernel.virt_base, region_end_virt))
        end += p2m_tables
        _check_size(kernel, end, nr_pages)
    if not initrd_mapped:
        initrd = end - _pages(initrd_size)
    return Plan(
        initrd=initrd,
        initrd_mapped=initrd_mapped,
        p2m=p2m,
        p2m_pages=p2m_pages,
        p2m_virt=p2m_virt,
        p2m_moved=p2m_moved,
        p2m_tables=p2m_tables,
        start_info=start_info,
        store=store,
        console=console,
        tables=tables,
        table_count=count,
        stack=tables + count,
        region_end=region_end,
        region_end_virt=region_end_virt,
        end=end,
    )


def _pages(size: int) -> int:
    return -(-size // PAGE_SIZE)


def _virt(kernel: XenImage, pfn: int) -> int:
    """Where `pfn` is mapped, if it is in the start-of-day region."""
    return kernel.virt_base + (pfn << PAGE_SHIFT)


def _table_indices(level: int, start: int, end: int) -> range:
    """The tables of `level` that the virtual addresses from `start` to `end` need."""
    bits, shift = (1 << VIRTUAL_BITS) - 1, TABLE_SHIFT[level]
    first = (start & bits) >> shift
    return range(first, first + (end - 1 >> shift) - (start >> shift) + 1)


def _tables(start: int, end: int) -> Iterator[Table]:
    """All tables for a range of virtual addresses, the root first."""
    for level in sorted(TABLE_SHIFT, reverse=True):
        for index in _table_indices(level, start, end):
            yield level, index


def _own_tables(start: int, end: int, region_start: int, region_end: int) -> list[Table]:
    """The tables a range needs besides those of the start-of-day region."""
    shared = set(_tables(region_start, region_end))
    return [table for table in _tables(start, end) if table not in shared]


def _check_size(kernel: XenImage, needed: int, nr_pages: int) -> None:
    """Raises ConfigError when `needed` pages are more than the domain has."""
    if needed > nr_pages:
        mebibytes = (needed + needed // TABLE_ENTRIES << PAGE_SHIFT >> 20) + 4  # the p2m list grows with it
        raise ConfigError(
            f"a domain of {nr_pages << PAGE_SHIFT >> 20} MiB is too small for {kernel.elf.path.name}",
            cause=f"kernel, initrd, page tables and lists take {needed << PAGE_SHIFT >> 20} MiB before it starts",
            remedy=f"--mem {mebibytes}M" if mebibytes <= MAX_SUGGESTED_MIB else "a smaller kernel or initrd",
        )


def _check_range(what: str, start: int, end: int) -> None:
    """Raises ConfigError for virtual addresses a guest cannot have mapped."""
    for hole in (CANONICAL_HOLE, HYPERVISOR_HOLE):
        if start < hole.stop and end > hole.start:
            raise ConfigError(
                f"{what}, {start:#x} to {end:#x}, reaches into addresses a domain cannot use",
                cause=f"{hole.start:#x} to {hole.stop:#x} are the hypervisor's or none at all",
                remedy="a smaller kernel and initrd, or another VIRT_BASE",
            )
    if end > ADDRESS_SPACE:
        raise ConfigError(
            f"{what} would need addresses beyond the last, from {start:#x} on {end - start >> 20} MiB",
            cause="kernel and initrd are too large to be mapped there",
            remedy="a smaller initrd",
        )


def _check_kernel(kernel: XenImage) -> None:
    refused = kernel.required_features & REFUSED_FEATURES
    if refused:
        names = [name for bit, name in enumerate(FEATURE_NAMES) if refused >> bit & 1]
        raise ImageError(kernel.elf.path, f"it requires what an unprivileged domain does not have: {', '.join(names)}")
    end = kernel.paddr_offset
    for segment in sorted(kernel.elf.loads, key=lambda segment: segment.paddr):
        if segment.paddr < end:
            raise ImageError(kernel.elf.path, f"a segment at {segment.paddr:#x} overlaps what ends at {end:#x}")
        end = segment.paddr + segment.memsz


def _check_frames(memory: GuestMemory, mfns: Sequence[int], shared_info_mfn: int) -> None:
    """Raises ConfigError for a frame that is used twice or is no memory."""
    frames = {*mfns, shared_info_mfn}
    if len(frames) != len(mfns) + 1:
        raise ConfigError("a domain cannot be built: a machine frame is named twice")
    outside = list(frames)
    for start, size, _ in memory.regions:
        ram = range(start >> PAGE_SHIFT, start + size >> PAGE_SHIFT)
        outside = [mfn for mfn in outside if mfn not in ram]
    if outside:
        raise ConfigError(f"a domain cannot be built: machine frame {min(outside):#x} is not in the machine's memory")


def _write(memory: GuestMemory, mfns: Sequence[int], address: int, data: memoryview) -> None:
    """Copies `data` to the pseudo-physical `address`, a page at a time as its frames may lie anywhere.

    Pages of zeros are left alone: the frames are zero, and the host need not give memory to those never touched.
    """
    position, length = 0, len(data)
    while position < length:
        pfn, offset = divmod(address + position, PAGE_SIZE)
        step = min(PAGE_SIZE - offset, length - position)
        piece = bytes(data[position : position + step])
        if piece != ZERO_PAGE:
            memory.write((mfns[pfn] << PAGE_SHIFT) + offset, piece)
        position += step


def _write_page_tables(memory: GuestMemory, kernel: XenImage, mfns: Sequence[int], plan: Plan) -> tuple[PageTable, ...]:
    """Maps the region and the p2m list; returns the tables' frames."""
    region = list(_tables(kernel.virt_base, plan.region_end_virt))
    pfns = dict(zip(region, range(plan.tables, plan.stack), strict=True))
    p2m_end_virt = plan.p2m_virt + plan.p2m_pages * PAGE_SIZE
    if plan.p2m_moved:
        own = _own_tables(plan.p2m_virt, p2m_end_virt, kernel.virt_base, plan.region_end_virt)
        first = plan.p2m + plan.p2m_pages
        pfns.update(zip(own, range(first, first + plan.p2m_tables), strict=True))

    content = {table: array.array("Q", bytes(PAGE_SIZE)) for table in pfns}
    for (level, index), pfn in pfns.items():
        if level < LEVELS:
            parent = content[level + 1, index // TABLE_ENTRIES]
            parent[index % TABLE_ENTRIES] = mfns[pfn] << PAGE_SHIFT | LINK
    _map(content, mfns, kernel.virt_base, range(plan.region_end), range(plan.tables, plan.stack))
    if plan.p2m_moved:
        _map(content, mfns, plan.p2m_virt, range(plan.p2m, plan.p2m + plan.p2m_pages), range(0))
    for table, entries in content.items():
        memory.write(mfns[pfns[table]] << PAGE_SHIFT, entries.tobytes())
    ordered = sorted(pfns.items(), key=lambda item: (-item[0][0], item[1]))
    return tuple(PageTable(level, mfns[pfn]) for (level, _), pfn in ordered)


def _map(
    content: dict[Table, array.array[int]], mfns: Sequence[int], start: int, pfns: range, read_only: range
) -> None:
    """Maps `pfns` at the virtual address `start` on."""
    page = (start & (1 << VIRTUAL_BITS) - 1) >> PAGE_SHIFT
    for pfn in pfns:
        bits = READ_ONLY if pfn in read_only else READ_WRITE
        content[1, page // TABLE_ENTRIES][page % TABLE_ENTRIES] = mfns[pfn] << PAGE_SHIFT | bits
        page += 1


def _write_shared_info(memory: GuestMemory, mfn: int) -> None:
    """shared_info as a domain finds it: no event pending, and every vCPU's events masked."""
    page = bytearray(PAGE_SIZE)
    for vcpu in range(abi.XEN_LEGACY_MAX_VCPUS):
        page[abi.SharedInfo.VCPU_INFO + vcpu * abi.VcpuInfo.SIZE + abi.VcpuInfo.EVTCHN_UPCALL_MASK] = 1
    memory.write(mfn << PAGE_SHIFT, page)
