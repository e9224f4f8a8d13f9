"""Two domains, honest and hostile, make every hypercall as a guest does; the rules of hypercall_rules.py say what must
come of each, and the machine's own bookkeeping and processors are looked at after each."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from minivmm.outcome import EndOfRun
from minivmm.xen.abi import Domid
from minivmm.xen.calls import call
from minivmm.xen.frame_words import OWNER, REF_SHIFT, TYPE, TYPE_ONE, TYPE_SHIFT
from minivmm.xen.hypervisor import M2P_SLOT, M2P_VIRT
from minivmm.xen.recount import recount
from tests.minivmm.xen.frame_model import L1, L4, SEGDESC, XEN_SLOTS, P, W
from tests.minivmm.xen.hypercall_frame_rules import LOW, REFUSED, SELF
from tests.minivmm.xen.hypercall_model import GLOBAL, PAGE, WORD, Cpu, State, U
from tests.minivmm.xen.hypercall_rules import Ended, Rules
from tests.minivmm.xen.hypercall_world import CPUS, FRAMES, M2P, M2P_TABLES, VCPUS, Machine
from tests.minivmm.xen.kernels import VIRT_BASE

# Where a domain's kernel has things. A page is a place in its one L1.
SCRATCH, DATA, HOLE = 10, 14, 18  # four pages each, and nothing after them
READ_ONLY, GRANT_TABLE, SHARED_INFO, MAPS = 64, 80, 81, 96
CODE, TABLE = 0, 8


def at_page(page: int) -> int:
    return VIRT_BASE + page * PAGE & WORD


# What is drawn from. A negative frame is one of the domain's own, from 20 on the other's.
FREE, SHARED, GRANT, M2P_FRAME, BEYOND, FAR, FARTHEST, NOBODYS, OTHERS_SHARED, IDLE = range(10)
TABLES = {10: L1, 11: 2, 12: 3, 13: L4, 14: SEGDESC}
FRAME = (*range(-24, 0), *[IDLE] * 12, *[10] * 4, *TABLES, *TABLES, *range(9), *range(9), *range(20, 30))
SLOT = (0, 0, 1, 2, 10, 14, 64, 96, 256, 257, 271, 272, 511)
GOOD = (P | W | U, P | W, P | U, P, P | W | U | 1 << 63, P | U | 0x60, 0, 1 << 52 | P)
WORDS = (0x00AFFB000000FFFF, 0x0000EC0000000000, 0x00008B0000000067, WORD)  # descriptors, and whole words
BITS = (*GOOD, *GOOD, *GOOD, P | GLOBAL, P | 8, P | 0x80, P | W | 0x80, *WORDS)
POINTER = (*[0] * 70, *[1] * 4, *range(13))
COUNT = (*[1] * 30, 0, 2, 3, LOW, 1 << 32, 1 << 63)
DONE = (*[0] * 8, *[1] * 8, 2, 3, 4)
WHOM = (*[SELF] * 20, -1, -1, -2, 0, 0x7FF1, 0xFFFF)  # -1: itself, -2: the other
OTHER = (*[-2] * 14, *[-1] * 4, SELF, 9, 0xFFFF)
WHO = (0, 0, 0, 1, 1, 1, 2, 3)  # seat, and twice its vCPU
BATCH = (0, 0, 0, 0, 0, 1)
PICK = range(60)
PAGE_OF = (
    *range(10, 18),
    READ_ONLY,
    GRANT_TABLE,
    SHARED_INFO,
    *range(MAPS, MAPS + 4),
    *range(MAPS, MAPS + 4),
    120,
    511,
    CODE,
    TABLE,
)
PORT = (*range(8), 63, 64, 4095, 4096, LOW)
REF = (0, 1, 2, 3, 4, 8, 511, 512, LOW)
ORDER = (0, 0, 0, 0, 1, 2, 9, 10, LOW)
ADDRESS_BITS = (0, 0, 0, 1, 18, 19, 1 << 16)
NUMBER = (0, 1, 2, 3, 5, 255, 256, LOW, 1 << 32, 1 << 47, 1 << 63, WORD)

USED = (*FRAMES, *range(M2P_TABLES, M2P_TABLES + 3))

Rule = Callable[..., None]
RULES: dict[str, dict[str, Sequence[int]]] = {}
untyped_rule: Any = rule


class Drawn:
    """What was drawn for a rule, by name."""

    def __init__(self, values: dict[str, int]) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> int:
        raise AttributeError(name)


def drawn(**values: Sequence[int]) -> Callable[[Callable[[Any, Drawn], None]], Rule]:
    """A rule whose numbers are drawn from `values`: by hypothesis, or by a walk."""

    def register(method: Callable[[Any, Drawn], None]) -> Rule:
        RULES[method.__name__] = values
        strategies: dict[str, Any] = {name: st.sampled_from(choices) for name, choices in values.items()}

        def take(self: Any, **numbers: int) -> None:
            method(self, Drawn(numbers))

        take.__name__ = method.__name__
        decorated: Rule = untyped_rule(**strategies)(take)
        return decorated

    return register


class Hypercalls(RuleBasedStateMachine):
    """Every call is made for real and by the rules."""

    recount_every = 1

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine()
        self.core, self.memory = self.machine.core, self.machine.memory
        slots = [0] * len(XEN_SLOTS)
        slots[M2P_SLOT - XEN_SLOTS.start] = M2P_TABLES << 12 | P | W | U
        contents = {mfn: self.memory.read(mfn * PAGE, PAGE) for mfn in USED}
        self.expected = Rules(State(range(FRAMES.start, M2P), M2P, contents, tuple(slots)))
        self.seats: list[int | None] = [None, None]
        self.waiting: list[tuple[int, tuple[int, ...]]] = []
        self.waiting_cpu: Cpu = (0, 0)
        self.looks = 0

    @property
    def state(self) -> State:
        return self.expected.state

    # -- domains come and go

    @drawn(seat=(0, 1))
    def a_domain_comes(self, n: Drawn) -> None:
        self.arrive(n.seat)

    @drawn(seat=(0, 1), seldom=range(25))
    def a_domain_goes(self, n: Drawn) -> None:
        if not n.seldom:
            self.leave(n.seat)

    def arrive(self, seat: int) -> None:
        if self.seats[seat] is not None:
            return
        domain = self.machine.seat()
        if domain is None:
            self.look()
            return
        self.seats[seat] = domid = domain.domid
        state, tables = self.state, domain.start.page_tables
        for mfn in domain.mfns:
            state.owner[mfn] = domid
            state.allocated.add(mfn)
        shared_info, grants = domain.shared_info // PAGE, self.core.grants.entry(domid, 0) // PAGE
        state.derive()
        for mfn in (shared_info, grants):
            state.share(domid, mfn)
        state.contents = {mfn: self.memory.read(mfn * PAGE, PAGE) for mfn in USED}
        self.expected.state = state = state.copy()
        state.pins[tables[0].mfn] = L4
        state.roots[domid, "kernel0"] = tables[0].mfn
        for mfn in domain.held_mfns:
            state.hold_writable(domid, mfn)
        state.limit[domid], state.shared_info[domid] = self.core.frames.max_pages[domid], shared_info
        state.grant_frames[domid] = (grants,)
        state.events.admit(domid, VCPUS, shared_info, (domain.store_port, domain.console_port))
        state.initialised.add((domid, 0))
        state.up.add((domid, 0))
        state.settle()
        self.look()
        for page, mfn, bits in (
            (READ_ONLY, domain.mfns[SCRATCH], P | U),
            (GRANT_TABLE, grants, P | W | U),
            (SHARED_INFO, shared_info, P | W | U),
        ):
            self.issue((domid, 0), 14, (at_page(page), mfn << 12 | bits, 0))

    def leave(self, seat: int) -> None:
        domid = self.seats[seat]
        if domid is None:
            return
        self.seats[seat] = None
        self.waiting.clear()
        self.machine.destroy(self.core.domains[domid])
        self.expected.change(lambda s: s.destroy(domid))
        self.look()

    def teardown(self) -> None:
        try:
            for seat in (1, 0) if self.seats[0] and self.seats[0] % 2 else (0, 1):
                self.leave(seat)
            core = self.core
            assert core.frames.free_frames == self.machine.at_start
            assert all(core.frames.state[mfn] == Domid.INVALID for mfn in range(FRAMES.start, M2P))
            for counts in (core.frames.pages, core.frames.held):
                assert not +counts
            tables = core.tables
            for left in (
                tables.granted,
                tables.kernel_roots,
                tables.user_roots,
                tables.gdts,
                tables.ldts,
                core.domains,
            ):
                assert not left
            assert not core.frames.max_pages
            assert len(self.machine.free_cpus) == CPUS
            assert not core.timers._due
        finally:
            self.machine.close()

    # -- a call

    def caller(self, who: int) -> Cpu | None:
        """A vCPU that runs in kernel mode."""
        domid = self.seats[who % 2]
        if domid is None:
            return None
        vcpus = self.core.domains[domid].vcpus
        ready = [vcpu.index for vcpu in vcpus if vcpu.up and vcpu.in_kernel]
        return (domid, ready[who // 2 % len(ready)]) if ready else None

    def issue(self, cpu: Cpu, number: int, args: tuple[int, ...]) -> int | None:
        """One hypercall. Returns RAX, None for the domain's end."""
        domid, index = cpu
        core = self.core
        vcpu = core.domains[domid].vcpus[index]
        if vcpu.blocked:
            vcpu.wake()
        everyone = [other for domain in core.domains.values() for other in domain.vcpus if other.up]
        for other in everyone:
            other.inside = other is not vcpu
        core.current = vcpu
        self.machine.allocated.clear()
        result: int | None = None
        try:
            result = call(vcpu, number, args)
            core.shoot_down()
        except EndOfRun:
            pass
        core.current = None
        for other in everyone:
            other.inside = False
        self.expected.allocated = list(self.machine.allocated)
        refusals = self.expected.refusals
        try:
            expected = self.expected.call(cpu, number, args)
            assert result is not None, "the domain ended"
            if expected == REFUSED:
                assert -200 < result < 0
            elif expected is not None:
                assert result == expected, f"{number}{args}: {result}, by the rules {expected}"
        except Ended:
            assert result is None, "the domain goes on"
        for address, length in self.state.unknown:
            self.state.put(address, self.memory.read(address, length))
        self.state.unknown.clear()
        self.look(lenient=self.expected.refusals != refusals)
        if result is None:
            self.leave(self.seats.index(domid))
        return result

    def store(self, cpu: Cpu, virtual: int, data: bytes) -> None:
        """The guest's own stores, as far as it may."""
        while data:
            count = PAGE - virtual % PAGE
            machine = self.state.walk(cpu, virtual, P | U | W)
            if machine is not None:
                self.memory.write(machine, data[:count])
                self.state.put(machine, data[:count])
            virtual, data = virtual + count & WORD, data[count:]

    def ask(self, cpu: Cpu, number: int, args: tuple[int, ...], batch: int = 0) -> None:
        """At once, or as one of three in a multicall."""
        if not batch:
            self.issue(cpu, number, args)
            return
        if self.waiting_cpu != cpu:
            self.waiting.clear()
            self.waiting_cpu = cpu
        self.waiting.append((number, args))
        if len(self.waiting) == 3:
            entries = [
                struct.pack("<8Q", op, 77, *[arg & WORD for arg in (*a, 0, 0, 0, 0, 0, 0)[:6]])
                for op, a in self.waiting
            ]
            self.waiting.clear()
            self.store(cpu, at_page(SCRATCH + 3), b"".join(entries))
            self.issue(cpu, 13, (at_page(SCRATCH + 3), 3))

    def place(self, cpu: Cpu, pointer: int, data: bytes, batch: int = 0) -> int:
        """Where the guest has put its request, and says it has."""
        at = 1024 * len(self.waiting) if batch and self.waiting_cpu == cpu else 0 if batch else 0xC00
        fine = at_page(SCRATCH) + at
        self.store(cpu, fine, data)
        address = (
            *(fine, at_page(READ_ONLY) + at, at_page(120), fine ^ 1 << 62, 0, WORD, M2P_VIRT + 8 * FRAMES.start),
            *(at_page(DATA) - 8, at_page(GRANT_TABLE) + 64, at_page(HOLE) - 8, at_page(MAPS), 1 << 63, at_page(TABLE)),
        )[pointer]
        if pointer > 1:
            self.store(cpu, address, data)
        return address

    def done(self, kind: int) -> int:
        return (0, at_page(DATA), at_page(120), at_page(READ_ONLY) + 8, at_page(HOLE) - 2)[kind]

    def whom(self, cpu: Cpu, kind: int) -> int:
        other = self.seats[1 - self.seats.index(cpu[0])]
        return cpu[0] if kind == -1 else other or 9 if kind == -2 else kind

    def frame(self, domid: int, kind: int) -> int:
        state = self.state
        other = next((seat for seat in self.seats if seat not in (None, domid)), None)
        own = [mfn for mfn, owner in state.owner.items() if owner == domid and mfn not in state.shared]
        if kind < 0:
            return own[kind % len(own)]
        if kind >= 20:
            theirs = [mfn for mfn, owner in state.owner.items() if owner == other]
            return theirs[kind % len(theirs)] if theirs else M2P
        if kind in TABLES:
            tables = [mfn for mfn in own if state.types.get(mfn) == TABLES[kind]]
            return tables[len(self.state.holds) % len(tables)] if tables else own[0]
        if kind == IDLE:
            idle = [mfn for mfn in own if state.idle(domid, mfn)]
            return idle[len(state.uses) % len(idle)] if idle else own[-1]
        free = [mfn for mfn, owner in state.owner.items() if owner is None]
        others = state.shared_info.get(other, M2P) if other else M2P
        return (
            0,
            state.shared_info[domid],
            state.grant_frames[domid][0],
            M2P,
            256,
            1 << 40,
            WORD,
            (free or [M2P])[0],
            others,
        )[kind]

    def word(self, domid: int, frame: int, bits: int) -> int:
        return bits if bits in WORDS else (self.frame(domid, frame) << 12 | bits) & WORD

    # -- what is so after each call

    def look(self, lenient: bool = False) -> None:
        state, frames = self.state, self.core.frames
        read = self.memory.look
        if changed := [mfn for mfn, expected in state.contents.items() if read(mfn) != expected]:
            self.look_at(changed, lenient)
        for mfn, owner in state.owner.items():
            word = frames.state[mfn]
            assert word & OWNER == (Domid.INVALID if owner is None else owner), f"the owner of mfn {mfn:#x}"
            assert word >> REF_SHIFT == state.references[mfn], self.core.tables.describe(mfn)
            assert (word & (1 << REF_SHIFT) - 1) // TYPE_ONE == state.uses[mfn], self.core.tables.describe(mfn)
            if state.uses[mfn]:
                assert (word & TYPE) >> TYPE_SHIFT == state.types[mfn]
        self.looks += 1
        if self.looks % self.recount_every == 0:
            assert recount(self.core.tables) == []
        self.processors()
        self.channels_and_grants()

    def look_at(self, changed: list[int], lenient: bool) -> None:
        """Frames that differ: a refused call has made tables of them and then thought better of it."""
        for mfn in changed:
            expected, found = self.state.contents[mfn], self.memory.look(mfn)
            assert lenient, f"mfn {mfn:#x} changed"
            assert not self.state.table(mfn)
            assert all(map(_normal, range(512), memoryview(expected).cast("Q"), memoryview(found).cast("Q")))
            self.state.contents[mfn] = found

    def processors(self) -> None:
        """What they may have cached is allowed; then they run, and cache all they can."""
        machine, tables = self.machine, self.core.tables
        for cpu in machine.cpus:
            self.allowed(cpu.cached)
        machine.run_processors()
        machine.descriptor_tables()
        everything: set[tuple[int, int, bool]] = set()
        for (domid, _), root in (*tables.kernel_roots.items(), *tables.user_roots.items()):
            everything |= machine.reachable(domid, root)
        self.allowed(everything)
        assert dict(tables.kernel_roots) == {
            (domid, int(which[6:])): root for (domid, which), root in self.state.roots.items() if which[0] == "k"
        }
        for domain in self.core.domains.values():
            assert domain.polling == sum(bool(vcpu.polled) for vcpu in domain.vcpus)

    def allowed(self, translations: set[tuple[int, int, bool]]) -> None:
        state = self.state
        granted = {(state.owner[table], mfn, writable) for (table, _), (mfn, writable) in state.granted.items()}
        for domid, mfn, writable in translations:
            assert not (writable and state.table(mfn)), f"mfn {mfn:#x} is a table and writable"
            mine = state.owner.get(mfn) == domid
            assert mine or (domid, mfn, writable) in granted or (domid, mfn, True) in granted, (
                f"a stranger's mfn {mfn:#x}"
            )

    def channels_and_grants(self) -> None:
        state, core = self.state, self.core
        for domid in state.limit:
            ports = dict(core.events.ports(domid))
            assert set(ports) == {end[1] for end in state.events.vcpu if end[0] == domid}
            for port, channel in ports.items():
                assert (channel.state, channel.vcpu) == state.events.state_of((domid, port))[:2]
            table = cast(Any, core.grants)._tables[domid]
            assert set(table.mappings) == {name[1] for name in state.handles if name[0] == domid}
            uses = Counter((use.ref, use.user, use.mfn) for use in state.uses_of_grants if use.granter == domid)
            assert uses == {(ref, a.user, a.mfn): a.readers + a.writers for ref, a in table.active.items()}
        assert set(state.granted) <= {(place >> 12, place >> 3 & 511) for place in core.tables.granted}
        assert len(cast(Any, core.timers)._heap) < 300


def _normal(slot: int, before: int, after: int) -> bool:
    """Whether a refused validation may have left this: what it makes of good entries."""
    return slot in XEN_SLOTS or after in (before, before | U, (before | U) & ~GLOBAL, before | 3 << 45)
