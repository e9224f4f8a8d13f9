"""The frame table: who owns each machine frame, what it is used as, and how often (Barham et al., SOSP 2003, 3.3).

The rule everything rests on: a frame has one type at a time, and changes it only when nobody uses it as the old one.
A frame is writable only as type "writable" and a page table only as type "L1" to "L4", so no page table can be written
by its domain; the table is checked once, when it becomes one, and afterwards entry by entry (page_tables.py).

Not thread-safe: the hypervisor's lock is held around every call. mfns and entries are whatever a guest said: every
method answers nonsense with HypercallError and then has changed nothing.
"""

from __future__ import annotations

import errno
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from operator import length_hint

from minivmm.memory import PAGE_SIZE, GuestMemory
from minivmm.x86.paging import Pte
from minivmm.xen.errors import HypercallError
from minivmm.xen.frame_owners import FrameOwners, nothing
from minivmm.xen.frame_words import (
    ADDRESS,
    ALLOCATED,
    BOTH,
    ENTRIES,
    FORBIDDEN_LEAF,
    FORBIDDEN_LINK,
    GLOBAL,
    HYPERVISOR_LANES,
    HYPERVISOR_SLOTS,
    KEY,
    LANES,
    NAMES,
    OWNER,
    PAGE_SHIFT,
    REF_ONE,
    SHARED,
    TYPE,
    TYPE_COUNT,
    TYPE_ONE,
    TYPE_SHIFT,
    PageType,
)
from minivmm.xen.segment_descriptors import checked_table

_TABLE = struct.Struct(f"<{ENTRIES}Q")


