"""Three domains in any order of grant calls, rewriting their own tables in between."""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from minivmm.memory import GuestMemory
from minivmm.xen.errors import HypercallError
from minivmm.xen.grant_abi import (
    COPY,
    MAP_GRANT_REF,
    READING_BIT,
    TRANSFER,
    UNMAP_GRANT_REF,
    WRITING_BIT,
    Copy,
    GrantOp,
    MapGrantRef,
    Transfer,
    UnmapGrantRef,
)
from minivmm.xen.grant_table import Active, GrantTable
from minivmm.xen.grants import Grants
from tests.minivmm.xen.grant_model import PAGE, SELF, FrameOwner, GrantModel, Use

NUMBERS = {
    "caller": [0, 1, 2],
    "granter": [0, 1, 2, 0, 1, 2, 0, 1, 2, SELF, 9, 0xFFFF],
    "ref": [0, 1, 2, 0, 1, 2, 3, 511, 512, 2**32 - 1],
    "entry": [0, 1, 2, 3, 511],
    "mapping": [2, 2, 2, 6, 6, 6, 0, 1, 3, 0x8012],
    "host": [*range(0x1000, 0x9000, 0x1000), 0, 0xBAD000],
    "pick": list(range(8)),
    "handle": [0, 1, 2, 3, 2**32 - 1],
    "flags": [1, 1, 1, 1, 5, 5, 2, 2, 0, 3, 0x101, 9, 0x19, 0xFFFF],
    "to": [0, 1, 2, 0, 1, 2, SELF, 9],
    "sides": [0, 1, 2, 3],
    "offset": [0, 0, 0, 8, 8, 100, 4095, 0xFFFF],
    "length": [0, 1, 8, 8, 16, 3000, 4096, 0xFFFF],
    "seldom": list(range(13)),
}
CALLS = {
    "grant": ("caller", "entry", "flags", "to", "pick"),
    "map": ("caller", "granter", "ref", "mapping", "host", "pick"),
    "unmap": ("caller", "handle", "host", "pick"),
    "copy": ("caller", "granter", "granter", "ref", "pick", "offset", "offset", "length", "sides"),
    "transfer": ("caller", "granter", "ref", "pick", "seldom"),
    "live_or_die": ("caller", "seldom"),
}
drawn = {name: st.sampled_from(values) for name, values in NUMBERS.items()}


