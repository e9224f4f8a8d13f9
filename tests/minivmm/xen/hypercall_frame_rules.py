"""What hypercalls must answer and change (1): page tables, descriptors and memory, from xen/include/public/*.h.

A call is given as the guest gives it: a number, arguments, and structures in the guest's memory. The answer is the
value for RAX; REFUSED where any error will do; None where the value is not foretold, only what it may change.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from errno import E2BIG, EINVAL, ENOSYS, EPERM

from tests.minivmm.xen.frame_model import Illegal
from tests.minivmm.xen.hypercall_model import INVALID, PAGE, Cpu, Refused, State

REFUSED = -0x10000
SELF = 0x7FF0
LOW = 0xFFFF_FFFF

Answer = int | None


class FrameRules:
    """`state` is what is so now. `allocated` are the frames the hypervisor has handed out during the call, in order:
    which of the free ones is its own affair."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.allocated: list[int] = []
        self.refusals = 0
        """Changes refused. What was looked at on the way may have been made `checked`."""

    def change(self, rule: Callable[[State], object]) -> None:
        """Does it, or raises Illegal and leaves everything as it was."""
        after = self.state.copy()
        self.refusals += 1
        rule(after)
        after.settle()
        self.refusals -= 1
        self.state = after

    def allocate(self, domid: int, share: bool = False) -> int | None:
        if None not in self.state.owner.values():
            return None
        mfn = self.allocated.pop(0)
        if share:
            self.state.share(domid, mfn)
        else:
            self.state.give(domid, mfn)
        return mfn

    def number(self, cpu: Cpu, virtual: int, size: int = 8) -> int:
        return int.from_bytes(self.state.read(cpu, virtual, size), "little")

    def each(
        self,
        cpu: Cpu,
        address: int,
        count: int,
        size: int,
        carry_out: Callable[[bytes], None],
        done: int = 0,
        part: int = 256,
    ) -> int:
        """A list: read in parts of so many entries, carried out up to the first that is refused."""
        count &= LOW
        if count > 1 << 24:
            raise Refused(EINVAL)
        completed = 0
        try:
            while completed < count:
                chunk = min(count - completed, part) * size
                raw = self.state.read(cpu, address + completed * size, chunk)
                for at in range(0, chunk, size):
                    carry_out(raw[at : at + size])
                    completed += 1
        finally:
            if done:
                self.state.write(cpu, done, struct.pack("<I", completed))
        return 0

    @staticmethod
    def own(cpu: Cpu, domid: int) -> None:
        if domid & 0xFFFF not in (SELF, cpu[0]):
            raise Refused(EPERM)

    # -- paging

    def mmu_update(self, cpu: Cpu, requests: int, count: int, done: int, target: int) -> Answer:
        self.own(cpu, target)

        def store(raw: bytes) -> None:
            pointer, value = struct.unpack("<QQ", raw)
            if pointer & 3 == 1:
                self.state.mine(cpu[0], pointer >> 12)
                self.state.set_machphys(pointer >> 12, value)
            else:
                self.change(lambda s: s.update(cpu[0], pointer & ~3, value, pointer & 3 == 2))

        return self.each(cpu, requests, count, 16, store, done)

    def update_va_mapping(self, cpu: Cpu, virtual: int, word: int, _flags: int) -> Answer:
        self.change(lambda s: s.update(cpu[0], s.place(cpu, virtual), word))
        return 0

    def update_va_mapping_otherdomain(self, cpu: Cpu, virtual: int, word: int, flags: int, domid: int) -> Answer:
        self.own(cpu, domid)
        return self.update_va_mapping(cpu, virtual, word, flags)

    def mmuext_op(self, cpu: Cpu, operations: int, count: int, done: int, target: int) -> Answer:
        self.own(cpu, target)
        return self.each(cpu, operations, count, 24, lambda raw: self.operate(cpu, raw), done)

    def operate(self, cpu: Cpu, raw: bytes) -> None:
        cmd, one, two = struct.unpack("<I4xQQ", raw)
        (domid, vcpu), state = cpu, self.state
        if cmd <= 3:
            self.change(lambda s: s.pin(domid, one, cmd + 1))
        elif cmd == 4:
            self.change(lambda s: s.unpin(domid, one))
        elif cmd in (5, 15):
            which = f"{'kernel' if cmd == 5 else 'user'}{vcpu}"
            self.change(lambda s: s.base_pointer(domid, one, which))
        elif cmd == 13:
            entries = two & LOW
            if entries > 8192 or one % PAGE:
                raise Refused(EINVAL)
            places = [state.walk(cpu, one + page * PAGE) for page in range(-(-entries // 512))]
            if None in places:
                raise Illegal
            mfns = tuple(place >> 12 for place in places if place is not None)
            self.change(lambda s: s.set_descriptors(domid, mfns, f"ldt{vcpu}"))
        elif cmd in (16, 17):
            if cmd == 17:
                state.mine(domid, two)
            data = state.contents[two] if cmd == 17 else bytes(PAGE)
            self.change(lambda s: s.fill(domid, one, data))
        elif not 6 <= cmd <= 11:
            raise Refused({12: EPERM, 18: EPERM, 19: EINVAL, 20: EINVAL}.get(cmd, ENOSYS))

    def set_gdt(self, cpu: Cpu, frame_list: int, entries: int) -> Answer:
        entries &= LOW
        if entries > 14 * 512:
            raise Refused(EINVAL)
        pages = -(-entries // 512)
        mfns = struct.unpack(f"<{pages}Q", self.state.read(cpu, frame_list, 8 * pages))
        self.change(lambda s: s.set_descriptors(cpu[0], mfns, f"gdt{cpu[1]}"))
        return 0

    def update_descriptor(self, cpu: Cpu, address: int, word: int) -> Answer:
        self.change(lambda s: s.update_descriptor(cpu[0], address, word))
        return 0

    # -- memory_op

    def memory_op(self, cpu: Cpu, cmd: int, arg: int) -> Answer:
        state, domid, cmd = self.state, cpu[0], cmd & LOW
        if cmd in (0, 1, 6):
            return self.reservation(cpu, cmd, arg)
        if cmd == 11:
            return self.exchange(cpu, arg)
        if cmd == 2:
            return max(*state.owner, state.m2p)
        if cmd in (3, 4, 14):
            self.own(cpu, self.number(cpu, arg, 2))
            if cmd == 14:
                return max(int.from_bytes(state.get((state.shared_info[domid] << 12) + 3088, 8), "little"), 1) - 1
            return state.pages(domid) if cmd == 3 else state.limit[domid]
        top = max(*state.owner, state.m2p)
        if cmd == 5:
            count, buffer, _ = struct.unpack("<I4xQI4x", state.read(cpu, arg, 24))
            state.write(cpu, buffer, struct.pack("<Q", state.m2p) if count else b"")
            state.write(cpu, arg, struct.pack("<I4xQI4x", count, buffer, min(count, 1)))
        elif cmd == 9:
            count, buffer = struct.unpack("<I4xQ", state.read(cpu, arg, 16))
            state.write(cpu, buffer, struct.pack("<QQI", 0, state.limit[domid] << 12, 1) if count else b"")
            state.write(cpu, arg, struct.pack("<I4xQ", min(count, 1), buffer))
        elif cmd == 12:
            start = 257 << 39 | 0xFFFF << 48
            state.write(cpu, arg, struct.pack("<QQQ", start, start + PAGE, top))
        else:
            raise Refused(EPERM if cmd in (10, 13) else ENOSYS)
        return 0

    def reservation(self, cpu: Cpu, cmd: int, arg: int) -> int:
        """The number of extents that were done, whatever is wrong."""
        done = 0
        try:
            start, count, order, flags, domid = struct.unpack("<QQIIH6x", self.state.read(cpu, arg, 32))
            if domid not in (SELF, cpu[0]) or order > 9 or (cmd == 6 and flags & 1 << 16):
                return 0
            count = min(count, (1 << 14) >> order)
            while done < count:
                at, chunk = start + 8 * done, min(512, count - done)
                raw = self.state.read(cpu, at, 8 * chunk) if start or cmd else b""
                if cmd == 1:
                    for (mfn,) in struct.iter_unpack("<Q", raw):
                        for frame in range(mfn, mfn + (1 << order)):
                            self.change(lambda s, frame=frame: s.free(cpu[0], frame))  # type: ignore[misc]
                            self.state.set_machphys(frame, INVALID)
                        done += 1
                    continue
                if raw:
                    self.state.write(cpu, at, raw)
                got = self.extents(cpu[0], chunk, order, flags & 0xFF)
                if cmd == 6:
                    self.enter(got, raw, order)
                if start or cmd:
                    self.state.write(cpu, at, struct.pack(f"<{len(got)}Q", *got))
                done += len(got)
                if len(got) < chunk:
                    break
        except (Refused, Illegal):
            pass
        return done

    def extents(self, domid: int, count: int, order: int, bits: int, room: bool = True) -> list[int]:
        """As many as the domain may have and there are, of those the hypervisor chose."""
        state, size = self.state, 1 << order
        end = 1 << max(bits - 12, 0) if bits else 1 << 52
        starts = [mfn for mfn in state.owner if mfn % size == 0 and mfn + size <= end]
        runs = [mfn for mfn in starts if all(state.owner.get(mfn + page, 0) is None for page in range(size))]
        if room:
            count = min(count, max(state.limit[domid] - state.pages(domid), 0) >> order)
        count = min(count, len(runs))
        chosen, self.allocated = self.allocated[:count], self.allocated[count:]
        assert len(chosen) == count
        for mfn in chosen:
            assert mfn % size == 0
            assert mfn + size <= end
            for page in range(size):
                state.give(domid, mfn + page)
        return chosen

    def enter(self, mfns: list[int], pfns: bytes, order: int) -> None:
        for mfn, (pfn,) in zip(mfns, struct.iter_unpack("<Q", pfns), strict=False):
            for page in range(1 << order):
                self.state.set_machphys(mfn + page, pfn + page)

    def exchange(self, cpu: Cpu, arg: int) -> Answer:
        raw = self.state.read(cpu, arg, 72)
        start, count, order, _, domid, out_start, out_count, out_order, flags, out_domid, done = struct.unpack(
            "<QQIIH6xQQIIH6xQ", raw
        )
        self.own(cpu, domid)
        if domid != out_domid or done > count:
            raise Refused(EINVAL)
        if max(order, out_order) > 9:
            raise Refused(EPERM)
        if count << order != out_count << out_order:
            raise Refused(EINVAL)
        ins, outs = 1 << max(out_order - order, 0), 1 << max(order - out_order, 0)
        done -= done % ins
        parts = (1 << 14) >> max(order, out_order)
        end = min(count, done + ins * (min(parts, 128) if out_order or flags & 0xFF else parts))
        try:
            while done < end:
                mfns = self.state.read(cpu, start + 8 * done, 8 * ins)
                at = out_start + 8 * (done * outs // ins)
                pfns = self.state.read(cpu, at, 8 * outs)
                self.state.write(cpu, at, pfns)
                new = self.part(cpu[0], mfns, order, pfns, out_order, flags & 0xFF)
                self.state.write(cpu, at, struct.pack(f"<{outs}Q", *new))
                done += ins
        finally:
            self.state.write(cpu, arg + 64, struct.pack("<Q", done))
        return 0 if done == count else -E2BIG

    def part(self, domid: int, mfns: bytes, order: int, pfns: bytes, out_order: int, bits: int) -> list[int]:
        """All of it, or Illegal: frames nobody uses against new ones, which are not among them."""
        before = self.state.copy()
        old = [mfn + page for (mfn,) in struct.iter_unpack("<Q", mfns) for page in range(1 << order)]
        try:
            for mfn in old:
                if not self.state.idle(domid, mfn):
                    raise Illegal
                self.state.owner[mfn] = -1
                self.state.allocated.discard(mfn)
            self.state.derive()
            new = self.extents(domid, len(pfns) // 8, out_order, bits, room=False)
            if len(new) < len(pfns) // 8:
                raise Illegal
        except Illegal:
            self.state = before
            raise
        for mfn in old:
            self.discard(mfn)
        self.enter(new, pfns, out_order)
        return new

    def discard(self, mfn: int) -> None:
        self.state.owner[mfn] = None
        self.state.contents[mfn] = bytes(PAGE)
        self.state.set_machphys(mfn, INVALID)
