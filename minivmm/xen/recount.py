"""An audit of the frame table: everything counted again from the page tables in memory and from what holds references.

For debug runs, after every hypercall: 1 ms for a small domain. Shares no code with frames.py and keeps no state.
"""

from __future__ import annotations

from collections import Counter

from minivmm.xen.abi import Domid
from minivmm.xen.frame_words import (
    ADDRESS,
    ALLOCATED,
    ENTRIES,
    FORBIDDEN_LINK,
    HYPERVISOR_SLOTS,
    NAMES,
    OWNER,
    PAGE_SHIFT,
    PINNED,
    REF_SHIFT,
    SHARED,
    TYPE,
    TYPE_COUNT,
    TYPE_ONE,
    TYPE_SHIFT,
    PageType,
)
from minivmm.xen.page_tables import PageTables


class _Audit:
    """One count from nothing. `uses` is (mfn, type) -> how often, `plain` mfn -> references without a type."""

    def __init__(self, tables: PageTables) -> None:
        self.frames = tables.frames
        self.granted = tables.granted
        self.uses: Counter[tuple[int, int]] = Counter()
        self.plain: Counter[int] = Counter()
        self.faults: list[str] = []
        for (domid, _), mfn in (*tables.kernel_roots.items(), *tables.user_roots.items()):
            self.use(domid, mfn, PageType.L4)
        for (domid, _), mfns in (*tables.gdts.items(), *tables.ldts.items()):
            for mfn in mfns:
                self.use(domid, mfn, PageType.SEGDESC)
        for (mfn, page_type), count in self.frames.held.items():
            for _ in range(count):
                self.use(self.frames.state[mfn] & OWNER, mfn, page_type)
        for mfn, word in enumerate(self.frames.state):
            if word & PINNED:
                self.use(word & OWNER, mfn, (word & TYPE) >> TYPE_SHIFT)
            if word & ALLOCATED:
                self.plain[mfn] += 1

    def use(self, domid: int, mfn: int, page_type: int) -> None:
        """A reference by `domid` to `mfn` as `page_type`; the first to a table counts what the table refers to."""
        if mfn >= len(self.frames.state) or self.frames.state[mfn] & OWNER != domid or domid >= Domid.FIRST_RESERVED:
            self.faults.append(f"domain {domid} uses mfn {mfn:#x} as {NAMES[page_type]} and does not own it")
            return
        if page_type == PageType.NONE:
            self.plain[mfn] += 1
            return
        self.uses[mfn, page_type] += 1
        if self.uses[mfn, page_type] == 1 and page_type <= PageType.L4:
            self.table(domid, mfn, page_type)

    def table(self, domid: int, mfn: int, level: int) -> None:
        """The references of one table's entries."""
        entries = self.frames.memory.view(mfn << PAGE_SHIFT, 8 * ENTRIES).cast("Q")
        for slot, entry in enumerate(entries):
            if not entry & 1 or (level == PageType.L4 and slot in HYPERVISOR_SLOTS):
                continue
            target = (entry & ADDRESS) >> PAGE_SHIFT
            if not entry & 4 or entry & (FORBIDDEN_LINK):
                self.faults.append(f"entry {slot} of mfn {mfn:#x} ({NAMES[level]}) is {entry:#x}")
            if level > PageType.L1:
                self.use(domid, target, level - 1)
            else:
                self.leaf(domid, target, bool(entry & 2), mfn << PAGE_SHIFT | slot << 3)

    def leaf(self, domid: int, mfn: int, writable: bool, address: int) -> None:
        """A mapping of a frame by the entry at `address`: the domain's own, or one that a grant entered there."""
        owner = self.frames.state[mfn] & OWNER if mfn < len(self.frames.state) else Domid.XEN
        if owner != domid and self.granted.get(address) != (domid, mfn, writable):
            self.faults.append(f"domain {domid} maps mfn {mfn:#x} of domain {owner}")
        else:
            self.use(owner, mfn, PageType.WRITABLE if writable else PageType.NONE)

    def compare(self) -> list[str]:
        """Everything wrong: in the tables, and between them and the frame table."""
        types: dict[int, int] = {}
        for mfn, page_type in self.uses:
            if mfn in types:
                self.faults.append(f"mfn {mfn:#x} is {NAMES[types[mfn]]} and {NAMES[page_type]} at once")
            types[mfn] = page_type
        for mfn, word in enumerate(self.frames.state):
            page_type = types.get(mfn, PageType.NONE)
            uses = self.uses[mfn, page_type] if page_type else 0
            references = uses + self.plain[mfn]
            kept = (word & TYPE_COUNT) // TYPE_ONE
            if kept != uses or (kept and (word & TYPE) >> TYPE_SHIFT != page_type):
                name = NAMES[(word & TYPE) >> TYPE_SHIFT]
                self.faults.append(f"mfn {mfn:#x}: {kept} uses as {name} kept, {uses} as {NAMES[page_type]} counted")
            if word >> REF_SHIFT != references:
                self.faults.append(f"mfn {mfn:#x}: {word >> REF_SHIFT} references kept, {references} counted")
            if word & SHARED and word & ALLOCATED and types.get(mfn) != PageType.WRITABLE:
                self.faults.append(f"mfn {mfn:#x} is shared and not writable memory")
            if not references and word & OWNER not in (Domid.XEN, Domid.INVALID):
                self.faults.append(f"mfn {mfn:#x} is domain {word & OWNER}'s and nobody refers to it")
        pages = Counter(
            word & OWNER for word in self.frames.state if not word & SHARED and word & OWNER < Domid.FIRST_RESERVED
        )
        if pages != +self.frames.pages:
            self.faults.append(f"frames by domain: {dict(+self.frames.pages)} kept, {dict(pages)} counted")
        return self.faults


def recount(tables: PageTables) -> list[str]:
    """What is wrong with the bookkeeping, one sentence each: empty when it agrees with the page tables."""
    return _Audit(tables).compare()
