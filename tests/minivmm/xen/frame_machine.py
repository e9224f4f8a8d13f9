"""Two domains, honest and hostile: each step is done to the frame table and to the rules of frame_model.py."""

from __future__ import annotations

import copy
import errno
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from minivmm.memory import MIN_SIZE, GuestMemory
from minivmm.xen.abi import Domid
from minivmm.xen.errors import HypercallError
from minivmm.xen.frame_words import OWNER, REF_SHIFT, TYPE, TYPE_ONE, TYPE_SHIFT
from minivmm.xen.frames import FrameTable
from minivmm.xen.page_tables import PageTables
from minivmm.xen.recount import recount
from tests.minivmm.xen.frame_model import L1, L4, SEGDESC, WRITABLE, XEN_SLOTS, Illegal, Model

FRAMES = range(16, 46)  # and the machine-to-physical table in the frame after them
DOMAINS = (1, 2)
SHARES = ((15, 15), (17, 11), (12, 14))
P, W, U, PWT, ACCESSED, DIRTY, LARGE, G, NX = 1, 2, 4, 8, 0x20, 0x40, 0x80, 0x100, 1 << 63

# What is drawn from, by meaning. A negative frame is one of the domain's own: -n its n-th, counted round and round.
OWN = range(-20, 0)
MFNS = (*OWN, *OWN, *OWN, *FRAMES, 0, 15, 46, 47, 1 << 39)
SLOTS = (0, 0, 1, 2, 256, 271, 272, 511)
LOWER = (0, 0, 0, 1)
PICKS = range(100)
GOOD = (P | W | U, P, P | W | NX, P | U, P | W | ACCESSED | DIRTY, P | G, 0, 1 << 52 | P)
SPECIAL = (0x00AFFB000000FFFF, 0x0000EC0000000000, 0x00008B0000000067, (1 << 64) - 1)  # whole words
BITS = (*GOOD, *GOOD, *GOOD, P | PWT, P | LARGE, P | W | LARGE, *SPECIAL)

Rule = Callable[..., None]
untyped_rule: Any = rule  # its overloads know no dictionary of strategies
RULES: dict[str, dict[str, Sequence[int]]] = {}


def drawn(**values: Sequence[int]) -> Callable[[Rule], Rule]:
    """A rule whose arguments are drawn from `values`: by hypothesis, or by `walk`."""

    def register(method: Rule) -> Rule:
        RULES[method.__name__] = values
        strategies: dict[str, Any] = {name: st.sampled_from(choices) for name, choices in values.items()}
        decorated: Rule = untyped_rule(**strategies)(method)
        return decorated

    return register


