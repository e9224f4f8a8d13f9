"""Two domains, honest and hostile, against the rules of frame_model.py; the same search must find seeded mistakes."""

from __future__ import annotations

import copy
import errno
import inspect
import itertools
import sys
import textwrap
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from minivmm.errors import GuestError
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
P, W, U, PWT, ACCESSED, DIRTY, LARGE, G, NX = 1, 2, 4, 8, 0x20, 0x40, 0x80, 0x100, 1 << 63

domids = st.sampled_from(DOMAINS)
mfns = st.one_of(st.sampled_from(FRAMES), st.sampled_from(FRAMES), st.sampled_from([0, 15, 46, 47, 1 << 39]))
slots = st.sampled_from([0, 0, 1, 2, 256, 271, 272, 511])
lower = st.sampled_from([0, 0, 0, 1])
levels = st.integers(0, 5)
good_flags = st.sampled_from([P | W | U, P, P | W | NX, P | U, P | W | ACCESSED | DIRTY, 0, 1 << 52 | P])
flags = st.one_of(good_flags, good_flags, st.sampled_from([P | PWT, P | LARGE, P | W | LARGE]))
words = st.one_of(
    st.builds(lambda mfn, bits: mfn << 12 | bits, mfns, flags),
    st.builds(lambda mfn, bits: mfn << 12 | bits, mfns, flags),
    st.sampled_from([0, 0x00AFFB000000FFFF, 0x0000EC0000000000, 0x00008B0000000067, (1 << 64) - 1]),
)


