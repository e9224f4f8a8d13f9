"""Direct paging: what mmu_update, update_va_mapping, mmuext_op, set_gdt and update_descriptor do to the frame table.

A guest's page tables are the hardware's own; the guest reads them and asks for every change. Each change takes the
references of the new entry, stores it, and lets go of those of the old one, in this order, so that a refusal leaves
everything as it was. One object for all domains; not thread-safe (see frames.py).
"""

from __future__ import annotations

import errno

from minivmm.x86.paging import Pte
from minivmm.xen.abi import FIRST_RESERVED_GDT_PAGE
from minivmm.xen.errors import HypercallError
from minivmm.xen.frame_words import (
    ADDRESS,
    ENTRIES,
    FORBIDDEN_LEAF,
    FORBIDDEN_LINK,
    HYPERVISOR_SLOTS,
    NAMES,
    OWNER,
    PAGE_SHIFT,
    PINNED,
    SAME,
    SHARED,
    TYPE,
    TYPE_COUNT,
    TYPE_SHIFT,
    PageType,
    normal,
)
from minivmm.xen.frames import FrameTable
from minivmm.xen.hypercall_abi import Mmu
from minivmm.xen.segment_descriptors import checked

LDT_PAGES = 16  # 8192 descriptors
_WORD = (1 << 64) - 1