class Domains(RuleBasedStateMachine):
    """Every step is done to both; they must agree on whether it is allowed, and on what is so afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = GuestMemory(MIN_SIZE)
        self.frames = FrameTable(self.memory, range(FRAMES.start, FRAMES.stop + 1))
        self.tables = PageTables(self.frames)
        self.model = Model(FRAMES)

    def step(self, real: Callable[[], object], rules: Callable[[Model], object]) -> None:
        after = copy.deepcopy(self.model)
        try:
            rules(after)
            after.settle()
            legal = True
        except Illegal:
            legal = False
        try:
            real()
            done = True
        except HypercallError:
            done = False
        assert done == legal, f"the rules say {legal}, the frame table {done}"
        if legal:
            self.model = after

    def frame(self, domid: int, mfn: int) -> int:
        if mfn >= 0:
            return mfn
        own = [frame for frame, owner in self.model.owner.items() if owner == domid]
        return own[mfn % len(own)] if own else FRAMES[mfn]

    def word(self, domid: int, mfn: int, bits: int) -> int:
        return bits if bits in SPECIAL else self.frame(domid, mfn) << 12 | bits

    def in_use(self, domid: int, page_type: int, pick: int) -> int | None:
        """A frame that is one of the domain's tables of that type now."""
        tables = [mfn for mfn, t in self.model.types.items() if t == page_type and self.model.owner[mfn] == domid]
        return tables[pick % len(tables)] if tables else None

    def store(self, domid: int, mfn: int, slot: int, word: int) -> None:
        """The guest's own store, where its mappings could allow one."""
        if self.model.owner.get(mfn) == domid and self.model.types.get(mfn, WRITABLE) == WRITABLE:
            self.memory.write_u64(mfn << 12 | slot << 3, word)
            self.model.words[mfn][slot] = word

    @initialize(shares=st.sampled_from(SHARES))
    def two_running_domains(self, shares: tuple[int, int]) -> None:
        for domid, share in zip(DOMAINS, shares, strict=True):
            for _ in range(share):
                self.allocate(domid)
            first = min(mfn for mfn, owner in self.model.owner.items() if owner == domid)
            self.link(domid, (first + 3, first + 2, first + 1, first), 0, (first + 4) << 12 | P | W)
            self.new_baseptr(domid, first + 3)
            assert (domid, "kernel") in self.model.roots

    @drawn(domid=DOMAINS)
    def allocate(self, domid: int) -> None:
        if None not in self.model.owner.values():
            with pytest.raises(HypercallError) as refused:
                self.frames.allocate(domid)
            assert refused.value.errno == errno.ENOMEM
            return
        mfn = self.frames.allocate(domid)
        assert self.model.owner[mfn] is None
        assert not any(self.memory.read(mfn << 12, 4096))
        self.model.owner[mfn] = domid
        self.model.allocated.add(mfn)
        self.model.settle()

    @drawn(domid=DOMAINS, mfn=MFNS)
    def free(self, domid: int, mfn: int) -> None:
        mfn = self.frame(domid, mfn)
        self.step(lambda: self.frames.free(domid, mfn), lambda m: m.free(domid, mfn))

    @drawn(domid=DOMAINS, mfn=MFNS, slot=SLOTS, leaf=MFNS, bits=BITS)
    def guest_store(self, domid: int, mfn: int, slot: int, leaf: int, bits: int) -> None:
        self.store(domid, self.frame(domid, mfn), slot, self.word(domid, leaf, bits))

    def link(self, domid: int, path: Sequence[int], slot: int, leaf: int) -> None:
        """An L4, L3, L2 and L1 below one another: most random frames would never become one."""
        for table, below in itertools.pairwise(path):
            self.store(domid, table, slot, below << 12 | P | W)
        self.store(domid, path[-1], slot, leaf)

    @drawn(domid=DOMAINS, l4=MFNS, l3=MFNS, l2=MFNS, l1=MFNS, slot=SLOTS, leaf=MFNS, bits=BITS)
    def a_tree(self, domid: int, l4: int, l3: int, l2: int, l1: int, slot: int, leaf: int, bits: int) -> None:
        path = [self.frame(domid, mfn) for mfn in (l4, l3, l2, l1)]
        self.link(domid, path, slot, self.word(domid, leaf, bits))

    @drawn(domid=DOMAINS, level=range(1, 5), slot=SLOTS, leaf=MFNS, bits=BITS, extra=BITS, use=range(6))
    def a_use_of_idle_frames(
        self, domid: int, level: int, slot: int, leaf: int, bits: int, extra: int, use: int
    ) -> None:
        """A tree of `level` levels with a good mapping first, then another; in its top table perhaps `extra`. Pinned,
        or made the root or a descriptor table."""
        idle = [mfn for mfn, owner in self.model.owner.items() if owner == domid and mfn not in self.model.types]
        for mfn in idle:  # as a kernel would, it clears what it is about to use
            self.memory.write(mfn << 12, bytes(4096))
            self.model.words[mfn] = {}
        path = idle[-level:]
        if len(path) < level:
            return
        self.link(domid, path, 0, path[-1] << 12 | P)
        if use == 0:
            self.store(domid, path[0], 511, self.word(domid, leaf, extra))
        if level == 4:
            self.store(domid, path[0], 271, self.word(domid, leaf, extra))
        mfn = idle[slot % len(idle)] if slot else self.frame(domid, leaf)
        entry = self.word(domid, mfn, bits)
        self.store(domid, path[-1], 1 + slot % 510, entry | G if level == 1 else entry)
        if use == 5:
            self.store(domid, path[0], 0, 0)
            self.set_descriptors(domid, path[0], 0, 1)
        elif use == 4:
            self.new_user_baseptr(domid, path[0])
        else:
            self.pin(domid, path[0], level)

    @drawn(pick=PICKS, again=(0, 1))
    def a_pinned_table(self, pick: int, again: int) -> None:
        pinned = sorted(self.model.pins.items())
        if pinned:
            mfn, level = pinned[pick % len(pinned)]
            domid = self.model.owner[mfn]
            assert domid is not None
            if again:
                self.pin(domid, mfn, level)
            else:
                self.unpin(domid, mfn)

    @drawn(pick=PICKS)
    def free_a_frame_in_use(self, pick: int) -> None:
        used = sorted(
            mfn for mfn, count in self.model.references.items() if count > 1 or mfn not in self.model.allocated
        )
        domid = self.model.owner[used[pick % len(used)]] if used else None
        if domid is not None:
            self.free(domid, used[pick % len(used)])

    @drawn(domid=DOMAINS, mfn=MFNS, level=range(6))
    def pin(self, domid: int, mfn: int, level: int) -> None:
        mfn = self.frame(domid, mfn)
        self.step(lambda: self.tables.pin(domid, mfn, level), lambda m: m.pin(domid, mfn, level))

    @drawn(domid=DOMAINS, mfn=MFNS)
    def unpin(self, domid: int, mfn: int) -> None:
        mfn = self.frame(domid, mfn)
        self.step(lambda: self.tables.unpin(domid, mfn), lambda m: m.unpin(domid, mfn))

    @drawn(domid=DOMAINS, mfn=MFNS)
    def new_baseptr(self, domid: int, mfn: int) -> None:
        mfn = self.frame(domid, mfn)
        self.step(lambda: self.tables.new_baseptr(domid, mfn), lambda m: m.root(domid, mfn, "kernel"))

    @drawn(domid=DOMAINS, mfn=MFNS)
    def new_user_baseptr(self, domid: int, mfn: int) -> None:
        mfn = self.frame(domid, mfn)
        self.step(lambda: self.tables.new_user_baseptr(domid, mfn), lambda m: m.root(domid, mfn, "user"))

    @drawn(domid=DOMAINS, mfn=MFNS, slot=SLOTS, leaf=MFNS, bits=BITS, low=(0, 0, 2, 3, 4))
    def mmu_update(self, domid: int, mfn: int, slot: int, leaf: int, bits: int, low: int) -> None:
        address, word = self.frame(domid, mfn) << 12 | slot << 3 | low & 4, self.word(domid, leaf, bits)
        self.step(
            lambda: self.tables.mmu_update(domid, address | low & 3, word),
            lambda m: m.update(domid, address, word, low == 2),
        )

    @drawn(domid=DOMAINS, slot=SLOTS, level=(1, 1, 2, 3, 4), pick=PICKS, leaf=MFNS, bits=BITS)
    def update_a_table_in_use(self, domid: int, slot: int, level: int, pick: int, leaf: int, bits: int) -> None:
        table = self.in_use(domid, level, pick)
        if table is not None:
            self.mmu_update(domid, table, slot, leaf, bits, 0)

    @drawn(domid=DOMAINS, mfn=MFNS, pfn=(0, 7, (1 << 64) - 1, 1 << 64))
    def machphys(self, domid: int, mfn: int, pfn: int) -> None:
        mfn = self.frame(domid, mfn)
        self.step(lambda: self.tables.mmu_update(domid, mfn << 12 | 1, pfn), lambda m: m.machphys(domid, mfn))

    @drawn(domid=DOMAINS, l4=SLOTS, l3=LOWER, l2=LOWER, l1=SLOTS, leaf=MFNS, bits=BITS)
    def update_va_mapping(self, domid: int, l4: int, l3: int, l2: int, l1: int, leaf: int, bits: int) -> None:
        virtual = l4 << 39 | l3 << 30 | l2 << 21 | l1 << 12 | (0xFFFF << 48 if l4 >= 256 else 0)
        word = self.word(domid, leaf, bits)
        self.step(
            lambda: self.tables.update_va_mapping(domid, virtual, word),
            lambda m: m.update_va(domid, (l4, l3, l2, l1), word),
        )

    @drawn(domid=DOMAINS, mfn=MFNS, pick=PICKS, slot=SLOTS, offset=range(8), size=(1, 2, 4, 8), leaf=MFNS, bits=BITS)
    def emulated_store(
        self, domid: int, mfn: int, pick: int, slot: int, offset: int, size: int, leaf: int, bits: int
    ) -> None:
        table = (self.in_use(domid, L1, pick) if pick % 4 else None) or self.frame(domid, mfn)
        address = table << 12 | slot << 3 | (offset if pick % 3 else offset // size * size)
        value = self.word(domid, leaf, bits) & (1 << 8 * size) - 1
        self.step(
            lambda: self.tables.emulate_store(domid, address, value, size),
            lambda m: m.emulate_store(domid, address, value, size),
        )

    @drawn(domid=DOMAINS, mfn=MFNS, more=(0, *MFNS), kind=range(3))
    def set_descriptors(self, domid: int, mfn: int, more: int, kind: int) -> None:
        """A GDT or, with an even `kind`, an LDT: of one frame or two, or none."""
        chosen = [self.frame(domid, frame) for frame in (mfn, more) if frame and kind]
        which = "gdt" if kind == 1 else "ldt"

        def real() -> None:
            if which == "gdt":
                self.tables.set_gdt(domid, chosen, 512 * len(chosen))
            else:
                self.tables.set_ldt(domid, chosen)

        self.step(real, lambda m: m.set_descriptors(domid, tuple(chosen), which))

    @drawn(domid=DOMAINS, mfn=MFNS, slot=SLOTS, leaf=MFNS, bits=BITS)
    def update_descriptor(self, domid: int, mfn: int, slot: int, leaf: int, bits: int) -> None:
        address, word = self.frame(domid, mfn) << 12 | slot << 3, self.word(domid, leaf, bits)
        self.step(
            lambda: self.tables.update_descriptor(domid, address, word),
            lambda m: m.update_descriptor(domid, address, word),
        )

    @drawn(domid=DOMAINS, mfn=MFNS, page_type=(0, L1, L4, SEGDESC, WRITABLE))
    def hold(self, domid: int, mfn: int, page_type: int) -> None:
        mfn = self.frame(domid, mfn)

        def real() -> None:
            if page_type:
                self.frames.get_page_type(domid, mfn, page_type)
            else:
                self.frames.get_page(domid, mfn)

        self.step(real, lambda m: m.hold(domid, mfn, page_type))

    @drawn(pick=PICKS, mfn=FRAMES, page_type=(0, L1, L4, SEGDESC, WRITABLE))
    def let_go(self, pick: int, mfn: int, page_type: int) -> None:
        if self.model.holds and pick % 4:
            mfn, page_type = self.model.holds[pick % len(self.model.holds)]
        self.step(lambda: self.put(mfn, page_type), lambda m: m.let_go(mfn, page_type))

    def put(self, mfn: int, page_type: int) -> None:
        if page_type:
            self.frames.put_page_type(mfn, page_type)
        else:
            self.frames.put_page(mfn)

    @drawn(domid=DOMAINS, mfn=MFNS, pick=PICKS, slot=SLOTS, leaf=MFNS, bits=(P | U, P | W | U))
    def map_granted(self, domid: int, mfn: int, pick: int, slot: int, leaf: int, bits: int) -> None:
        """What grants have checked by then: the frame is somebody's, and the address an entry's."""
        table = (self.in_use(domid, L1, pick) if pick % 8 else None) or self.frame(domid, mfn)
        leaf = self.frame(3 - domid, leaf)
        if self.model.owner.get(leaf) is not None:
            self.step(
                lambda: self.tables.map_granted(domid, table << 12 | slot << 3, leaf << 12 | bits),
                lambda m: m.map_granted(domid, (table, slot), leaf << 12 | bits),
            )

    @drawn(domid=DOMAINS, pick=PICKS, leaf=MFNS, writable=(0, 1), wrong=range(4))
    def unmap_granted(self, domid: int, pick: int, leaf: int, writable: int, wrong: int) -> None:
        """Mostly what a grant mapped; else with the wrong frame, the wrong way, or the wrong domain."""
        if not self.model.granted:
            return
        (table, slot), (mapped, was_writable) = sorted(self.model.granted.items())[pick % len(self.model.granted)]
        owner = self.model.owner[table]
        assert owner is not None
        domid = domid if wrong == 1 else owner
        leaf = self.frame(domid, leaf) if wrong == 2 else mapped
        write = bool(writable) if wrong == 3 else was_writable
        self.step(
            lambda: self.tables.unmap_granted(domid, table << 12 | slot << 3, leaf, write),
            lambda m: m.unmap_granted(domid, (table, slot), leaf, write),
        )

    @drawn(domid=DOMAINS, seldom=range(20))
    def destroy(self, domid: int, seldom: int) -> None:
        if not seldom:
            self.step(lambda: self.tables.destroy(domid), lambda m: m.destroy(domid))
            for _ in range(9):
                self.allocate(domid)

    @invariant()
    def the_frame_table_is_what_the_rules_derive(self) -> None:
        for mfn in FRAMES:
            word = self.frames.state[mfn]
            owner = word & OWNER
            assert self.model.owner[mfn] == (None if owner == Domid.INVALID else owner)
            assert word >> REF_SHIFT == self.model.references[mfn], self.tables.describe(mfn)
            assert (word & (1 << REF_SHIFT) - 1) // TYPE_ONE == self.model.uses[mfn], self.tables.describe(mfn)
            if self.model.uses[mfn]:
                assert (word & TYPE) >> TYPE_SHIFT == self.model.types[mfn]

    @invariant()
    def a_table_in_use_holds_what_its_domain_asked_for_as_the_rules_make_it(self) -> None:
        for mfn, level in self.model.types.items():
            if not L1 <= level <= L4:
                continue
            for slot, word in self.model.words[mfn].items():
                assert self.memory.read_u64(mfn << 12 | slot << 3) == (word | U if word & P else word)
            if level == L4:
                assert not any(self.memory.read(mfn << 12 | XEN_SLOTS.start << 3, 8 * len(XEN_SLOTS)))

    @invariant()
    def a_recount_agrees(self) -> None:
        assert recount(self.tables) == []

    @invariant()
    def no_frame_is_writable_and_a_table_and_none_is_a_strangers(self) -> None:
        """Walks the tables as the processor does."""
        protected = {mfn for mfns in (*self.tables.gdts.values(), *self.tables.ldts.values()) for mfn in mfns}
        writable: set[int] = set()
        for (domid, _), root in (*self.tables.kernel_roots.items(), *self.tables.user_roots.items()):
            tables = {root}
            for level in (4, 3, 2, 1):
                protected |= tables
                below: set[int] = set()
                for table in tables:
                    for slot, entry in enumerate(self.memory.view(table << 12, 4096).cast("Q")):
                        if not entry & P or (level == 4 and slot in XEN_SLOTS):
                            continue
                        target = entry >> 12 & (1 << 40) - 1
                        below.add(target)
                        owner = self.frames.state[target] & OWNER
                        assert entry & U
                        granted = self.model.granted.get((table, slot)) == (target, bool(entry & W))
                        assert owner == domid or (level == 1 and granted)
                        if level == 1 and entry & W:
                            writable.add(target)
                tables = below
        assert not protected & writable

    def teardown(self) -> None:
        for (mfn, page_type), count in list(self.frames.held.items()):
            for _ in range(count):
                self.put(mfn, page_type)
        for domid in DOMAINS:
            self.tables.destroy(domid)
        assert self.frames.free_frames == len(FRAMES)
        assert all(self.frames.state[mfn] == Domid.INVALID for mfn in FRAMES)
        self.memory.close()
