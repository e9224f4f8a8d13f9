"""What the two domains do (1): page tables, descriptors and memory. A rule a kind of call, its numbers honest, hostile
and in between."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

from minivmm.xen.hypervisor import M2P_VIRT
from tests.minivmm.xen.frame_model import P, W
from tests.minivmm.xen.hypercall_frame_rules import LOW, SELF
from tests.minivmm.xen.hypercall_machine import (
    ADDRESS_BITS,
    BATCH,
    BITS,
    COUNT,
    DATA,
    DONE,
    FRAME,
    M2P_FRAME,
    NUMBER,
    ORDER,
    OTHERS_SHARED,
    PAGE_OF,
    PICK,
    POINTER,
    SCRATCH,
    SLOT,
    WHO,
    WHOM,
    Drawn,
    Hypercalls,
    at_page,
    drawn,
)
from tests.minivmm.xen.hypercall_model import PAGE, WORD, Cpu, U

NOWHERE = (M2P_VIRT, 1 << 47, 0, WORD & ~PAGE + 1, 1 << 39, -1 << 48 & WORD | 271 << 39)
TOP = (0, 1, 256, 257, 258, 271, 272, 511)
SEGMENTS = (0x00AFFB000000FFFF, 0x00AF9B000000FFFF, 0, 0x0000EC0000000000, 0x00008B0000000067, WORD)


class Kernels(Hypercalls):
    """Rules about frames."""

    # -- page tables

    @drawn(
        who=WHO,
        to=FRAME,
        slot=SLOT,
        low=(0, 0, 0, 1, 1, 2, 3, 4),
        leaf=FRAME,
        bits=BITS,
        more=FRAME,
        pointer=POINTER,
        count=COUNT,
        done=DONE,
        whom=WHOM,
        batch=BATCH,
    )
    def mmu_update(self, n: Drawn) -> None:
        if cpu := self.caller(n.who):
            domid = cpu[0]
            places = [(self.frame(domid, mfn) << 12 | n.slot << 3 | n.low) & WORD for mfn in (n.to, n.more, n.to)]
            words = [self.word(domid, n.leaf, n.bits), self.word(domid, n.more, n.bits), 0]
            raw = b"".join(struct.pack("<QQ", *entry) for entry in zip(places, words, strict=True))
            address = self.place(cpu, n.pointer, raw, n.batch)
            self.ask(cpu, 1, (address, n.count, self.done(n.done), self.whom(cpu, n.whom)), n.batch)

    @drawn(who=WHO, level=(1, 1, 2, 3, 4, 4), slot=(*SLOT, *TOP, *TOP), leaf=FRAME, bits=(*BITS, *[0] * 10))
    def update_a_table_in_use(self, n: Drawn) -> None:
        if cpu := self.caller(n.who):
            place = self.frame(cpu[0], 9 + n.level) << 12 | n.slot << 3
            raw = struct.pack("<QQ", place, self.word(cpu[0], n.leaf, n.bits))
            self.issue(cpu, 1, (self.place(cpu, 0, raw), 1, 0, SELF))

    @drawn(who=WHO, page=PAGE_OF, nowhere=range(24), leaf=FRAME, bits=BITS, flags=NUMBER, whom=WHOM, batch=BATCH)
    def update_va_mapping(self, n: Drawn) -> None:
        if cpu := self.caller(n.who):
            virtual = NOWHERE[n.nowhere] if n.nowhere < len(NOWHERE) else at_page(n.page)
            args = (virtual, self.word(cpu[0], n.leaf, n.bits), n.flags, self.whom(cpu, n.whom))
            self.ask(cpu, 22 if n.whom != SELF else 14, args, n.batch)

    @drawn(
        who=WHO,
        cmd=(*range(6), *range(24), 255, LOW),
        one=FRAME,
        two=FRAME,
        pointer=POINTER,
        count=COUNT,
        done=DONE,
        whom=WHOM,
        batch=BATCH,
    )
    def mmuext_op(self, n: Drawn) -> None:
        if cpu := self.caller(n.who):
            domid = cpu[0]
            frames = self.frame(domid, n.one), self.frame(domid, n.two)
            raw = struct.pack("<I4xQQ", n.cmd, *frames) + struct.pack("<I4xQQ", n.cmd ^ 4, *frames)
            address = self.place(cpu, n.pointer, raw, n.batch)
            self.ask(cpu, 26, (address, n.count, self.done(n.done), self.whom(cpu, n.whom)), n.batch)

    def extended(self, cpu: Cpu, *operations: tuple[int, int, int]) -> None:
        raw = b"".join(struct.pack("<I4xQQ", *operation) for operation in operations)
        self.issue(cpu, 26, (self.place(cpu, 0, raw), len(operations), 0, SELF))

    def link(self, cpu: Cpu, path: Sequence[int], words: Sequence[tuple[int, int, int]]) -> None:
        """A table, or a tree of them, in frames nobody uses, as a kernel makes it."""
        self.extended(cpu, *[(16, mfn, 0) for mfn in path])
        chain = [(table, 0, below << 12 | P | W | U) for table, below in itertools.pairwise(path)]
        raw = b"".join(struct.pack("<QQ", mfn << 12 | slot << 3, word) for mfn, slot, word in (*chain, *words))
        self.issue(cpu, 1, (self.place(cpu, 0, raw), len(chain) + len(words), 0, SELF))

    @drawn(who=WHO, one=FRAME, two=(M2P_FRAME, OTHERS_SHARED, *FRAME), cmd=(16, 17, 17))
    def a_page_at_once(self, n: Drawn) -> None:
        """MMUEXT_CLEAR_PAGE, MMUEXT_COPY_PAGE."""
        if cpu := self.caller(n.who):
            self.extended(cpu, (n.cmd, self.frame(cpu[0], n.one), self.frame(cpu[0], n.two)))

    @drawn(
        who=WHO,
        level=(1, 2, 3, 4, 4),
        slot=SLOT,
        leaf=FRAME,
        bits=BITS,
        top=TOP,
        extra=BITS,
        use=range(8),
    )
    def a_tree(self, n: Drawn) -> None:
        cpu = self.caller(n.who)
        if cpu is None:
            return
        domid = cpu[0]
        idle = [mfn for mfn in self.state.owner if self.state.idle(domid, mfn)]
        path = idle[-n.level :]
        if len(path) < n.level:
            return
        words = [(path[-1], n.slot, self.word(domid, n.leaf, n.bits))]
        if n.level == 4:  # so that the domain goes on when it is the root
            links = self.state.word_of(self.state.roots[domid, f"kernel{cpu[1]}"], 511)
            words.append((path[0], 511, links))
        if n.use == 0:
            words.append((path[0], n.top, self.word(domid, n.leaf, n.extra)))
        self.link(cpu, path, words)
        if n.use == 5:
            self.extended(cpu, (15, path[0], 0))
        elif n.use == 4 and n.level == 4:
            self.extended(cpu, (5, path[0], 0))
        else:
            self.extended(cpu, (n.level - 1, path[0], 0))

    @drawn(pick=PICK, again=(0, 0, 0, 1))
    def a_pinned_table(self, n: Drawn) -> None:
        pinned = sorted(self.state.pins.items())
        mfn, level = pinned[n.pick % len(pinned)] if pinned else (0, 0)
        domid = self.state.owner.get(mfn)
        cpu = self.caller(self.seats.index(domid)) if domid in self.seats else None
        if cpu:
            self.extended(cpu, (level - 1 if n.again else 4, mfn, 0))

    @drawn(who=WHO, page=range(DATA, DATA + 4), bits=(P | U, P | U, 0, P | W | U), level=(1, 1, 2, 3), rest=range(3))
    def a_page_becomes_a_table(self, n: Drawn) -> None:
        """In one call, while the domain's other vCPU runs, or rests: the mapping made read-only, the table pinned."""
        if cpu := self.caller(n.who):
            machine = self.state.walk(cpu, at_page(n.page))
            if machine is None:
                return
            mfn = machine >> 12
            if not n.rest and (cpu[0], 1 - cpu[1]) in self.state.up:
                self.issue(cpu, 24, (2, 1 - cpu[1], 0))  # VCPUOP_down: it comes up again one day
            self.waiting.clear()
            self.store(cpu, at_page(n.page), bytes(PAGE))
            self.ask(cpu, 14, (at_page(n.page), mfn << 12 | n.bits, 0), 1)
            raw = struct.pack("<I4xQQ", n.level - 1, mfn, 0)
            self.ask(cpu, 26, (self.place(cpu, 0, raw, 1), 1, 0, SELF), 1)
            self.ask(cpu, 3, (0, 0), 1)

    # -- descriptors

    @drawn(
        who=WHO,
        one=FRAME,
        two=FRAME,
        entries=(0, 1, 512, 513, 7168, 7169, LOW, 1 << 32 | 1),
        pointer=POINTER,
        batch=BATCH,
    )
    def set_gdt(self, n: Drawn) -> None:
        if cpu := self.caller(n.who):
            raw = struct.pack("<QQ", self.frame(cpu[0], n.one), self.frame(cpu[0], n.two))
            self.ask(cpu, 2, (self.place(cpu, n.pointer, raw, n.batch), n.entries), n.batch)

    @drawn(who=WHO, page=PAGE_OF, nowhere=range(24), entries=(0, 1, 512, 513, 8192, 8193, LOW), odd=(0, 0, 0, 8))
    def set_ldt(self, n: Drawn) -> None:
        if cpu := self.caller(n.who):
            virtual = NOWHERE[n.nowhere] if n.nowhere < len(NOWHERE) else at_page(n.page)
            self.extended(cpu, (13, virtual + n.odd & WORD, n.entries))

    @drawn(who=WHO, kind=(0, 1), word=SEGMENTS, slot=(0, 1, 511), less=range(3), odd=(0, 0, 0, 0, 8))
    def a_descriptor_table(self, n: Drawn) -> None:
        """As a kernel does it: an idle page filled, for an LDT mapped read-only, and handed over."""
        if cpu := self.caller(n.who):
            domid = cpu[0]
            idle = [mfn for mfn in self.state.owner if self.state.idle(domid, mfn)]
            if not idle:
                return
            self.link(cpu, idle[:1], [(idle[0], n.slot, n.word)])
            if n.kind:
                self.issue(cpu, 14, (at_page(120), idle[0] << 12 | P | U, 0))
                self.extended(cpu, (13, at_page(120) + n.odd, 512 - n.less))
            else:
                raw = struct.pack("<Q", idle[0])
                self.issue(cpu, 2, (self.place(cpu, 0, raw), 512 - n.less))

    @drawn(who=WHO, frame=(14, 14, 14, *FRAME), slot=(0, 1, 2, 511), low=(0, 0, 0, 0, 4), word=SEGMENTS, batch=BATCH)
    def update_descriptor(self, n: Drawn) -> None:
        if cpu := self.caller(n.who):
            self.ask(cpu, 10, ((self.frame(cpu[0], n.frame) << 12 | n.slot << 3 | n.low) & WORD, n.word), n.batch)

    # -- memory

    @drawn(
        who=WHO,
        cmd=(0, 1, 1, 6, 6),
        one=(*FRAME, *[1] * 4, *[2] * 4),
        two=FRAME,
        count=(0, 1, 1, 2, 3, 40, LOW, WORD),
        order=ORDER,
        bits=ADDRESS_BITS,
        whom=WHOM,
        pointer=POINTER,
        at=(*[0] * 20, *[1] * 4, *range(13)),
        batch=BATCH,
    )
    def reservation(self, n: Drawn) -> None:
        if cpu := self.caller(n.who):
            frames = [self.frame(cpu[0], n.one), self.frame(cpu[0], n.two), 7]
            if n.cmd == 1:
                frames = [mfn & ~((1 << min(n.order, 9)) - 1) for mfn in frames]
            extents = self.place(cpu, n.at, struct.pack("<3Q", *frames), n.batch) if n.at != 4 else 0
            if n.at == 0 or n.at == 1:  # the list behind the structure
                extents += 64
            raw = struct.pack("<QQIIH6x", extents, n.count, n.order, n.bits, self.whom(cpu, n.whom) & 0xFFFF)
            address = self.place(cpu, n.pointer, raw.ljust(64, b"\0") + struct.pack("<3Q", *frames), n.batch)
            self.ask(cpu, 12, (n.cmd, address), n.batch)

    @drawn(
        who=WHO,
        one=FRAME,
        run=(0, 0, 1),
        order=(0, 0, 0, 1, 1, 2, 10),
        out=(0, 0, 0, 1, 1, 2, 10),
        extra=(0, 0, 0, 1, -1),
        count=(1, 1, 1, 2, LOW),
        begun=(0, 0, 0, 0, 1, 9),
        bits=ADDRESS_BITS,
        whom=WHOM,
        other=(0, 0, 0, 1),
        pointer=POINTER,
    )
    def exchange(self, n: Drawn) -> None:
        if cpu := self.caller(n.who):
            mfn = self.frame(cpu[0], n.one)
            if n.run:  # of idle frames, if there is one
                starts = range(0, 128, 1 << min(n.order, 9))
                whole = [s for s in starts if all(self.state.idle(cpu[0], s + p) for p in range(1 << min(n.order, 9)))]
                mfn = whole[n.one % len(whole)] if whole else mfn
            ins, outs = n.count << max(n.out - n.order, 0), n.count << max(n.order - n.out, 0)
            at = at_page(SCRATCH) + 0xC00
            domid = self.whom(cpu, n.whom) & 0xFFFF
            idle = [f for f in self.state.owner if self.state.idle(cpu[0], f)]
            raw = struct.pack("<QQIIH6x", at + 128, ins, n.order, 0, domid)
            raw += struct.pack("<QQIIH6xQ", at + 256, max(outs + n.extra, 0), n.out, n.bits, domid ^ n.other, n.begun)
            raw = raw.ljust(128, b"\0") + struct.pack("<4Q", mfn, *[*idle, 0, 0, 0, 0][1:4])
            raw = raw.ljust(256, b"\0") + struct.pack("<4Q", 70, 71, WORD, 1 << 40)
            self.ask(cpu, 12, (11, self.place(cpu, n.pointer, raw)))

    @drawn(
        who=WHO,
        cmd=(2, 3, 4, 5, 7, 8, 9, 10, 12, 13, 14, 25, LOW),
        count=(0, 1, 2, LOW),
        at=POINTER,
        pointer=POINTER,
        whom=WHOM,
        batch=BATCH,
    )
    def memory_facts(self, n: Drawn) -> None:
        if cpu := self.caller(n.who):
            buffer = self.place(cpu, n.at, b"", n.batch) + 64
            raw = struct.pack("<I4xQQ", self.whom(cpu, n.whom) if n.cmd in (3, 4, 14) else n.count, buffer & WORD, 0)
            self.ask(cpu, 12, (n.cmd, self.place(cpu, n.pointer, raw, n.batch)), n.batch)
