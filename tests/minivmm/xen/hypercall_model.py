"""What two domains' hypercalls must leave behind: every byte of the machine, every frame's owner, every port and grant.

The rules for frames are frame_model.py's and those for events event_model.py's; here they work on one copy of memory,
and what is kept of grants is a list of uses. Nothing is counted. hypercall_rules.py says what each call does to this.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from errno import EFAULT
from functools import lru_cache
from typing import Any, cast

from tests.minivmm.xen.event_model import MASK, PENDING, End, EventModel
from tests.minivmm.xen.frame_model import L1, L4, NONE, SAME, SEGDESC, WRITABLE, XEN_SLOTS, Illegal, Model, P, W

PAGE = 4096
ZERO = bytes(PAGE)
INVALID = (1 << 64) - 1
WORD = (1 << 64) - 1
TARGET = (1 << 40) - 1
WORDS = struct.Struct("<512Q")
U, GLOBAL = 4, 0x100
READING, WRITING = 8, 16

Cpu = tuple[int, int]  # domid, vCPU


class Refused(Exception):
    """The call returns -errno."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


@lru_cache(1 << 14)
def nonzero(raw: bytes) -> tuple[tuple[int, int], ...]:
    """Slot and word of what is not zero in a frame."""
    return tuple((slot, word) for slot, word in enumerate(WORDS.unpack(raw)) if word)


@lru_cache(1 << 14)
def checked(raw: bytes, page_type: int, xen_slots: tuple[int, ...]) -> bytes:
    """A frame's contents as they are once it is of this type."""
    words = list(WORDS.unpack(raw))
    if page_type == L4:
        words[XEN_SLOTS.start : XEN_SLOTS.stop] = xen_slots
    for slot, word in nonzero(raw):
        if page_type == SEGDESC:
            words[slot] |= 3 << 45 if word >> 47 & 1 else 0
        elif word & P and not (page_type == L4 and slot in XEN_SLOTS):
            words[slot] = (word | U) & ~(GLOBAL if page_type == L1 else 0)
    return WORDS.pack(*words)


class _Frame:
    """A frame's words, as frame_model.py has them."""

    def __init__(self, contents: dict[int, bytes], mfn: int) -> None:
        self.contents, self.mfn = contents, mfn

    def get(self, slot: int, _default: int = 0) -> int:
        (word,) = struct.unpack_from("<Q", self.contents[self.mfn], 8 * slot)
        return int(word)

    def __setitem__(self, slot: int, word: int) -> None:
        raw = self.contents[self.mfn]
        self.contents[self.mfn] = raw[: 8 * slot] + struct.pack("<Q", word) + raw[8 * slot + 8 :]

    def items(self) -> tuple[tuple[int, int], ...]:
        return nonzero(self.contents[self.mfn])


class _Words:
    def __init__(self, contents: dict[int, bytes]) -> None:
        self.contents = contents

    def __getitem__(self, mfn: int) -> _Frame:
        return _Frame(self.contents, mfn)


class _SharedPage:
    """shared_info, as event_model.py has it."""

    def __init__(self, state: State, mfn: int) -> None:
        self.state, self.mfn = state, mfn

    def __getitem__(self, offset: int) -> int:
        return self.state.contents[self.mfn][offset]

    def __setitem__(self, offset: int, value: int) -> None:
        self.state.put(self.mfn << 12 | offset, bytes([value & 0xFF]))