class Domains(RuleBasedStateMachine):
    """Every step is done to both; they must agree on whether it is allowed, and on what is so afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = GuestMemory(MIN_SIZE)
        self.frames = FrameTable(self.memory, range(FRAMES.start, FRAMES.stop + 1))
        self.tables = PageTables(self.frames)
        self.model = Model(FRAMES)
        self.frames.foreign = lambda domid, mfn, writable: (domid, mfn, writable) in self.model.grants

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

    def store(self, domid: int, mfn: int, slot: int, word: int) -> None:
        """The guest's own store, where its mappings could allow one."""
        if self.model.owner.get(mfn) == domid and self.model.types.get(mfn, WRITABLE) == WRITABLE:
            self.memory.write_u64(mfn << 12 | slot << 3, word)
            self.model.words[mfn][slot] = word

    @initialize(shares=st.sampled_from([(15, 15), (17, 11), (12, 14)]))
    def two_running_domains(self, shares: tuple[int, int]) -> None:
        for domid, share in zip(DOMAINS, shares, strict=True):
            for _ in range(share):
                self.allocate(domid)
            first = min(mfn for mfn, owner in self.model.owner.items() if owner == domid)
            self.a_tree(domid, (first + 3, first + 2, first + 1, first), 0, first + 4, P | W)
            self.new_baseptr(domid, first + 3)
            assert (domid, "kernel") in self.model.roots

    @rule(domid=domids)
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

    @rule(domid=domids, mfn=mfns)
    def free(self, domid: int, mfn: int) -> None:
        self.step(lambda: self.frames.free(domid, mfn), lambda m: m.free(domid, mfn))

    @rule(domid=domids, mfn=mfns, slot=slots, word=words)
    def guest_store(self, domid: int, mfn: int, slot: int, word: int) -> None:
        self.store(domid, mfn, slot, word)

    @rule(domid=domids, path=st.tuples(mfns, mfns, mfns, mfns), slot=slots, leaf=mfns, bits=flags)
    def a_tree(self, domid: int, path: tuple[int, int, int, int], slot: int, leaf: int, bits: int) -> None:
        """Links an L4, L3, L2 and L1 together: most random frames would never become one."""
        for table, target in itertools.pairwise(path):
            self.store(domid, table, slot, target << 12 | P | W)
        self.store(domid, path[3], slot, leaf << 12 | bits)

    @rule(domid=domids, level=st.integers(1, 4), slot=slots, leaf=words, extra=words, use=st.integers(0, 5))
    def a_use_of_idle_frames(self, domid: int, level: int, slot: int, leaf: int, extra: int, use: int) -> None:
        """A tree of `level` levels with a good mapping first, then `leaf`; in its top table perhaps `extra`. Pinned, or
        made the root or a descriptor table."""
        idle = [mfn for mfn, owner in self.model.owner.items() if owner == domid and mfn not in self.model.types]
        for mfn in idle:  # as a kernel would, it clears what it is about to use
            self.memory.write(mfn << 12, bytes(4096))
            self.model.words[mfn] = {}
        path = idle[-level:]
        if len(path) < level:
            return
        for table, target in itertools.pairwise(path):
            self.store(domid, table, 0, target << 12 | P | W)
        if use == 0:
            self.store(domid, path[0], 511, extra)
        if level == 4:
            self.store(domid, path[0], 271, extra)
        if slot:
            leaf = idle[slot % len(idle)] << 12 | leaf & 0xFFF
        if level == 1:
            leaf |= G
        self.store(domid, path[-1], 0, path[-1] << 12 | P)
        self.store(domid, path[-1], 1 + slot % 510, leaf)
        if use == 5:
            self.store(domid, path[0], 0, 0)
            self.set_descriptors(domid, [path[0]], "gdt")
        elif use == 4:
            self.new_user_baseptr(domid, path[0])
        else:
            self.pin(domid, path[0], level)

    @rule(choice=st.integers(0, 99), again=st.booleans())
    def a_pinned_table(self, choice: int, again: bool) -> None:
        pinned = sorted(self.model.pins.items())
        if pinned:
            mfn, level = pinned[choice % len(pinned)]
            domid = self.model.owner[mfn]
            assert domid is not None
            if again:
                self.pin(domid, mfn, level)
            else:
                self.unpin(domid, mfn)

    @rule(choice=st.integers(0, 99))
    def free_a_frame_in_use(self, choice: int) -> None:
        used = sorted(
            mfn for mfn, count in self.model.references.items() if count > 1 or mfn not in self.model.allocated
        )
        domid = self.model.owner[used[choice % len(used)]] if used else None
        if domid is not None:
            self.free(domid, used[choice % len(used)])

    @rule(domid=domids, mfn=mfns, level=levels)
    def pin(self, domid: int, mfn: int, level: int) -> None:
        self.step(lambda: self.tables.pin(domid, mfn, level), lambda m: m.pin(domid, mfn, level))

    @rule(domid=domids, mfn=mfns)
    def unpin(self, domid: int, mfn: int) -> None:
        self.step(lambda: self.tables.unpin(domid, mfn), lambda m: m.unpin(domid, mfn))

    @rule(domid=domids, mfn=mfns)
    def new_baseptr(self, domid: int, mfn: int) -> None:
        self.step(lambda: self.tables.new_baseptr(domid, mfn), lambda m: m.root(domid, mfn, "kernel"))

    @rule(domid=domids, mfn=mfns)
    def new_user_baseptr(self, domid: int, mfn: int) -> None:
        self.step(lambda: self.tables.new_user_baseptr(domid, mfn), lambda m: m.root(domid, mfn, "user"))

    @rule(domid=domids, mfn=mfns, slot=slots, word=words, bits=st.sampled_from([0, 2, 3, 4, G]))
    def mmu_update(self, domid: int, mfn: int, slot: int, word: int, bits: int) -> None:
        address, word = mfn << 12 | slot << 3 | bits & 4, word | bits & G
        self.step(
            lambda: self.tables.mmu_update(domid, address | bits & 3, word),
            lambda m: m.update(domid, address, word, bits == 2),
        )

    @rule(domid=domids, slot=slots, level=st.integers(0, 3), word=words, data=st.data())
    def update_a_table_in_use(self, domid: int, slot: int, level: int, word: int, data: st.DataObject) -> None:
        table = [mfn for mfn, t in self.model.types.items() if t == level + 1 and self.model.owner[mfn] == domid]
        if table:
            self.mmu_update(domid, data.draw(st.sampled_from(table)), slot, word, 0)

    @rule(domid=domids, mfn=mfns, pfn=st.integers(0, 1 << 64))
    def machphys(self, domid: int, mfn: int, pfn: int) -> None:
        self.step(lambda: self.tables.mmu_update(domid, mfn << 12 | 1, pfn), lambda m: m.machphys(domid, mfn))

    @rule(domid=domids, path=st.tuples(slots, lower, lower, slots), word=words)
    def update_va_mapping(self, domid: int, path: tuple[int, int, int, int], word: int) -> None:
        virtual = (
            path[0] << 39 | path[1] << 30 | path[2] << 21 | path[3] << 12 | (0xFFFF << 48 if path[0] >= 256 else 0)
        )
        self.step(lambda: self.tables.update_va_mapping(domid, virtual, word), lambda m: m.update_va(domid, path, word))

    @rule(domid=domids, mfn=mfns, slot=slots, offset=st.integers(0, 7), size=st.sampled_from([1, 2, 4, 8]), word=words)
    def emulated_store(self, domid: int, mfn: int, slot: int, offset: int, size: int, word: int) -> None:
        address, value = mfn << 12 | slot << 3 | offset, word & (1 << 8 * size) - 1
        self.step(
            lambda: self.tables.emulate_store(domid, address, value, size),
            lambda m: m.emulate_store(domid, address, value, size),
        )

    @rule(domid=domids, chosen=st.lists(mfns, max_size=2), which=st.sampled_from(["gdt", "ldt"]))
    def set_descriptors(self, domid: int, chosen: list[int], which: str) -> None:
        def real() -> None:
            if which == "gdt":
                self.tables.set_gdt(domid, chosen, 512 * len(chosen))
            else:
                self.tables.set_ldt(domid, chosen)

        self.step(real, lambda m: m.set_descriptors(domid, tuple(chosen), which))

    @rule(domid=domids, mfn=mfns, slot=slots, word=words)
    def update_descriptor(self, domid: int, mfn: int, slot: int, word: int) -> None:
        address = mfn << 12 | slot << 3
        self.step(
            lambda: self.tables.update_descriptor(domid, address, word),
            lambda m: m.update_descriptor(domid, address, word),
        )

    @rule(domid=domids, mfn=mfns, page_type=st.sampled_from([0, L1, L4, SEGDESC, WRITABLE]))
    def hold(self, domid: int, mfn: int, page_type: int) -> None:
        def real() -> None:
            if page_type:
                self.frames.get_page_type(domid, mfn, page_type)
            else:
                self.frames.get_page(domid, mfn)

        self.step(real, lambda m: m.hold(domid, mfn, page_type))

    @rule(mfn=mfns, page_type=st.sampled_from([0, L1, L4, SEGDESC, WRITABLE]))
    def let_go(self, mfn: int, page_type: int) -> None:
        def real() -> None:
            if page_type:
                self.frames.put_page_type(mfn, page_type)
            else:
                self.frames.put_page(mfn)

        self.step(real, lambda m: m.let_go(mfn, page_type))

    @rule(domid=domids, mfn=mfns, writable=st.booleans())
    def grant(self, domid: int, mfn: int, writable: bool) -> None:
        self.model.grants.add((domid, mfn, writable))

    @rule(domid=domids, certain=st.integers(0, 9))
    def destroy(self, domid: int, certain: int) -> None:
        if not certain:
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
                        assert owner == domid or (level == 1 and (domid, target, bool(entry & W)) in self.model.grants)
                        if level == 1 and entry & W:
                            writable.add(target)
                tables = below
        assert not protected & writable

    def teardown(self) -> None:
        self.model.holds.clear()
        for (mfn, page_type), count in list(self.frames.held.items()):
            for _ in range(count):
                self.let_go_of(mfn, page_type)
        for domid in DOMAINS:
            self.tables.destroy(domid)
        assert self.frames.free_frames == len(FRAMES)
        assert all(self.frames.state[mfn] == Domid.INVALID for mfn in FRAMES)
        self.memory.close()

    def let_go_of(self, mfn: int, page_type: int) -> None:
        if page_type:
            self.frames.put_page_type(mfn, page_type)
        else:
            self.frames.put_page(mfn)