class PageTables:
    """What domains do to their page tables and descriptor tables. Everything raises HypercallError when refused."""

    def __init__(self, frames: FrameTable) -> None:
        self.frames = frames
        self.memory = frames.memory
        # Keys are (domid, vcpu): the references a CPU's registers hold.
        self.kernel_roots: dict[tuple[int, int], int] = {}
        self.user_roots: dict[tuple[int, int], int] = {}
        self.gdts: dict[tuple[int, int], tuple[int, ...]] = {}
        self.ldts: dict[tuple[int, int], tuple[int, ...]] = {}
        self.granted: dict[int, tuple[int, int, bool]] = {}
        """Machine address of an L1 entry to (domid, mfn, writable): where grants entered frames of other domains."""

    # -- mmuext_op

    def pin(self, domid: int, mfn: int, level: int) -> None:
        """MMUEXT_PIN_L1_TABLE to _L4_TABLE: the frame is checked as a table of `level` and stays one until unpinned."""
        if not PageType.L1 <= level <= PageType.L4:
            raise HypercallError(errno.EINVAL, f"there is no page table of level {level}")
        if self.frames.owned(domid, mfn) & PINNED:
            raise HypercallError(errno.EINVAL, f"mfn {mfn:#x} is already pinned")
        self.frames.take(domid, mfn, level)
        self.frames.state[mfn] |= PINNED

    def unpin(self, domid: int, mfn: int) -> None:
        """MMUEXT_UNPIN_TABLE."""
        word = self.frames.owned(domid, mfn)
        if not word & PINNED:
            raise HypercallError(errno.EINVAL, f"mfn {mfn:#x} is not pinned")
        self.frames.state[mfn] = word & ~PINNED
        self.frames.drop_typed(mfn)

    def new_baseptr(self, domid: int, mfn: int, vcpu: int = 0) -> None:
        """MMUEXT_NEW_BASEPTR: the root of the vCPU's kernel address space."""
        self._new_root(self.kernel_roots, (domid, vcpu), mfn)

    def new_user_baseptr(self, domid: int, mfn: int, vcpu: int = 0) -> None:
        """MMUEXT_NEW_USER_BASEPTR: the root its user code runs on. 0: none."""
        if mfn:
            self._new_root(self.user_roots, (domid, vcpu), mfn)
        elif (old := self.user_roots.pop((domid, vcpu), None)) is not None:
            self.frames.drop_typed(old)

    def _new_root(self, roots: dict[tuple[int, int], int], cpu: tuple[int, int], mfn: int) -> None:
        # Nothing of the hypervisor may run on the old root from here on: it may be freed, and cleared, below.
        old = roots.get(cpu)
        if mfn == old:
            return
        self.frames.take(cpu[0], mfn, PageType.L4)
        roots[cpu] = mfn
        if old is not None:
            self.frames.drop_typed(old)

    # -- entries

    def mmu_update(self, domid: int, pointer: int, value: int) -> None:
        """One request of mmu_update: `pointer` is a machine address with the command in its low two bits."""
        command = pointer & 3
        if command == Mmu.MACHPHYS_UPDATE:
            mfn = pointer >> PAGE_SHIFT
            self.frames.owned(domid, mfn)
            self.frames.set_machphys(mfn, value & _WORD)
            return
        self.update_entry(domid, pointer & ~3, value & _WORD, command == Mmu.PT_UPDATE_PRESERVE_AD)

    def update_entry(self, domid: int, address: int, value: int, preserve_ad: bool = False) -> None:
        """Stores `value` at machine address `address`: in a page table after checks, in an ordinary frame as it is."""
        if address & 7:
            raise HypercallError(errno.EINVAL, f"{address:#x} is no entry's address")
        frames = self.frames
        mfn = address >> PAGE_SHIFT
        word = frames.owned(domid, mfn)
        level = (word & TYPE) >> TYPE_SHIFT
        if not word & TYPE_COUNT or not PageType.L1 <= level <= PageType.L4:
            frames.take(domid, mfn, PageType.WRITABLE)
            self.memory.write_u64(address, value)
            frames.drop_typed(mfn)
            return
        if level == PageType.L4 and address >> 3 & ENTRIES - 1 in HYPERVISOR_SLOTS:
            raise HypercallError(errno.EINVAL, "slots 256 to 271 of an L4 are Xen's")
        old = self.memory.read_u64(address)
        if preserve_ad:
            value |= old & (Pte.ACCESSED | Pte.DIRTY)
        if value & Pte.PRESENT:
            if value & (FORBIDDEN_LEAF if level == PageType.L1 else FORBIDDEN_LINK):
                raise HypercallError(errno.EINVAL, f"entry {value:#x} has reserved bits set")
            value = normal(value, level)
            if not (value ^ old) & SAME:
                frames.store_entry(address, old, value)
                return
            frames.take_entry(domid, value, level)
        frames.store_entry(address, old, value)
        if old & Pte.PRESENT:
            frames.drop_entry(old, level)

    def entry_address(self, domid: int, virtual: int, vcpu: int = 0) -> int:
        """The machine address of the L1 entry of `virtual` in the vCPU's kernel address space."""
        table = self.kernel_roots.get((domid, vcpu))
        if table is None or not 0 <= virtual <= _WORD or (virtual >> 47) not in (0, (1 << 17) - 1):
            raise HypercallError(errno.EINVAL, f"{virtual:#x} is no virtual address of domain {domid}")
        if virtual >> 39 & ENTRIES - 1 in HYPERVISOR_SLOTS:
            raise HypercallError(errno.EINVAL, f"{virtual:#x} is Xen's")
        for shift in (39, 30, 21):
            entry = self.memory.read_u64((table << PAGE_SHIFT) + 8 * (virtual >> shift & ENTRIES - 1))
            if not entry & Pte.PRESENT:
                raise HypercallError(errno.EINVAL, f"{virtual:#x} has no page table")
            table = (entry & ADDRESS) >> PAGE_SHIFT
        return (table << PAGE_SHIFT) + 8 * (virtual >> PAGE_SHIFT & ENTRIES - 1)

    def update_va_mapping(self, domid: int, virtual: int, value: int, vcpu: int = 0) -> None:
        """The L1 entry of `virtual` becomes `value`. TLB flushes are the caller's."""
        self.update_entry(domid, self.entry_address(domid, virtual, vcpu), value & _WORD)

    def emulate_store(self, domid: int, address: int, value: int, size: int) -> None:
        """A store of 1, 2, 4 or 8 aligned bytes which faulted since `address` is in an L1: an update of that entry.

        Raises HypercallError(EINVAL) for anything else: then the fault is the guest's own. As in Xen, tables of the
        other levels are changed by hypercall only.
        """
        self._check_l1(domid, address)
        if size not in (1, 2, 4, 8) or address % size:
            raise HypercallError(errno.EINVAL, f"a store of {size} bytes at {address:#x}")
        entry = address & ~7
        shift = 8 * (address - entry)
        mask = (1 << 8 * size) - 1
        old = self.memory.read_u64(entry)
        self.update_entry(domid, entry, old & ~(mask << shift) | (value & mask) << shift)

    def _check_l1(self, domid: int, address: int) -> None:
        word = self.frames.owned(domid, address >> PAGE_SHIFT)
        if word & TYPE != PageType.L1 << TYPE_SHIFT or not word & TYPE_COUNT:
            raise HypercallError(errno.EINVAL, f"{address:#x} is not in an L1")

    # -- mappings of another domain's frames: no other way leads to one

    def map_granted(self, domid: int, address: int, entry: int) -> None:
        """Enters a granted frame, whoever owns it, at the L1 entry at machine address `address`. What was there goes.

        The caller holds the grant's own references to the frame until unmap_granted, or until the domain is destroyed.
        """
        frames = self.frames
        if address & 7:
            raise HypercallError(errno.EINVAL, f"{address:#x} is no entry's address")
        self._check_l1(domid, address)
        mfn = (entry & ADDRESS) >> PAGE_SHIFT
        old = self.memory.read_u64(address)
        frames.take_leaf(frames.state[mfn] & OWNER, entry)
        frames.store_entry(address, old, entry)
        self.granted[address] = domid, mfn, bool(entry & Pte.WRITABLE)
        if old & Pte.PRESENT:
            frames.drop_entry(old, PageType.L1)

    def unmap_granted(self, domid: int, address: int, mfn: int, writable: bool) -> None:
        """Clears the L1 entry at `address`. Raises HypercallError(EINVAL) when it is not a mapping of that frame."""
        if address & 7:
            raise HypercallError(errno.EINVAL, f"{address:#x} is no entry's address")
        self._check_l1(domid, address)
        old = self.memory.read_u64(address)
        if (old ^ (mfn << PAGE_SHIFT | Pte.PRESENT | (Pte.WRITABLE if writable else 0))) & SAME:
            raise HypercallError(errno.EINVAL, f"the entry at {address:#x} does not map mfn {mfn:#x} as granted")
        self.frames.store_entry(address, old, 0)
        self.granted.pop(address, None)
        self.frames.drop_entry(old, PageType.L1)

    def is_page_table(self, domid: int, mfn: int) -> bool:
        """Whether the frame is the domain's and in use as a page table."""
        if mfn >= len(self.frames.state):
            return False
        word = self.frames.state[mfn]
        level = (word & TYPE) >> TYPE_SHIFT
        return word & OWNER == domid and bool(word & TYPE_COUNT) and PageType.L1 <= level <= PageType.L4

    # -- descriptors

    def set_gdt(self, domid: int, mfns: list[int], entries: int, vcpu: int = 0) -> None:
        """set_gdt: `mfns` hold `entries` descriptors, from now on only Xen's to write. 0 entries: none."""
        pages = -(-entries // ENTRIES)
        if not 0 <= pages <= FIRST_RESERVED_GDT_PAGE or len(mfns) < pages:
            raise HypercallError(errno.EINVAL, f"a GDT of {entries} entries in {len(mfns)} frames")
        self._set_descriptors(self.gdts, (domid, vcpu), mfns[:pages])

    def set_ldt(self, domid: int, mfns: list[int], vcpu: int = 0) -> None:
        """MMUEXT_SET_LDT, the frames behind its linear address already looked up."""
        if len(mfns) > LDT_PAGES:
            raise HypercallError(errno.EINVAL, f"an LDT of {len(mfns)} frames")
        self._set_descriptors(self.ldts, (domid, vcpu), mfns)

    def _set_descriptors(
        self, tables: dict[tuple[int, int], tuple[int, ...]], cpu: tuple[int, int], mfns: list[int]
    ) -> None:
        for index, mfn in enumerate(mfns):
            try:
                self.frames.take(cpu[0], mfn, PageType.SEGDESC)
            except HypercallError:
                for taken in mfns[:index]:
                    self.frames.drop_typed(taken)
                raise
        for mfn in tables.pop(cpu, ()):
            self.frames.drop_typed(mfn)
        if mfns:
            tables[cpu] = tuple(mfns)

    def update_descriptor(self, domid: int, address: int, descriptor: int) -> None:
        """update_descriptor: one checked descriptor, in a table in use or in an ordinary frame."""
        if address & 7:
            raise HypercallError(errno.EINVAL, f"{address:#x} is no descriptor's address")
        mfn = address >> PAGE_SHIFT
        word = self.frames.owned(domid, mfn)
        in_use = word & TYPE_COUNT and word & TYPE == PageType.SEGDESC << TYPE_SHIFT
        stored = checked(descriptor & _WORD)
        self.frames.take(domid, mfn, PageType.SEGDESC if in_use else PageType.WRITABLE)
        self.memory.write_u64(address, stored)
        self.frames.drop_typed(mfn)

    # -- the end

    def release_vcpu(self, domid: int, vcpu: int) -> None:
        """Lets go of what the vCPU's registers hold."""
        for roots in (self.kernel_roots, self.user_roots):
            if (root := roots.pop((domid, vcpu), None)) is not None:
                self.frames.drop_typed(root)
        for tables in (self.gdts, self.ldts):
            for mfn in tables.pop((domid, vcpu), ()):
                self.frames.drop_typed(mfn)

    def destroy(self, domid: int) -> list[int]:
        """Everything the domain had, given back. Returns its frames that others still use (grants mapped elsewhere,
        references held): they go with the last user, and until then the domid must not be given to another domain.
        Shared frames are not among them: whoever allocated them gives them back."""
        registers = (self.kernel_roots, self.user_roots, self.gdts, self.ldts)
        for owner, vcpu in {cpu for table in registers for cpu in table}:
            if owner == domid:
                self.release_vcpu(domid, vcpu)
        for mfn in self.frames.frames_of(domid):
            if self.frames.state[mfn] & PINNED:
                self.unpin(domid, mfn)
        self.frames.free_all(domid)
        self.granted = {address: mapping for address, mapping in self.granted.items() if mapping[0] != domid}
        return [mfn for mfn in self.frames.frames_of(domid) if not self.frames.state[mfn] & SHARED]

    def describe(self, mfn: int) -> str:
        """One line about a frame, for crash dumps and traces."""
        if not 0 <= mfn < len(self.frames.state):
            return f"mfn {mfn:#x}: none"
        word = self.frames.state[mfn]
        kind = NAMES[(word & TYPE) >> TYPE_SHIFT] if word & TYPE_COUNT else "unused"
        return f"mfn {mfn:#x}: domain {word & OWNER}, {kind}{', pinned' if word & PINNED else ''}"
