"""What the two domains do (2): events, grants, vCPUs and all the rest. And random walks over all of it."""

from __future__ import annotations

import random
import struct

from hypothesis import strategies as st
from hypothesis.stateful import initialize

from tests.minivmm.xen.frame_model import P, W
from tests.minivmm.xen.hypercall_frame_rules import LOW, SELF
from tests.minivmm.xen.hypercall_kernels import NOWHERE, Kernels
from tests.minivmm.xen.hypercall_machine import (
    BATCH,
    BITS,
    COUNT,
    DATA,
    FRAME,
    GRANT_TABLE,
    IDLE,
    MAPS,
    NUMBER,
    OTHER,
    PICK,
    POINTER,
    PORT,
    REF,
    RULES,
    SCRATCH,
    SHARED_INFO,
    SLOT,
    WHO,
    WHOM,
    Drawn,
    at_page,
    drawn,
)
from tests.minivmm.xen.hypercall_model import WORD, Cpu, U


class Guests(Kernels):
    """Rules about everything else."""

    @initialize(second=st.booleans())
    def begin(self, second: bool) -> None:
        for seat in (0, 1):
            self.arrive(seat)
        if second:
            self.start_vcpu(0)

    # -- events

    @drawn(
        who=WHO,
        cmd=(*range(11), 0, 0, 1, 1, 3, 4, 4, 6, 6, 11, LOW),
        whom=(*OTHER, *[SELF] * 20),
        port=PORT,
        pick=PICK,
        virq=(0, 0, 0, 1, 2, 2, 3, 23, 24, LOW),
        vcpu=(0, 0, 0, 0, 1, 2, LOW),
        pointer=POINTER,
        batch=BATCH,
    )
    def event_channel_op(self, n: Drawn) -> None:
        port = n.port
        if cpu := self.caller(n.who):
            dom, events = self.whom(cpu, n.whom), self.state.events
            open_ports = sorted(end[1] for end in events.vcpu if end[0] == cpu[0])
            if n.pick % 4 and open_ports:
                port = open_ports[n.pick % len(open_ports)]
            if n.cmd == 0 and n.pick % 3:
                theirs = [end for end, remote in sorted(events.waiting.items()) if remote == cpu[0]]
                dom, port = theirs[n.pick % len(theirs)] if theirs else (dom, port)
            raw = {
                0: struct.pack("<H2xII", dom & 0xFFFF, port, 0),
                1: struct.pack("<III", n.virq, n.vcpu, 0),
                5: struct.pack("<H2xIIIII", dom & 0xFFFF, port, 0, 0, 0, 0),
                6: struct.pack("<HHI", SELF if n.pick % 2 else dom & 0xFFFF, self.whom(cpu, -2), 0),
                7: struct.pack("<II", n.vcpu, 0),
                8: struct.pack("<II", port, n.vcpu),
                10: struct.pack("<H", dom & 0xFFFF if n.pick < 5 else 9),
            }.get(n.cmd, struct.pack("<III", port, 0, 0))
            self.ask(cpu, 32, (n.cmd, self.place(cpu, n.pointer, raw, n.batch)), n.batch)

    # -- grants

    @drawn(
        who=WHO,
        ref=(0, 1, 2, 3, 8, 511),
        frame=(*[IDLE] * 30, *FRAME),
        flags=(1, 1, 1, 1, 1, 1, 5, 5, 2, 2, 2, 2, 0, 3, 0x101, 9, 0xFFFF),
        whom=OTHER,
    )
    def grant(self, n: Drawn) -> None:
        """The domain's own store."""
        if cpu := self.caller(n.who):
            entry = struct.pack("<HHI", n.flags, self.whom(cpu, n.whom), self.frame(cpu[0], n.frame) & LOW)
            self.store(cpu, at_page(GRANT_TABLE) + 8 * n.ref, entry)

    def granter(self, cpu: Cpu, whom: int, ref: int, pick: int, kind: int = 1) -> tuple[int, int]:
        """Whose grant is used: mostly one that is there for this domain."""
        found = [
            (domid, number)
            for domid, frames in self.state.grant_frames.items()
            if domid in self.state.limit
            for number in (0, 1, 2, 3, 8, 511)
            if struct.unpack("<HH", self.state.get((frames[0] << 12) + 8 * number, 4))
            in {(kind | marks, cpu[0]) for marks in (0, 4, 8, 0x18)}
        ]
        return found[pick % len(found)] if pick % 4 and found else (self.whom(cpu, whom) & 0xFFFF, ref)

    @drawn(
        who=WHO,
        whom=OTHER,
        ref=REF,
        pick=PICK,
        flags=(*[2] * 14, *[6] * 6, 0x12, 0x12, 0x16, 0x50002, 0, 1, 3, LOW),
        page=range(MAPS, MAPS + 4),
        nowhere=range(40),
        slot=SLOT,
        table=(10, 10, *FRAME),
        pointer=POINTER,
        count=COUNT,
        batch=BATCH,
    )
    def map_grant(self, n: Drawn) -> None:
        ref = n.ref
        if cpu := self.caller(n.who):
            dom, ref = self.granter(cpu, n.whom, ref, n.pick)
            host = NOWHERE[n.nowhere] if n.nowhere < len(NOWHERE) else at_page(n.page)
            if n.flags & 16:
                host = (self.frame(cpu[0], n.table) << 12 | n.slot << 3 | (4 if n.nowhere == 9 else 0)) & WORD
            raw = struct.pack("<QIIHhIQ", host, n.flags, ref, dom, 1, 0, 0) * 2
            self.ask(cpu, 20, (0, self.place(cpu, n.pointer, raw, n.batch), n.count), n.batch)

    @drawn(who=WHO, pick=PICK, handle=(0, 1, 7, LOW), host=range(12), pointer=POINTER, count=COUNT, batch=BATCH)
    def unmap_grant(self, n: Drawn) -> None:
        handle = n.handle
        if cpu := self.caller(n.who):
            mine = sorted(name[1] for name in self.state.handles if name[0] == cpu[0])
            if mine and n.pick % 5:
                handle = mine[n.pick % len(mine)]
            there = self.state.handles.get((cpu[0], handle), (None, 0, 0))[1]
            there = {0: 0, 1: at_page(MAPS), 2: 1 << 47}.get(n.host, there)
            raw = struct.pack("<QQIh2x", there, 0, handle, 1) * 2
            self.ask(cpu, 20, (1, self.place(cpu, n.pointer, raw, n.batch), n.count), n.batch)

    @drawn(
        who=WHO,
        sides=(1, 1, 2, 2, 3, 0, LOW),
        whom=OTHER,
        ref=REF,
        pick=PICK,
        frame=FRAME,
        other=FRAME,
        at=(0, 8, 100, 4095, 0xFFFF),
        to=(0, 8, 100, 4095),
        length=(0, 1, 8, 64, 4096, 0xFFFF),
        pointer=POINTER,
        count=COUNT,
        batch=BATCH,
    )
    def copy(self, n: Drawn) -> None:
        ref = n.ref
        if cpu := self.caller(n.who):
            dom, ref = self.granter(cpu, n.whom, ref, n.pick)
            ends = []
            for side, mfn in enumerate((n.frame, n.other)):
                by_ref = n.sides >> side & 1
                domid = dom if by_ref or n.pick % 7 == 0 else SELF
                ends.append((ref if by_ref else self.frame(cpu[0], mfn), domid))
            raw = struct.pack("<QHH4xQHH4xHHh2x", *ends[0], n.at, *ends[1], n.to, n.length, n.sides & 0xFFFF, 1) * 2
            self.ask(cpu, 20, (5, self.place(cpu, n.pointer, raw, n.batch), n.count), n.batch)

    @drawn(who=WHO, ref=(0, 1, 2, 3), pick=range(8), read_only=(0, 0, 4), page=range(MAPS, MAPS + 4))
    def a_grant_as_it_should_be(self, n: Drawn) -> None:
        """Offered by the one, mapped by the other; or given away and taken, by one who may have more or who may not."""
        giver, taker = self.caller(n.who), self.caller(n.who % 2 ^ 1)
        if giver is None or taker is None:
            return
        mfn, given = self.frame(giver[0], IDLE), n.pick == 0
        if given and n.ref % 2:
            self.issue(taker, 12, (0, self.place(taker, 0, struct.pack("<QQIIH6x", 0, 40, 0, 0, SELF))))
        offer = struct.pack("<HHI", 2, giver[0], 0) if given else struct.pack("<HHI", 1 | n.read_only, taker[0], mfn)
        self.store(taker if given else giver, at_page(GRANT_TABLE) + 8 * n.ref, offer)
        if given:
            raw = struct.pack("<QH2xIh6x", mfn, taker[0], n.ref, 1)
            self.issue(giver, 20, (4, self.place(giver, 0, raw), 1))
        else:
            raw = struct.pack("<QIIHhIQ", at_page(n.page), 2 | n.read_only, n.ref, giver[0], 1, 0, 0)
            self.issue(taker, 20, (0, self.place(taker, 0, raw), 1))

    @drawn(who=WHO, pick=PICK, bits=(P | U, P | W | U, 0))
    def a_mapping_that_is_another_by_now(self, n: Drawn) -> None:
        """Unmapped by its handle, when something else is mapped there."""
        cpu = self.caller(n.who)
        mine = sorted(name[1] for name in self.state.handles if cpu and name[0] == cpu[0])
        if cpu and mine:
            handle = mine[n.pick % len(mine)]
            host = self.state.handles[cpu[0], handle][1]
            self.issue(cpu, 14, (host, self.frame(cpu[0], IDLE) << 12 | n.bits, 0))
            self.issue(cpu, 20, (1, self.place(cpu, 0, struct.pack("<QQIh2x", host, 0, handle, 1)), 1))

    @drawn(pick=PICK, whom=OTHER)
    def a_grant_in_use_changes_hands(self, n: Drawn) -> None:
        """Its granter writes another name into the entry, and copies from it."""
        uses = [use for use in self.state.uses_of_grants if use.granter in self.seats]
        use = uses[n.pick % len(uses)] if uses else None
        cpu = self.caller(self.seats.index(use.granter)) if use else None
        if cpu and use:
            named = cpu[0] if n.pick % 2 else self.whom(cpu, n.whom) & 0xFFFF
            self.store(cpu, at_page(GRANT_TABLE) + 8 * use.ref, struct.pack("<HHI", 1, named, use.mfn))
            raw = struct.pack("<QHH4xQHH4xHHh2x", use.ref, SELF, 0, self.frame(cpu[0], IDLE), SELF, 0, 8, 1, 1)
            self.issue(cpu, 20, (5, self.place(cpu, 0, raw), 1))

    @drawn(
        who=WHO, whom=OTHER, ref=REF, pick=PICK, frame=(*[IDLE] * 60, *FRAME), pointer=POINTER, count=COUNT, batch=BATCH
    )
    def transfer(self, n: Drawn) -> None:
        ref = n.ref
        if cpu := self.caller(n.who):
            dom, ref = self.granter(cpu, n.whom, ref, n.pick, 2)
            raw = struct.pack("<QH2xIh6x", self.frame(cpu[0], n.frame), dom, ref, 1) * 2
            self.ask(cpu, 20, (4, self.place(cpu, n.pointer, raw, n.batch), n.count), n.batch)

    @drawn(
        who=WHO,
        cmd=(2, 2, 2, 6, 6, 8, 10, 3, 7, 9, 11, LOW),
        whom=(*[SELF] * 5, *[-2] * 3, -1, 9),
        number=(0, 1, 2, 3, 64, 65, LOW),
        at=POINTER,
        pointer=POINTER,
        count=(1, 1, 1, 0, 2),
        batch=BATCH,
    )
    def grant_facts(self, n: Drawn) -> None:
        if cpu := self.caller(n.who):
            dom = self.whom(cpu, n.whom) & 0xFFFF
            raw = (
                struct.pack("<I", n.number)
                if n.cmd == 8
                else struct.pack("<H2xIh6xQ", dom, n.number, 1, self.place(cpu, n.at, b"", n.batch) + 64 & WORD)
            )
            self.ask(cpu, 20, (n.cmd, self.place(cpu, n.pointer, raw, n.batch), n.count), n.batch)

    # -- vCPUs, time, registers

    def start_vcpu(self, who: int, **wrong: int) -> None:
        """VCPUOP_initialise as Linux makes it, for the second one, and VCPUOP_up."""
        cpu = self.caller(who)
        if cpu is None:
            return
        root = self.state.roots[cpu[0], f"kernel{cpu[1]}"]
        words = {512: 4, 4824: 0, 4960: 0, 4976: at_page(DATA), 5008: root << 12, 4992: 0, 5112: at_page(0)} | {
            int(name[1:]): value for name, value in wrong.items()
        }
        raw = bytearray(5168)
        for at, value in words.items():
            struct.pack_into("<Q", raw, at, value & WORD)
        self.store(cpu, at_page(SCRATCH + 1), bytes(raw))
        self.issue(cpu, 24, (0, 1, at_page(SCRATCH + 1)))
        again = self.caller(who)
        if again:
            self.issue(again, 24, (1, 1, 0))

    @drawn(
        who=WHO,
        where=(5008, 4992, 4832, 4832, 4824, 4960, 4976, 5112, 5144, 728),
        frame=FRAME,
        odd=(0, 0, 0, 1 << 47),
        entries=(0, 1, 513, 8192, WORD),
    )
    def initialise(self, n: Drawn) -> None:
        if cpu := self.caller(n.who):
            mfn = self.frame(cpu[0], n.frame)
            value = mfn << 12 if n.where in (4992, 5008) else mfn
            if n.where in (4824, 4976, 5112, 5144, 728):
                value = n.odd
            if n.where == 4960:
                value = n.entries
            self.start_vcpu(n.who, **{f"a{n.where}": value | n.odd, **({"a4960": 512} if n.where == 4832 else {})})

    @drawn(
        who=WHO,
        cmd=(*range(1, 15), 1, 1, 2, 2, 10, 10, 3, LOW),
        index=(0, 0, 1, 1, 2, LOW, 1 << 32),
        frame=FRAME,
        offset=(0, 0, 64, 64, 4032, 4040, 4, LOW),
        reserved=(0, 0, 0, 1),
        pointer=POINTER,
        batch=BATCH,
    )
    def vcpu_op(self, n: Drawn) -> None:
        if cpu := self.caller(n.who):
            mfn = self.frame(cpu[0], n.frame)
            raw = (
                struct.pack("<QII", mfn, n.offset, n.reserved)
                if n.cmd == 10
                else struct.pack("<QQ", 1 << 40, n.reserved)
            )
            if n.cmd in (5, 13):
                return  # registered areas are written when time goes on: the raw fuzz has them
            self.ask(cpu, 24, (n.cmd, n.index, self.place(cpu, n.pointer, raw, n.batch)), n.batch)

    @drawn(who=WHO, index=(0, 0, 0, 1), frame=FRAME, offset=(0, 64, 4032), pointer=POINTER, batch=BATCH)
    def register_vcpu_info(self, n: Drawn) -> None:
        if cpu := self.caller(n.who):
            raw = struct.pack("<QII", self.frame(cpu[0], n.frame), n.offset, 0)
            self.ask(cpu, 24, (10, n.index, self.place(cpu, n.pointer, raw, n.batch)), n.batch)

    @drawn(
        who=WHO,
        cmd=(0, 1, 3, 3, 4, 5, 6, 7, 8, LOW),
        ports=PORT,
        count=(0, 1, 2, 128, 129, LOW),
        at=POINTER,
        pointer=POINTER,
        whom=WHOM,
        seldom=range(30),
        batch=BATCH,
    )
    def sched_op(self, n: Drawn) -> None:
        if cpu := self.caller(n.who):
            where = self.place(cpu, n.at, b"", n.batch) + 64 & WORD
            raw = struct.pack("<QI4xQ", where, n.count, 0).ljust(64, b"\0") + struct.pack("<II", n.ports, 1)
            if n.cmd == 4:
                raw = struct.pack("<H2xI", self.whom(cpu, n.whom), 0)
            if n.seldom:
                self.ask(cpu, 29, (n.cmd, self.place(cpu, n.pointer, raw, n.batch)), n.batch)
            else:
                self.issue(cpu, 29, (2, self.place(cpu, n.pointer, raw)))

    @drawn(
        who=WHO,
        number=(
            0,
            3,
            4,
            5,
            8,
            9,
            *[13] * 8,
            15,
            17,
            17,
            17,
            18,
            21,
            25,
            28,
            30,
            33,
            6,
            7,
            11,
            13,
            16,
            19,
            31,
            35,
            64,
            LOW,
        ),
        one=NUMBER,
        two=NUMBER,
        three=NUMBER,
        raw=NUMBER,
        pointer=POINTER,
        swap=range(3),
        batch=(0, 0, 1),
    )
    def anything(self, n: Drawn) -> None:
        if cpu := self.caller(n.who):
            address = self.place(cpu, n.pointer, struct.pack("<QQQ", n.raw, n.two, 0), n.batch)
            args = [(address, n.two, n.three), (n.one, address, n.three), (n.one, n.two, address)][n.swap]
            if n.number == 18 and n.one & LOW == 0:
                args = (n.one, n.two & 0x1FFF, address)
            self.ask(cpu, n.number, (*args, 0, 0, 0), n.batch)

    @drawn(
        who=WHO,
        page=(*range(DATA, DATA + 4), GRANT_TABLE, SHARED_INFO, MAPS, MAPS + 1),
        slot=(*range(9), 256, 320, 511),
        leaf=FRAME,
        bits=BITS,
    )
    def guest_store(self, n: Drawn) -> None:
        if cpu := self.caller(n.who):
            self.store(cpu, at_page(n.page) + 8 * n.slot, struct.pack("<Q", self.word(cpu[0], n.leaf, n.bits)))


# How often, where that is not once: what seldom succeeds, and what has many commands.
OFTEN = {
    **dict.fromkeys(("a_domain_comes", "unmap_grant", "a_grant_as_it_should_be", "update_descriptor"), 3),
    **dict.fromkeys(("grant", "map_grant"), 4),
    **dict.fromkeys(
        (
            "copy",
            "transfer",
            "reservation",
            "a_grant_in_use_changes_hands",
            "mmu_update",
            "vcpu_op",
            "a_tree",
            "update_va_mapping",
        ),
        2,
    ),
    "event_channel_op": 8,
}


def walk(seed: int, steps: int = 100) -> None:
    """The same without hypothesis: cheaper a step, and evenly spread over the rules."""
    choice = random.Random(seed)
    machine = Guests()
    machine.begin(bool(seed % 2))
    machine.recount_every = 8
    names = [name for name in RULES for _ in range(OFTEN.get(name, 1))]
    for _ in range(steps):
        name = choice.choice(names)
        getattr(machine, name)(**{argument: choice.choice(values) for argument, values in RULES[name].items()})
    machine.teardown()