class FrameTable(FrameOwners):
    """The owners of frames and what the frames are used as.

    Three things are the caller's, handed down here and replaceable later as attributes:
    - `install_hypervisor_slots(l4_mfn)`: fills slots 256 to 271 of a table that is about to become an L4.
    - `store_entry(machine_address, old, new)`: writes an entry of a table in use, so that no CPU uses `old` when a
      guest runs next (a software back end needs more than a store). `old` may lack accessed and dirty bits set since.
    - `forget(mfn)`: the frame changes its type or its owner: no CPU may keep a translation to it, or one made from it.

    Raises ConfigError when there is no room for the machine-to-physical table.
    """

    def __init__(self, memory: GuestMemory, frames: Iterable[int]) -> None:
        super().__init__(memory, frames)
        self.held: Counter[tuple[int, int]] = Counter()  # (mfn, type or NONE): references taken through get_*
        self.install_hypervisor_slots: Callable[[int], None] = nothing
        self.store_entry: Callable[[int, int, int], None] = self._store

    def _store(self, machine_address: int, _old: int, new: int) -> None:
        self.memory.write_u64(machine_address, new)

    def allocate_shared(self, domid: int) -> int:
        """A zeroed frame that stays the hypervisor's and that `domid` may map writable: shared_info, a grant table.

        It is held as writable memory until free_shared, so it can never become a page table; it is in no reservation
        and nothing the domain does gives it back.
        """
        mfn = self.allocate(domid)
        self.pages[domid] -= 1
        self.state[mfn] |= SHARED
        self.get_page_type(domid, mfn, PageType.WRITABLE)
        return mfn

    def free_shared(self, domid: int, mfn: int) -> None:
        """Gives back what allocate_shared gave. It is nobody's once the last mapping of it is gone."""
        word = self.owned(domid, mfn)
        if not word & SHARED or not word & ALLOCATED:
            raise HypercallError(errno.EINVAL, f"mfn {mfn:#x} is not shared with domain {domid}")
        self.put_page_type(mfn, PageType.WRITABLE)
        self.state[mfn] &= ~ALLOCATED
        self._drop(mfn)

    # -- references of other parts (grants, shared pages, rings), which a recount must be told of

    def get_page(self, domid: int, mfn: int) -> None:
        """Keeps a frame of `domid` from changing its owner until put_page."""
        self.state[mfn] = self.owned(domid, mfn) + REF_ONE
        self.held[mfn, PageType.NONE] += 1

    def put_page(self, mfn: int) -> None:
        """Gives back what get_page took. Raises HypercallError(EINVAL) when it took nothing."""
        self._let_go(mfn, PageType.NONE)
        self._drop(mfn)

    def get_page_type(self, domid: int, mfn: int, page_type: int) -> None:
        """Keeps a frame of `domid` from changing its owner and its type, having given it the type `page_type`."""
        self.take(domid, mfn, page_type)
        self.held[mfn, page_type] += 1

    def put_page_type(self, mfn: int, page_type: int) -> None:
        """Gives back what get_page_type took. Raises HypercallError(EINVAL) when it took nothing."""
        self._let_go(mfn, page_type)
        self.drop_typed(mfn)

    def _let_go(self, mfn: int, page_type: int) -> None:
        if not self.held[mfn, page_type]:
            raise HypercallError(errno.EINVAL, f"mfn {mfn:#x} is not held as {NAMES[page_type]}")
        self.held[mfn, page_type] -= 1

    # -- types

    def take(self, domid: int, mfn: int, page_type: int) -> None:
        """One reference to a frame of `domid` as `page_type`, which it becomes if it is not in use as another.

        Raises HypercallError: EINVAL for another's frame and for contents that will not do, EBUSY for another type.
        """
        word = self.owned(domid, mfn)
        if word & TYPE_COUNT:
            if (word & TYPE) >> TYPE_SHIFT != page_type:
                name = NAMES[(word & TYPE) >> TYPE_SHIFT]
                raise HypercallError(errno.EBUSY, f"mfn {mfn:#x} is {name} now, not {NAMES[page_type]}")
            self.state[mfn] = word + BOTH
            return
        if word & TYPE != page_type << TYPE_SHIFT:
            # Before the contents are read: a TLB entry left from the old type could still write to it.
            self.forget(mfn)
        self.state[mfn] = (word & ~TYPE | page_type << TYPE_SHIFT) + BOTH
        try:
            self._validate(domid, mfn, page_type)
        except HypercallError:
            self.state[mfn] -= BOTH
            raise

    def drop_typed(self, mfn: int) -> None:
        """One reference less to the frame as what it is. The last one lets go of everything a table refers to."""
        word = self.state[mfn] - TYPE_ONE
        self.state[mfn] = word
        page_type = (word & TYPE) >> TYPE_SHIFT
        if not word & TYPE_COUNT and PageType.L1 <= page_type <= PageType.L4:
            self._invalidate(mfn, page_type)
        self._drop(mfn)

    def _validate(self, domid: int, mfn: int, page_type: int) -> None:
        """The contents of a frame that becomes `page_type`, checked once and made to be so."""
        if page_type == PageType.WRITABLE:
            return
        address = mfn << PAGE_SHIFT
        raw = self.memory.read(address, PAGE_SIZE)
        if page_type == PageType.SEGDESC:
            table = checked_table(raw)
        else:
            table = self._checked_entries(mfn, raw, page_type)
            entries = _TABLE.unpack(table)  # Xen's slots of an L4 are empty in it
            if page_type == PageType.L1:
                self._take_leaves(domid, entries)
            else:
                self._take_links(domid, entries, page_type)
        if table != raw:
            self.memory.write(address, table)
        if page_type == PageType.L4:
            self.install_hypervisor_slots(mfn)

    def _checked_entries(self, mfn: int, raw: bytes, level: int) -> bytes:
        """A table with `normal` entries. All 512 at once, as lanes of one number: 10 µs instead of 50.

        Raises HypercallError(EINVAL) for bits a guest may not set.
        """
        table = int.from_bytes(raw, "little")
        if level == PageType.L4:
            table &= ~HYPERVISOR_LANES  # not the guest's, whatever it put there
        present = table & LANES
        if not present:
            return table.to_bytes(PAGE_SIZE, "little")
        if table & present * (FORBIDDEN_LEAF if level == PageType.L1 else FORBIDDEN_LINK):
            raise HypercallError(errno.EINVAL, f"mfn {mfn:#x} as {NAMES[level]}: an entry has reserved bits set")
        table |= present * Pte.USER
        if level == PageType.L1:
            table &= ~(present * GLOBAL)
        return table.to_bytes(PAGE_SIZE, "little")

    def _take_leaves(self, domid: int, entries: tuple[int, ...]) -> None:
        """One reference for each mapping of an L1. On the path of Linux's boot: about 100 µs for 512 mappings
        (tests/minivmm/xen/test_frames.py prints it)."""
        state, address, key, both = self.state, ADDRESS, KEY, BOTH
        writable = domid | PageType.WRITABLE << TYPE_SHIFT
        remaining = iter(entries)
        try:
            for entry in remaining:
                if entry & 1:
                    mfn = (entry & address) >> 12
                    word = state[mfn]
                    if entry & 2:
                        if word & key == writable:
                            state[mfn] = word + both
                            continue
                    elif word & OWNER == domid:
                        state[mfn] = word + REF_ONE
                        continue
                    self.take_leaf(domid, entry)
        except (HypercallError, IndexError) as error:
            self._drop_leaves(entries[: len(entries) - length_hint(remaining) - 1])
            if isinstance(error, IndexError):
                raise HypercallError(errno.EPERM, f"there is no mfn {mfn:#x} to map") from error
            raise

    def take_leaf(self, domid: int, entry: int) -> None:
        """The references of one present L1 entry in a table of `domid`.

        Raises HypercallError: EPERM for a frame that is not the domain's, EBUSY for a writable page table. `domid` is
        whose frame it has to be: the table's owner's, unless a grant lets it map another's.
        """
        mfn = (entry & ADDRESS) >> PAGE_SHIFT
        if mfn >= len(self.state) or self.state[mfn] & OWNER != domid:
            raise HypercallError(errno.EPERM, f"mfn {mfn:#x} is not domain {domid}'s to map")
        if entry & Pte.WRITABLE:
            self.take(domid, mfn, PageType.WRITABLE)
        else:
            self.state[mfn] += REF_ONE

    def _take_links(self, domid: int, entries: tuple[int, ...], level: int) -> None:
        """One reference for each table that an L2, L3 or L4 refers to. Recursion ends at level 1."""
        for index, entry in enumerate(entries):
            if entry & Pte.PRESENT:
                try:
                    self.take(domid, (entry & ADDRESS) >> PAGE_SHIFT, level - 1)
                except HypercallError:
                    self._drop_links(entries[:index])
                    raise

    def _invalidate(self, mfn: int, level: int) -> None:
        """A table that is one no longer lets go of what its entries refer to."""
        entries = _TABLE.unpack(self.memory.read(mfn << PAGE_SHIFT, PAGE_SIZE))
        if level == PageType.L1:
            self._drop_leaves(entries)
        elif level == PageType.L4:
            # What is in Xen's slots has no references of the domain's; it stays until the frame is used anew.
            self._drop_links(entries[: HYPERVISOR_SLOTS.start] + entries[HYPERVISOR_SLOTS.stop :])
        else:
            self._drop_links(entries)

    def _drop_leaves(self, entries: tuple[int, ...]) -> None:
        state = self.state
        for entry in entries:
            if entry & 1:
                mfn = (entry & ADDRESS) >> 12
                word = state[mfn] - (BOTH if entry & 2 else REF_ONE)
                state[mfn] = word
                if word < REF_ONE:
                    self._release(mfn)

    def _drop_links(self, entries: tuple[int, ...]) -> None:
        for entry in entries:
            if entry & Pte.PRESENT:
                self.drop_typed((entry & ADDRESS) >> PAGE_SHIFT)

    def take_entry(self, domid: int, entry: int, level: int) -> None:
        """The references of one present entry of a table of `level`."""
        if level == PageType.L1:
            self.take_leaf(domid, entry)
        else:
            self.take(domid, (entry & ADDRESS) >> PAGE_SHIFT, level - 1)

    def drop_entry(self, entry: int, level: int) -> None:
        """Gives them back."""
        if level == PageType.L1:
            self._drop_leaves((entry,))
        else:
            self._drop_links((entry,))