class Events(EventModel):
    """Ports of which some end in the hypervisor, and vcpu_infos that move."""

    def __init__(self, state: State) -> None:
        super().__init__({})
        self.state = state
        self.info: dict[Cpu, int] = {}
        self.moved: set[Cpu] = set()
        self.attached: set[End] = set()

    def copy(self, state: State) -> Events:
        new = Events(state)
        new.domains = dict(self.domains)
        new.pages = cast(Any, {domid: _SharedPage(state, cast(Any, page).mfn) for domid, page in self.pages.items()})
        new.pairs, new.waiting, new.virqs = set(self.pairs), dict(self.waiting), dict(self.virqs)
        new.ipis, new.vcpu, new.attached = set(self.ipis), dict(self.vcpu), set(self.attached)
        new.info, new.moved = dict(self.info), set(self.moved)
        return new

    def admit(self, domid: int, vcpus: int, shared_info: int, attached: tuple[int, ...]) -> None:
        self.domains[domid] = (vcpus, 4095)
        self.pages[domid] = cast(Any, _SharedPage(self.state, shared_info))
        for vcpu in range(vcpus):
            self.info[domid, vcpu] = shared_info << 12 | 64 * vcpu
        for port in attached:
            self.attached.add((domid, port))
            self.vcpu[domid, port] = 0

    def close(self, caller: int, port: int) -> int:
        error = super().close(caller, port)
        self.attached.discard((caller, port))
        return error

    def select(self, end: End) -> None:
        domid, port = end
        info = self.info[domid, self.vcpu[end]]
        if not self.state.set_bit(info + 8, port // 64):
            self.upcall(domid, self.vcpu[end])

    def upcall(self, domid: int, vcpu: int) -> None:
        self.state.set_bit(self.info[domid, vcpu], 0)

    def move_info(self, cpu: Cpu, address: int) -> None:
        state = self.state
        info = self.info[cpu]
        state.put(address, state.get(info, 64))
        self.info[cpu] = address
        self.moved.add(cpu)
        state.put(address + 8, b"\xff" * 8)
        self.upcall(*cpu)

    def is_pending(self, domid: int, port: int) -> bool:
        return bool(self.pages[domid][PENDING + port // 8] >> port % 8 & 1)

    def masked(self, domid: int, port: int) -> bool:
        return bool(self.pages[domid][MASK + port // 8] >> port % 8 & 1)

    def state_of(self, end: End) -> tuple[int, int, int, int]:
        return (2, self.vcpu[end], 0, 0) if end in self.attached else self.status(end)


@dataclass(frozen=True)
class Use:
    """A use of a grant that lasts: granter and reference, by whom, of which frame."""

    granter: int
    ref: int
    user: int
    mfn: int
    writable: bool


class State(Model):
    """The machine. `contents` is every frame of it, whoever's, as it must be."""

    def __init__(self, frames: range, m2p: int, contents: dict[int, bytes], xen_slots: tuple[int, ...]) -> None:
        super().__init__(frames)
        self.m2p, self.xen_slots = m2p, xen_slots
        self.contents = contents
        self.words = cast(Any, _Words(contents))
        self.unknown: list[tuple[int, int]] = []
        """Machine addresses and lengths of what a call stored that no rule foretells: times, versions."""
        self.shared: set[int] = set()
        self.limit: dict[int, int] = {}
        self.shared_info: dict[int, int] = {}
        self.held: dict[int, tuple[int, ...]] = {}
        """Frames the hypervisor writes to while the domain lives."""
        self.initialised: set[Cpu] = set()
        self.up: set[Cpu] = set()
        self.grant_frames: dict[int, tuple[int, ...]] = {}
        self.uses_of_grants: list[Use] = []
        self.handles: dict[tuple[int, int], tuple[Use, int, int]] = {}
        self.free_handles: dict[int, tuple[int, ...]] = {}
        self.events = Events(self)

    def copy(self) -> State:
        new = object.__new__(State)
        new.__dict__.update(self.__dict__)
        for name, value in self.__dict__.items():
            if isinstance(value, dict | set | list | Counter):
                new.__dict__[name] = value.copy()
        new.words = cast(Any, _Words(new.contents))
        new.events = self.events.copy(new)
        return new

    # -- bytes

    def get(self, address: int, length: int) -> bytes:
        return self.contents[address >> 12][address % PAGE : address % PAGE + length]

    def put(self, address: int, data: bytes) -> None:
        raw, at = self.contents[address >> 12], address % PAGE
        assert at + len(data) <= PAGE
        self.contents[address >> 12] = raw[:at] + data + raw[at + len(data) :]

    def word_of(self, mfn: int, slot: int) -> int:
        return int.from_bytes(self.contents[mfn][8 * slot : 8 * slot + 8], "little")

    def set_bit(self, address: int, bit: int) -> bool:
        """What it was."""
        address += bit // 8
        byte = self.get(address, 1)[0]
        self.put(address, bytes([byte | 1 << bit % 8]))
        return bool(byte >> bit % 8 & 1)

    def set_machphys(self, mfn: int, pfn: int) -> None:
        self.put((self.m2p << 12) + 8 * mfn, struct.pack("<Q", pfn & WORD))

    def walk(self, cpu: Cpu, virtual: int, needed: int = P | U) -> int | None:
        """The machine address, where the vCPU's kernel may go."""
        if (virtual + (1 << 47)) & WORD >= 1 << 48:
            return None
        table = self.roots[cpu[0], f"kernel{cpu[1]}"]
        for shift in (39, 30, 21, 12):
            word = self.word_of(table, virtual >> shift & 511)
            if word & needed != needed:
                return None
            table = word >> 12 & TARGET
        return table << 12 | virtual & PAGE - 1

    def pieces(self, cpu: Cpu, virtual: int, length: int, needed: int) -> list[tuple[int, int]]:
        """Machine addresses and lengths. Raises Refused(EFAULT)."""
        found = []
        while length > 0:
            machine = self.walk(cpu, virtual, needed)
            if machine is None:
                raise Refused(EFAULT)
            count = min(length, PAGE - virtual % PAGE)
            found.append((machine, count))
            virtual, length = virtual + count & WORD, length - count
        return found

    def read(self, cpu: Cpu, virtual: int, length: int) -> bytes:
        return b"".join(self.get(*piece) for piece in self.pieces(cpu, virtual, length, P | U))

    def write(self, cpu: Cpu, virtual: int, data: bytes) -> None:
        at = 0
        for machine, count in self.pieces(cpu, virtual, len(data), P | U | W):
            self.put(machine, data[at : at + count])
            at += count

    def write_unknown(self, cpu: Cpu, virtual: int, length: int) -> None:
        self.unknown += self.pieces(cpu, virtual, length, P | U | W)

    # -- frames

    def settle(self) -> None:
        self.derive()
        for mfn, page_type in self.types.items():
            if page_type != WRITABLE:
                self.contents[mfn] = checked(self.contents[mfn], page_type, self.xen_slots)
        for mfn, owner in self.owner.items():
            if owner is not None and not self.references[mfn]:
                self.owner[mfn] = None
                self.shared.discard(mfn)
                self.contents[mfn] = ZERO
                self.set_machphys(mfn, INVALID)
        for (table, slot), (target, writable) in list(self.granted.items()):
            still = target << 12 | P | writable << 1
            if self.types.get(table) != L1 or (self.word_of(table, slot) ^ still) & SAME:
                del self.granted[table, slot]

    def table(self, mfn: int) -> bool:
        return self.types.get(mfn, WRITABLE) != WRITABLE

    def update(self, domid: int, address: int, word: int, preserve_ad: bool = False) -> None:
        super().update(domid, address, word, preserve_ad)
        mfn, slot = address >> 12, address >> 3 & 511
        if self.table(mfn) and self.word_of(mfn, slot) & P:
            self.words[mfn][slot] = self.word_of(mfn, slot) | U

    def free(self, domid: int, mfn: int) -> None:
        if mfn in self.shared:
            raise Illegal
        super().free(domid, mfn)

    def base_pointer(self, domid: int, mfn: int, which: str) -> None:
        if which.startswith("user") and mfn == 0:
            self.roots.pop((domid, which), None)
            return
        self.derive(((domid, mfn, L4),))
        self.roots[domid, which] = mfn

    def place(self, cpu: Cpu, virtual: int) -> int:
        """The machine address of the L1 entry of a virtual address."""
        if (virtual + (1 << 47)) & WORD >= 1 << 48 or virtual >> 39 & 511 in XEN_SLOTS:
            raise Illegal
        table = self.roots[cpu[0], f"kernel{cpu[1]}"]
        for shift in (39, 30, 21):
            link = self.word_of(table, virtual >> shift & 511)
            if not link & P:
                raise Illegal
            table = link >> 12 & TARGET
        return table << 12 | (virtual >> 12 & 511) << 3

    def fill(self, domid: int, mfn: int, data: bytes) -> None:
        """Into ordinary memory."""
        self.derive(((domid, mfn, WRITABLE),))
        self.contents[mfn] = data

    def pages(self, domid: int) -> int:
        return sum(owner == domid and mfn not in self.shared for mfn, owner in self.owner.items())

    def give(self, domid: int, mfn: int) -> None:
        assert self.owner[mfn] is None, f"mfn {mfn:#x} was not free"
        self.owner[mfn] = domid
        self.allocated.add(mfn)
        self.derive()

    def share(self, domid: int, mfn: int) -> None:
        self.give(domid, mfn)
        self.shared.add(mfn)
        self.holds.append((mfn, WRITABLE))
        self.derive()

    def unshare(self, mfn: int) -> None:
        self.holds.remove((mfn, WRITABLE))
        self.allocated.discard(mfn)

    def idle(self, domid: int, mfn: int) -> bool:
        """Whether nobody refers to the domain's frame but its reservation."""
        mine = self.owner.get(mfn) == domid and mfn in self.allocated and mfn not in self.shared
        return mine and self.references[mfn] == 1

    def hold_writable(self, domid: int, mfn: int) -> None:
        self.hold(domid, mfn, WRITABLE)
        self.held[domid] = (*self.held.get(domid, ()), mfn)

    def destroy(self, domid: int) -> None:
        for mfn in self.held.pop(domid):
            self.holds.remove((mfn, WRITABLE))
        shared = [mfn for mfn in self.shared if self.owner[mfn] == domid and mfn in self.allocated]
        super().destroy(domid)
        self.allocated.update(shared)
        self.events.remove(domid)
        for end in [end for end in self.events.attached if end[0] == domid]:
            self.events.attached.discard(end)
        self.unshare(self.shared_info.pop(domid))
        for cpu in [cpu for cpu in self.up | self.initialised if cpu[0] == domid]:
            self.up.discard(cpu)
            self.initialised.discard(cpu)
        for name in [name for name in self.handles if name[0] == domid]:
            self.end_use(self.handles.pop(name)[0])
        del self.limit[domid]
        self.bury()

    # -- grants

    def uses_now(self, granter: int, ref: int) -> list[Use]:
        return [use for use in self.uses_of_grants if (use.granter, use.ref) == (granter, ref)]

    def entry_at(self, granter: int, ref: int) -> int | None:
        frames = self.grant_frames[granter]
        return (frames[ref // 512] << 12) + ref % 512 * 8 if ref < 512 * len(frames) else None

    def begin_use(self, use: Use) -> None:
        self.uses_of_grants.append(use)
        self.holds.append((use.mfn, NONE))
        if use.writable:
            self.holds.append((use.mfn, WRITABLE))

    def end_use(self, use: Use) -> None:
        self.uses_of_grants.remove(use)
        self.holds.remove((use.mfn, NONE))
        if use.writable:
            self.holds.remove((use.mfn, WRITABLE))
        self.unmark(use.granter, use.ref, use.writable)

    def unmark(self, granter: int, ref: int, writable: bool) -> None:
        """GTF_reading and GTF_writing go with the last use that needs them."""
        address = self.entry_at(granter, ref)
        assert address is not None
        left, flags = self.uses_now(granter, ref), self.get(address, 1)[0]
        if writable and not any(use.writable for use in left):
            flags &= ~WRITING
        if not left:
            flags &= ~READING
        self.put(address, bytes([flags]))

    def bury(self) -> None:
        """A dead domain's grant table goes with the last use of it."""
        for domid in [domid for domid in self.grant_frames if domid not in self.limit]:
            if not any(use.granter == domid for use in self.uses_of_grants):
                for mfn in self.grant_frames.pop(domid):
                    self.unshare(mfn)