def step(call: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The rule that draws what CALLS says, as one tuple."""
    decorator: Callable[[Callable[..., None]], Callable[..., None]] = rule(
        numbers=st.tuples(*[drawn[name] for name in CALLS[call]])
    )
    return decorator


class GrantMachine(RuleBasedStateMachine):
    """The real grants and the model, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = GuestMemory(1 << 20)
        self.frames = FrameOwner()
        self.grants = Grants(self.memory, self.frames, lambda _domid, _pointer, _data: None)
        self.model = GrantModel(self.frames)
        for domid in (0, 1, 2):
            self.admit(domid)

    def admit(self, domid: int) -> None:
        for _ in range(4):
            self.frames.allocate(domid)
        self.frames.tables.add(max(mfn for mfn, owner in self.frames.owner.items() if owner == domid))
        self.grants.add_domain(domid)
        self.model.admit(domid, self.grants.entry(domid, 0) // PAGE)

    def end(self, domid: int) -> None:
        self.frames.end(domid)
        self.model.end(domid)
        self.grants.remove_domain(domid)

    def teardown(self) -> None:
        try:
            for domid in list(self.model.tables):
                self.end(domid)
            assert not +self.frames.references
            assert not +self.frames.writers
            assert sorted(self.frames.free) == list(range(16, 64))
        finally:
            self.memory.close()

    def frame(self, domid: int, pick: int) -> int:
        """A frame of the domain, or of another, or none at all."""
        own = sorted(mfn for mfn, owner in self.frames.owner.items() if owner == domid)
        return own[pick] if pick < len(own) else (20, 1 << 19)[pick % 2]

    def granted(self, kind: int = 1) -> list[tuple[int, int, int]]:
        """Entries of that type somebody could use now: granter, reference, user."""
        return [
            (domid, ref, user)
            for domid, table in self.model.tables.items()
            for ref in NUMBERS["entry"]
            for flags, user in [struct.unpack_from("<HH", table.contents, ref * 8)]
            if flags & 3 == kind and user in self.model.tables
        ]

    def call(self, caller: int, op: int, element: bytes) -> bytes:
        return self.grants.grant_table_op(caller, op, element)

    @step("grant")
    def grant(self, numbers: tuple[int, ...]) -> None:
        caller, entry, flags, to, pick = numbers
        if caller in self.model.tables:
            words = struct.pack("<HHI", flags, to, self.frame(caller, pick))
            self.memory.write(self.grants.entry(caller, entry), words)
            self.model.tables[caller].contents[entry * 8 : entry * 8 + 8] = words

    @step("map")
    def map(self, numbers: tuple[int, ...]) -> None:
        caller, granter, ref, flags, host, pick = numbers
        granted = self.granted()
        if pick > 2 and granted:
            granter, ref, caller = granted[(pick + host // PAGE) % len(granted)]
        if caller not in self.model.tables:
            return
        expected = self.model.map(caller, granter, ref, flags, host)
        request = MapGrantRef(host, flags, ref, granter, 99, 77, 55)
        answer = MAP_GRANT_REF.unpack(self.call(caller, GrantOp.MAP_GRANT_REF, MAP_GRANT_REF.pack(request)))
        if isinstance(expected, Use):
            assert (answer.status, answer.dev_bus_addr) == (0, expected.mfn * PAGE)
            assert (caller, answer.handle) not in self.model.handles
            self.model.handles[caller, answer.handle] = expected
        else:
            assert answer == request._replace(status=expected)

    @step("unmap")
    def unmap(self, numbers: tuple[int, ...]) -> None:
        caller, handle, host, pick = numbers
        there = sorted(self.model.handles)
        if pick > 2 and there:
            caller, handle = there[pick % len(there)]
            host = self.model.handles[caller, handle].host_addr
        if caller in self.model.tables:
            expected = self.model.unmap(caller, handle, host)
            request = UNMAP_GRANT_REF.pack(UnmapGrantRef(host, 0, handle, 99))
            assert UNMAP_GRANT_REF.unpack(self.call(caller, GrantOp.UNMAP_GRANT_REF, request)).status == expected

    @step("copy")
    def copy(self, numbers: tuple[int, ...]) -> None:
        caller, source, dest, ref, pick, start, end, length, sides = numbers
        if caller not in self.model.tables:
            return
        doms, names = [source, dest], [ref, ref]
        usable = [(domid, entry) for domid, entry, user in self.granted() if user == caller]
        for side in (0, 1):
            if not sides >> side & 1:
                doms[side] = SELF if pick != 7 else doms[side]
                names[side] = self.frame(caller, (pick + side) % 6)
            elif pick > 2 and usable:
                doms[side], names[side] = usable[(pick + side) % len(usable)]
        source, dest = doms
        status, mfns = self.model.copy(caller, ((source, names[0], start), (dest, names[1], end)), length, sides)
        before = {mfn: self.memory.read(mfn * PAGE, PAGE) for mfn in range(16, 64) if mfn not in self.frames.shared}
        if not status and start + length <= PAGE:
            marked = bytes((value + mfns[0] + 1) & 0xFF for value in before[mfns[0]][start : start + length])
            self.memory.write(mfns[0] * PAGE + start, marked)
            before[mfns[0]] = self.memory.read(mfns[0] * PAGE, PAGE)
            after = bytearray(before[mfns[1]])
            after[end : end + length] = marked
            before[mfns[1]] = bytes(after)
        request = COPY.pack(Copy(names[0], source, start, names[1], dest, end, length, sides, 99))
        assert COPY.unpack(self.call(caller, GrantOp.COPY, request)).status == status
        for mfn, contents in before.items():
            assert self.memory.read(mfn * PAGE, PAGE) == contents, f"frame {mfn} after a copy"

    @step("transfer")
    def transfer(self, numbers: tuple[int, ...]) -> None:
        caller, dom, ref, pick, seldom = numbers
        if caller not in self.model.tables or seldom > 8:
            return
        accepting = self.granted(2)
        if pick > 2 and accepting:
            dom, ref, caller = accepting[pick % len(accepting)]
        mfn = self.frame(caller, pick % 6)
        owner = self.frames.owner.get(mfn)
        expected = self.model.transfer(caller, mfn, dom, ref)
        request = TRANSFER.pack(Transfer(mfn, dom, ref, 99))
        assert TRANSFER.unpack(self.call(caller, GrantOp.TRANSFER, request)).status == expected
        assert self.frames.owner.get(mfn) == {0: dom, -9: owner}.get(expected)

    @step("live_or_die")
    def live_or_die(self, numbers: tuple[int, ...]) -> None:
        domid, seldom = numbers
        if domid not in self.model.tables and len(self.frames.free) > 8:
            self.admit(domid)
        elif domid in self.model.tables and seldom < 3:
            self.end(domid)

    @invariant()
    def tables_hold_what_was_predicted(self) -> None:
        for table in [*self.model.tables.values(), *self.model.buried]:
            assert self.memory.read(table.page * PAGE, PAGE) == table.contents, f"table of domain {table.domid}"
        assert self.frames.shared == {table.page for table in [*self.model.tables.values(), *self.model.buried]}

    @invariant()
    def references_are_the_uses(self) -> None:
        assert +self.frames.references == Counter(use.mfn for use in self.model.uses)
        assert +self.frames.writers == Counter(use.mfn for use in self.model.uses if use.writable)
        mapped = {(use.user, use.host_addr): use.mfn for use in self.model.uses}
        assert {place: mfn for place, (mfn, _) in self.frames.mapped.items()} == mapped
        assert not self.frames.tables & set(+self.frames.writers)


def walk(seed: int, steps: int = 400) -> None:
    """A random walk without hypothesis: cheaper a step, for the mistakes below."""
    choose = random.Random(seed).choice
    machine = GrantMachine()
    for _ in range(steps):
        call = choose(["grant", "map", *CALLS])
        getattr(machine, call)(tuple(choose(NUMBERS[name]) for name in CALLS[call]))
        machine.tables_hold_what_was_predicted()
        machine.references_are_the_uses()
    machine.teardown()


CHECKS = settings(max_examples=50, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))


def hunt() -> None:
    for seed in range(12):
        walk(seed)


def test_any_sequence_of_calls_does_what_the_model_says() -> None:
    run_state_machine_as_test(GrantMachine, settings=CHECKS)


def test_the_walks_that_find_the_mistakes_find_none_without() -> None:
    hunt()


def _anybody_may(self: GrantTable, address: int, ref: int, _user: int, writable: bool, mapping: bool) -> None:
    CLAIM(self, address, ref, self._memory.read_u32(address) >> 16, writable, mapping)


def _read_only_is_ignored(self: GrantTable, address: int, ref: int, user: int, writable: bool, mapping: bool) -> None:
    CLAIM(self, address, ref, user, False, mapping)
    if writable:
        self.atomic.test_and_set_bit(address, WRITING_BIT)


def _nothing_is_marked(self: GrantTable, address: int, ref: int, user: int, writable: bool, mapping: bool) -> None:
    CLAIM(self, address, ref, user, writable, mapping)
    self._unmark(ref, writable)


def _the_frame_is_read_again(self: GrantTable, ref: int, user: int, *, writable: bool, mapping: bool) -> Active:
    active = PIN(self, ref, user, writable=writable, mapping=mapping)
    return Active(user, self._memory.read_u32(self.entry(ref) + 4), active.readers, active.writers)


def _a_reference_is_kept(self: GrantTable, ref: int, *, writable: bool) -> None:
    self._frames.get_page(self.domid, self.active[ref].mfn)
    UNPIN(self, ref, writable=writable)


def _marks_stay(_self: GrantTable, _ref: int, _writable: bool) -> None:
    pass


def _marks_go_too_early(self: GrantTable, ref: int, _writable: bool) -> None:
    self.atomic.test_and_clear_bit(self.entry(ref), WRITING_BIT)
    self.atomic.test_and_clear_bit(self.entry(ref), READING_BIT)


def _no_type_is_taken(self: GrantTable, mfn: int, _writable: bool) -> None:
    REFER(self, mfn, False)


def _mappings_outlive_their_domain(self: GrantTable) -> None:
    self.mappings.clear()
    self.dead = True
    self._bury()


def _a_table_in_use_vanishes(self: GrantTable) -> None:
    if self.dead:
        for mfn in self.shared:
            self._frames.free_shared(self.domid, mfn)


def _no_bound(self: GrantTable, ref: int) -> int:
    return self.shared[0] * PAGE + ref % (1 << 16) * 8


def _anyones_entry_takes_a_frame(self: GrantTable, ref: int, _giver: int) -> int:
    address = self.entry(ref)
    return int(COMMIT(self, ref, self._memory.read_u32(address) >> 16))


CLAIM, PIN, UNPIN, REFER, COMMIT = (
    getattr(GrantTable, name) for name in ("_claim", "pin", "unpin", "_refer", "commit_transfer")
)
MISTAKES: dict[str, tuple[str, Any]] = {
    "a grant is anybody's": ("_claim", _anybody_may),
    "read-only grants are writable": ("_claim", _read_only_is_ignored),
    "a use is not marked": ("_claim", _nothing_is_marked),
    "the frame is read again at every use": ("pin", _the_frame_is_read_again),
    "a reference is kept": ("unpin", _a_reference_is_kept),
    "marks stay": ("_unmark", _marks_stay),
    "marks go with the first use": ("_unmark", _marks_go_too_early),
    "page tables may be written": ("_refer", _no_type_is_taken),
    "mappings outlive their domain": ("kill", _mappings_outlive_their_domain),
    "a table in use vanishes": ("_bury", _a_table_in_use_vanishes),
    "references have no bound": ("entry", _no_bound),
    "a frame goes where another's was awaited": ("commit_transfer", _anyones_entry_takes_a_frame),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_seeded_mistake_in_the_grants_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, wrong = MISTAKES[mistake]
    monkeypatch.setattr(GrantTable, name, wrong)
    with pytest.raises((AssertionError, KeyError, HypercallError)):
        hunt()