def search(examples: int) -> None:
    run_state_machine_as_test(
        Domains,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_hostile_domains_never_break_the_frame_rules() -> None:
    search(100)


# A mistake is one line of one method: what it is, where, the line as it is, and as somebody might have written it.
MISTAKES: list[tuple[str, type, str, str, str]] = [
    ("a type changes while in use", FrameTable, "take", "if (word & TYPE) >> TYPE_SHIFT != page_type:", "if False:"),
    ("another's frame is taken", FrameTable, "owned", "if word & OWNER != domid:", "if False:"),
    ("no bound", FrameTable, "owned", "not 0 <= mfn < len(self.state) or", ""),
    ("another's frame is mapped", FrameTable, "take_leaf", "if owner != domid and", "if False and"),
    ("a refused table stays one", FrameTable, "take", "self.state[mfn] -= BOTH", "pass"),
    ("an old table keeps references", FrameTable, "drop_typed", "self._invalidate(mfn, page_type)", "pass"),
    ("supervisor entries stay", FrameTable, "_checked_entries", "table |= present * Pte.USER", "pass"),
    ("a root is not counted", PageTables, "_new_root", "self.frames.take(cpu[0], mfn, PageType.L4)", "pass"),
    ("the old root stays counted", PageTables, "_new_root", "self.frames.drop_typed(old)", "pass"),
    ("an update is not checked", PageTables, "update_entry", "frames.take_entry(domid, value, level)", "pass"),
    ("an update keeps the old mapping", PageTables, "update_entry", "frames.drop_entry(old, level)", "pass"),
    ("a GDT is writable", PageTables, "_set_descriptors", "PageType.SEGDESC", "PageType.WRITABLE"),
    ("another's machphys entry", PageTables, "mmu_update", "self.frames.owned(domid, mfn)", "pass"),
]


@pytest.mark.parametrize(
    ("owner", "method", "line", "mistake"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_a_seeded_mistake_is_found(
    monkeypatch: pytest.MonkeyPatch, owner: type, method: str, line: str, mistake: str
) -> None:
    source = textwrap.dedent(inspect.getsource(getattr(owner, method)))
    assert source.count(line) == 1
    namespace = dict(vars(sys.modules[owner.__module__]))
    exec(compile("from __future__ import annotations\n" + source.replace(line, mistake), method, "exec"), namespace)
    monkeypatch.setattr(owner, method, namespace[method])
    with pytest.raises((AssertionError, LookupError, ValueError, TypeError, GuestError)):
        search(100)
