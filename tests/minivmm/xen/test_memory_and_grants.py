"""memory_op and grant_table_op of two domains in any order, every count audited after each call, both ends of either
domain first. Nothing predicts the calls here, as frame_model.py and grant_model.py do; the audit has to hold."""

from __future__ import annotations

import random

from minivmm.xen import grant_abi as xen
from minivmm.xen import memory_abi
from minivmm.xen.abi import Domid
from minivmm.xen.errors import HypercallError
from minivmm.xen.frame_words import SHARED
from minivmm.xen.grant_abi import GntCopy, GntMap, GrantOp, GrantStatus, Gtf
from minivmm.xen.memory_abi import MemoryOp
from tests.minivmm.xen.two_domains import (
    ELEMENTS,
    FREE,
    LISTS,
    READ_ONLY,
    P,
    TwoDomains,
    W,
    grant,
    map_grant,
    unmap_grant,
)

HOSTS = [FREE + (page << 12) for page in range(4)]


class Walk:
    """Calls of two domains, drawn at random but mostly plausible."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.machine = TwoDomains()
        self.done: dict[str, int] = {}

    def a_frame(self, domid: int) -> int:
        pick = self.random.randrange(12)
        if not pick:
            return self.random.choice([0, 0x3FF, 1 << 40, self.machine.l1[domid], self.machine.shared_info[domid]])
        own = self.machine.frames.frames_of(3 - domid if pick == 1 else domid)
        return self.random.choice(own) if own else 0

    def frames(self, domid: int, order: int = 0) -> list[int]:
        count = self.random.randrange(1, 5) << order
        return [self.a_frame(domid) for _ in range(count)]

    def reservation(self, domid: int) -> None:
        operation = self.random.choice(
            [MemoryOp.INCREASE_RESERVATION, MemoryOp.POPULATE_PHYSMAP, MemoryOp.DECREASE_RESERVATION]
        )
        order = self.random.choice([0, 0, 0, 1, 2])
        extents = self.frames(domid)
        at = self.random.choice([LISTS + 0x100, LISTS + 0x100, LISTS + 0x100, READ_ONLY])
        if at != READ_ONLY:
            self.machine.write_numbers(domid, at, extents)
        asked = memory_abi.XenMemoryReservation(at, len(extents), order, 0, Domid.SELF)
        self.machine.write(domid, LISTS, memory_abi.XEN_MEMORY_RESERVATION.pack(asked))
        done = self.machine.memory_call(domid, operation, LISTS)
        assert 0 <= done <= len(extents)
        self.count(f"reservation {operation}", done)

    def exchange(self, domid: int) -> None:
        out_order = self.random.choice([0, 0, 1, 2])
        frames = self.frames(domid, out_order)
        self.machine.write_numbers(domid, LISTS + 0x100, frames)
        self.machine.write_numbers(domid, LISTS + 0x400, list(range(len(frames) >> out_order)))
        ends = (LISTS + 0x100, len(frames), 0, 0, Domid.SELF, LISTS + 0x400, len(frames) >> out_order, out_order)
        asked = memory_abi.XenMemoryExchange(*ends, 0, Domid.SELF, 0)
        self.machine.write(domid, LISTS, memory_abi.XEN_MEMORY_EXCHANGE.pack(asked))
        self.count("exchange", not self.machine.memory_call(domid, MemoryOp.EXCHANGE, LISTS))

    def offer(self, domid: int) -> None:
        kind = self.random.choice([1, 1, 1, 5, 2, 0])
        to = self.random.choice([3 - domid, 3 - domid, domid])
        grant(self.machine, domid, self.random.randrange(4), kind, to, self.a_frame(domid))

    def a_host(self, domid: int, flags: int) -> int:
        virtual = self.random.choice(HOSTS)
        return self.machine.entry_at(self.machine.l1[domid], virtual) if flags & GntMap.CONTAINS_PTE else virtual

    def map(self, domid: int) -> None:
        for granter in (1, 2):
            self.offer(granter)
        flags = self.random.choice([2, 2, 6, 18, 22])
        granter, ref = self.random.choice([3 - domid, 3 - domid, domid]), self.random.randrange(4)
        mapped = map_grant(self.machine, domid, granter, ref, self.a_host(domid, flags), flags)
        self.count("map", mapped.status == GrantStatus.OKAY)

    def unmap(self, domid: int) -> None:
        mappings = self.machine.grants._table(domid).mappings
        if mappings:
            handle = self.random.choice(list(mappings))
            self.count("unmap", unmap_grant(self.machine, domid, mappings[handle].host_addr, handle) == 0)

    def copy(self, domid: int) -> None:
        sides = self.random.choice([0, 1, 2, 3])
        names = [
            (self.random.randrange(4), 3 - domid) if sides & side else (self.a_frame(domid), Domid.SELF)
            for side in (GntCopy.SOURCE_GREF, GntCopy.DEST_GREF)
        ]
        if names[1][0] in self.entries_in_use():
            return  # it would overwrite by right what this test looks at
        element = xen.Copy(*names[0], 0, *names[1], 8, 16, sides, 77)
        self.machine.write(domid, ELEMENTS, xen.COPY.pack(element))
        assert self.machine.grant_call(domid, GrantOp.COPY, ELEMENTS, 1) == 0
        self.count("copy", self.machine.vcpus[domid].pages.read_record(ELEMENTS, xen.COPY).status == 0)

    def entries_in_use(self) -> set[int]:
        return {self.machine.entry(domid, LISTS) >> 12 & 0xFFFFF for domid in self.machine.domains}

    def transfer(self, domid: int) -> None:
        ref = self.random.randrange(4)
        if self.random.randrange(2):
            grant(self.machine, 3 - domid, ref, Gtf.ACCEPT_TRANSFER, domid, 0)
        element = xen.Transfer(self.a_frame(domid), 3 - domid, ref, 77)
        self.machine.write(domid, ELEMENTS, xen.TRANSFER.pack(element))
        assert self.machine.grant_call(domid, GrantOp.TRANSFER, ELEMENTS, 1) == 0
        self.count("transfer", self.machine.vcpus[domid].pages.read_record(ELEMENTS, xen.TRANSFER).status == 0)

    def update(self, domid: int) -> None:
        entry = self.random.choice([0, self.a_frame(domid) << 12 | self.random.choice([P, P | W])])
        try:
            self.machine.tables.update_va_mapping(domid, self.random.choice(HOSTS), entry)
            self.count("update", 1)
        except HypercallError:
            self.count("update", 0)

    def table(self, domid: int) -> None:
        try:
            if self.random.randrange(2):
                self.machine.tables.pin(domid, self.a_frame(domid), 1)
            else:
                self.unpin(domid)
            self.count("table", 1)
        except HypercallError:
            self.count("table", 0)

    def unpin(self, domid: int) -> None:
        for mfn in self.machine.frames.frames_of(domid):
            if "pinned" in self.machine.tables.describe(mfn) and mfn != self.machine.l4[domid]:
                self.machine.tables.unpin(domid, mfn)

    def count(self, name: str, success: int) -> None:
        self.done[name] = self.done.get(name, 0) + bool(success)

    def run(self, steps: int) -> None:
        calls = [self.reservation, self.exchange, self.map, self.map, self.unmap, self.copy, self.transfer]
        calls += [self.update, self.table]
        for _ in range(steps):
            self.random.choice(calls)(self.random.choice((1, 2)))
            self.machine.check()
        first = self.random.choice((1, 2))
        left = self.machine.destroy(first)
        self.machine.check()
        lent = {mapping.mfn for mapping in self.machine.grants._table(3 - first).mappings.values()}
        assert not {mfn for mfn in left if mfn not in lent and not self.machine.frames.state[mfn] & SHARED}
        self.machine.close()


def test_two_domains_that_do_anything_leave_no_frame_behind() -> None:
    done: dict[str, int] = {}
    for seed in range(15):
        walk = Walk(seed)
        walk.run(80)
        for name, count in walk.done.items():
            done[name] = done.get(name, 0) + count
    print(done)
    assert min(done.values()) > 5  # every call also succeeded
