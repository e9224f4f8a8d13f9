"""What the frame rules allow, said without counters: a change is legal if everything in use afterwards, together with
what was in use before, can be explained with one type a frame and every frame's owner agreeing.

Types and counts are derived each time from the roots (pins, base pointers, descriptor tables, holds) down.
"""

from __future__ import annotations

from collections import Counter

NONE, L1, L2, L3, L4, SEGDESC, WRITABLE = range(7)
XEN_SLOTS = range(256, 272)
SLOT_MASK = 511
P, W = 1, 2
SAME = P | W | (1 << 52) - (1 << 12)


class Illegal(Exception):
    """The rules forbid it."""


class Model:
    """The machine as the rules see it. Methods named after the operation raise Illegal and may then leave a mess: run
    them on a copy."""

    def __init__(self, frames: range) -> None:
        self.owner: dict[int, int | None] = dict.fromkeys(frames)
        self.words: dict[int, dict[int, int]] = {mfn: {} for mfn in frames}
        self.allocated: set[int] = set()
        self.pins: dict[int, int] = {}
        self.roots: dict[tuple[int, str], int] = {}
        self.descriptors: dict[tuple[int, str], tuple[int, ...]] = {}
        self.holds: list[tuple[int, int]] = []
        self.granted: dict[tuple[int, int], tuple[int, bool]] = {}  # table and slot: the frame, and whether writable
        self.types: dict[int, int] = {}
        self.uses: Counter[int] = Counter()
        self.references: Counter[int] = Counter()

    def derive(self, extra: tuple[tuple[int, int, int], ...] = ()) -> None:
        """Types and counts, from the roots and from `extra` uses (domid, mfn, type)."""
        self.types, self.uses, self.references = {}, Counter(), Counter(self.allocated)
        for (domid, _), mfn in self.roots.items():
            self.use(domid, mfn, L4)
        for (domid, _), mfns in self.descriptors.items():
            for mfn in mfns:
                self.use(domid, mfn, SEGDESC)
        for mfn, page_type in (*self.pins.items(), *self.holds):
            self.use(self.owner[mfn], mfn, page_type)
        for domid, mfn, page_type in extra:
            self.use(domid, mfn, page_type)

    def use(self, domid: int | None, mfn: int, page_type: int) -> None:
        if domid is None or self.owner.get(mfn) != domid:
            raise Illegal
        self.references[mfn] += 1
        if page_type == NONE:
            return
        if self.types.setdefault(mfn, page_type) != page_type:
            raise Illegal
        self.uses[mfn] += 1
        if self.uses[mfn] == 1 and page_type != WRITABLE:
            for slot, word in self.words[mfn].items():
                if page_type == SEGDESC:
                    self.descriptor(word)
                elif page_type != L4 or slot not in XEN_SLOTS:
                    self.entry(domid, word, page_type, (mfn, slot))

    @staticmethod
    def descriptor(word: int) -> None:
        if word >> 47 & 1 and not word >> 44 & 1:
            raise Illegal

    def entry(self, domid: int, word: int, level: int, place: tuple[int, int]) -> None:
        if not word & 1:
            return
        target = word >> 12 & (1 << 40) - 1
        if level > L1:
            if word & 0b1_1001_1000:
                raise Illegal
            self.use(domid, target, level - 1)
            return
        if word & 0b0_1001_1000:
            raise Illegal
        writable = bool(word & 2)
        owner = self.owner.get(target)
        if owner != domid and self.granted.get(place) != (target, writable):
            raise Illegal
        self.use(owner, target, WRITABLE if writable else NONE)

    def settle(self) -> None:
        """After a legal change: what it left in use, what promotion rewrites, and whom nobody needs any more."""
        self.derive()
        for mfn, page_type in self.types.items():
            if page_type == L4:
                self.words[mfn] = {slot: w for slot, w in self.words[mfn].items() if slot not in XEN_SLOTS}
            if page_type == L1:
                self.words[mfn] = {slot: w & ~(1 << 8) if w & 1 else w for slot, w in self.words[mfn].items()}
        for mfn, owner in self.owner.items():
            if owner is not None and not self.references[mfn]:
                self.owner[mfn] = None
                self.words[mfn] = {}
        for (table, slot), (target, writable) in list(self.granted.items()):
            still = target << 12 | P | writable << 1
            if self.types.get(table) != L1 or (self.words[table].get(slot, 0) ^ still) & SAME:
                del self.granted[table, slot]  # whatever else is found there one day, no grant put it there

    def mine(self, domid: int, mfn: int) -> None:
        if self.owner.get(mfn) != domid:
            raise Illegal

    def free(self, domid: int, mfn: int) -> None:
        self.mine(domid, mfn)
        if mfn not in self.allocated:
            raise Illegal
        self.allocated.remove(mfn)

    def pin(self, domid: int, mfn: int, level: int) -> None:
        if mfn in self.pins or not L1 <= level <= L4:
            raise Illegal
        self.derive(((domid, mfn, level),))
        self.pins[mfn] = level

    def unpin(self, domid: int, mfn: int) -> None:
        self.mine(domid, mfn)
        if mfn not in self.pins:
            raise Illegal
        del self.pins[mfn]

    def root(self, domid: int, mfn: int, which: str) -> None:
        if which == "user" and mfn == 0:
            self.roots.pop((domid, which), None)
            return
        self.derive(((domid, mfn, L4),))
        self.roots[domid, which] = mfn

    def update(self, domid: int, address: int, word: int, preserve_ad: bool = False) -> None:
        mfn, slot = address >> 12, address >> 3 & SLOT_MASK
        self.mine(domid, mfn)
        level = self.types.get(mfn, NONE)
        if address & 7 or level == SEGDESC or (level == L4 and slot in XEN_SLOTS):
            raise Illegal
        if L1 <= level <= L4:
            if preserve_ad:
                word |= self.words[mfn].get(slot, 0) & 0x60
            self.entry(domid, word, level, (mfn, slot))  # beside the old one: both are in use for a moment
            if level == L1 and word & 1:
                word &= ~(1 << 8)
        self.words[mfn][slot] = word

    def map_granted(self, domid: int, place: tuple[int, int], word: int) -> None:
        self.mine(domid, place[0])
        if self.types.get(place[0]) != L1:
            raise Illegal
        target, writable = word >> 12 & (1 << 40) - 1, bool(word & 2)
        owner = self.owner[target]
        assert owner is not None
        self.derive(((owner, target, WRITABLE if writable else NONE),))
        self.words[place[0]][place[1]] = word
        self.granted[place] = target, writable

    def unmap_granted(self, domid: int, place: tuple[int, int], target: int, writable: bool) -> None:
        self.mine(domid, place[0])
        entry = self.words[place[0]].get(place[1], 0)
        if self.types.get(place[0]) != L1 or (entry ^ (target << 12 | P | writable << 1)) & SAME:
            raise Illegal
        self.words[place[0]][place[1]] = 0

    def machphys(self, domid: int, mfn: int) -> None:
        self.mine(domid, mfn)

    def update_va(self, domid: int, slots: tuple[int, int, int, int], word: int) -> None:
        if (domid, "kernel") not in self.roots or slots[0] in XEN_SLOTS:
            raise Illegal
        table = self.roots[domid, "kernel"]
        for slot in slots[:3]:
            link = self.words[table].get(slot, 0)
            if not link & 1:
                raise Illegal
            table = link >> 12 & (1 << 40) - 1
        self.update(domid, table << 12 | slots[3] << 3, word)

    def emulate_store(self, domid: int, address: int, value: int, size: int) -> None:
        self.mine(domid, address >> 12)
        if self.types.get(address >> 12) != L1 or address % size:
            raise Illegal
        old = self.words[address >> 12].get(address >> 3 & SLOT_MASK, 0)
        old |= (old & P) << 2
        raw = bytearray(old.to_bytes(8, "little"))
        raw[address & 7 : (address & 7) + size] = value.to_bytes(size, "little")
        self.update(domid, address & ~7, int.from_bytes(raw, "little"))

    def set_descriptors(self, domid: int, mfns: tuple[int, ...], which: str) -> None:
        self.derive(tuple((domid, mfn, SEGDESC) for mfn in mfns))
        self.descriptors[domid, which] = mfns

    def update_descriptor(self, domid: int, address: int, word: int) -> None:
        self.mine(domid, address >> 12)
        if address & 7 or self.types.get(address >> 12, WRITABLE) not in (WRITABLE, SEGDESC):
            raise Illegal
        self.descriptor(word)
        self.words[address >> 12][address >> 3 & SLOT_MASK] = word | (3 << 45 if word >> 47 & 1 else 0)

    def hold(self, domid: int, mfn: int, page_type: int) -> None:
        self.derive(((domid, mfn, page_type),))
        self.holds.append((mfn, page_type))

    def let_go(self, mfn: int, page_type: int) -> None:
        if (mfn, page_type) not in self.holds:
            raise Illegal
        self.holds.remove((mfn, page_type))

    def destroy(self, domid: int) -> None:
        for roots in (self.roots, self.descriptors):
            for key in [key for key in roots if key[0] == domid]:
                del roots[key]
        self.pins = {mfn: level for mfn, level in self.pins.items() if self.owner[mfn] != domid}
        self.allocated = {mfn for mfn in self.allocated if self.owner[mfn] != domid}
