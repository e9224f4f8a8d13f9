"""What hypercalls must answer and change (2): events, grants, vCPUs, and the table of all of them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from errno import E2BIG, EEXIST, EINVAL, ENOENT, ENOSYS, EPERM, ESRCH

from tests.minivmm.xen.frame_model import Illegal, P, W
from tests.minivmm.xen.grant_model import (
    BAD_COPY,
    BAD_DOMAIN,
    BAD_HANDLE,
    BAD_PAGE,
    BAD_REF,
    DENIED,
    GENERAL,
    NO_DEVICE,
    OKAY,
)
from tests.minivmm.xen.hypercall_frame_rules import LOW, REFUSED, SELF, Answer, FrameRules
from tests.minivmm.xen.hypercall_model import INVALID, PAGE, READING, WORD, WRITING, Cpu, Refused, State, U, Use

BAD_VIRT = -5
CONTEXT_SIZE = 5168


class Ended(Exception):
    """The call ends the domain."""


class Rules(FrameRules):
    """Every hypercall, by CALLS."""

    def call(self, cpu: Cpu, number: int, args: tuple[int, ...]) -> Answer:
        handler = CALLS.get(number)
        if handler is None:
            return -ENOSYS
        try:
            return handler(self, cpu, *args[: handler.__code__.co_argcount - 2])
        except Refused as refused:
            return -refused.errno
        except Illegal:
            return REFUSED

    # -- event_channel_op

    def event_channel_op(self, cpu: Cpu, cmd: int, arg: int) -> Answer:
        (caller, _), state, cmd = cpu, self.state, cmd & LOW
        sizes = (12, 12, 12, 4, 4, 24, 8, 8, 8, 4, 2)
        if cmd >= len(sizes):
            raise Refused(ENOSYS)
        raw = state.read(cpu, arg, sizes[cmd])
        events, answer = state.events, raw
        layout = {0: "<H2xI", 5: "<H2xI", 6: "<HH", 10: "<H"}.get(cmd, "<I" if len(raw) == 4 else "<II")
        first, second, *_ = (*struct.unpack_from(layout, raw), 0)
        fresh = struct.pack("<I", events.fresh(caller))
        error = 0
        match cmd:
            case 0:
                error = events.bind_interdomain(caller, first, second)
                answer = raw[:2] + b"\0\0" + raw[4:8] + fresh
            case 1:
                error, answer = events.bind_virq(caller, first, second), raw[:8] + fresh
            case 2:
                error = EINVAL
            case 3:
                error = events.close(caller, first) if first <= 4095 else EINVAL
            case 4 if (caller, first) in events.attached:
                # The console's or the store's ring, and the way back: another model's.
                state.unknown += [
                    (mfn << 12, PAGE) for mfn in state.owner if state.owner[mfn] == caller and not state.table(mfn)
                ]
            case 4:
                error = events.send(caller, first)
            case 5:
                error, answer = self.status(caller, first, second, raw)
            case 6:
                error, answer = events.alloc_unbound(caller, first, second), raw[:4] + fresh
            case 7:
                error, answer = events.bind_ipi(caller, first), raw[:4] + fresh
            case 8:
                error = events.bind_vcpu(caller, first, second)
            case 9:
                error = events.unmask(caller, first)
            case 10:
                error = events.reset(caller, first)
        if error:
            raise Refused(error)
        if answer != raw:
            state.write(cpu, arg, answer)
        return 0

    def status(self, caller: int, dom: int, port: int, raw: bytes) -> tuple[int, bytes]:
        events = self.state.events
        who = events.who(caller, dom)
        if who not in events.domains:
            return ESRCH, raw
        if port > 4095:
            return EINVAL, raw
        if error := events.trust(caller, dom):
            return error, raw
        return 0, raw[:2] + b"\0\0" + raw[4:8] + struct.pack("<IIII", *events.state_of((who, port)))

    # -- grant_table_op

    def grant_table_op(self, cpu: Cpu, cmd: int, elements: int, count: int) -> Answer:
        cmd, count = cmd & LOW, count & LOW
        if cmd not in GRANT_OPS:
            raise Refused(ENOSYS)
        layout, status_at, operation, many = GRANT_OPS[cmd]
        size = struct.calcsize(layout)
        if count > 32768 or (count != 1 and not many):
            raise Refused(EINVAL)
        for start in range(0, count, 64):
            length = min(64, count - start) * size
            raw = self.state.read(cpu, elements + start * size, length)
            self.state.write(cpu, elements + start * size, raw)
            answers = b""
            for at in range(0, length, size):
                values = list(struct.unpack_from(layout, raw, at))
                answer = operation(self, cpu, values)
                if status_at is not None:
                    values[status_at] = answer
                answers += struct.pack(layout, *values)
            self.state.write(cpu, elements + start * size, answers)
        return 0

    def pin_grant(self, granter: int, ref: int, user: int, writable: bool, mapping: bool) -> Use | int:
        state = self.state
        address = state.entry_at(granter, ref)
        if address is None:
            return BAD_REF
        uses = state.uses_now(granter, ref)
        if uses and (uses[0].user != user or len(uses) >= 128):
            return GENERAL
        if not uses or (writable and not any(use.writable for use in uses)):
            flags, domid = struct.unpack("<HH", state.get(address, 4))
            if flags & (0x103 if mapping else 3) != 1 or domid != user or (writable and flags & 4):
                return GENERAL
            state.put(address, bytes([flags & 0xFF | READING | (WRITING if writable else 0)]))
        frame = uses[0].mfn if uses else int.from_bytes(state.get(address + 4, 4), "little")
        use = Use(granter, ref, user, frame, writable)
        status = BAD_PAGE
        if state.owner.get(frame) == granter:
            status = GENERAL
            if not (writable and state.table(frame)):
                state.begin_use(use)
                state.settle()
                return use
        state.unmark(granter, ref, writable)
        return status

    def unpin_grant(self, use: Use) -> None:
        self.state.end_use(use)
        self.state.bury()
        self.state.settle()

    def map_grant(self, cpu: Cpu, values: list[int]) -> int:
        host, flags, ref, dom = values[:4]
        if not flags & 3:
            return BAD_REF
        if flags & 1:
            return NO_DEVICE
        if dom not in self.state.limit:
            return BAD_DOMAIN
        use = self.pin_grant(dom, ref, cpu[0], not flags & 4, True)
        if not isinstance(use, Use):
            return use
        word = use.mfn << 12 | P | U | 0x60 | 1 << 63 | (flags >> 16 & 7) << 9 | (0 if flags & 4 else W)
        try:
            address = self.host_place(cpu, host, flags)
            self.change(lambda s: s.map_granted(cpu[0], (address >> 12, address >> 3 & 511), word))
        except Illegal:
            self.unpin_grant(use)
            return GENERAL
        state, domid = self.state, cpu[0]
        free = state.free_handles.get(domid, ())
        handle = free[-1] if free else sum(name[0] == domid for name in state.handles)
        state.free_handles[domid] = free[:-1]
        state.handles[domid, handle] = use, host, flags
        values[5:] = handle, use.mfn << 12
        return OKAY

    def host_place(self, cpu: Cpu, host: int, flags: int) -> int:
        address = host if flags & 16 else self.state.place(cpu, host)
        if address & 7:
            raise Illegal
        return address

    def unmap_grant(self, cpu: Cpu, values: list[int]) -> int:
        host, _, handle = values[:3]
        state, domid = self.state, cpu[0]
        if (domid, handle) not in state.handles:
            return BAD_HANDLE
        use, there, flags = state.handles[domid, handle]
        if not host:
            return OKAY
        if host != there:
            return GENERAL
        try:
            address = self.host_place(cpu, host, flags)
            self.change(lambda s: s.unmap_granted(domid, (address >> 12, address >> 3 & 511), use.mfn, not flags & 4))
        except Illegal:
            return GENERAL
        state = self.state
        del state.handles[domid, handle]
        state.free_handles[domid] = (*state.free_handles.get(domid, ()), handle)
        self.unpin_grant(use)
        return OKAY

    def copy_grant(self, cpu: Cpu, values: list[int]) -> int:
        source, source_dom, source_at, dest, dest_dom, dest_at, length, flags, _ = values
        sides = ((source, source_dom, flags & 1, False), (dest, dest_dom, flags & 2, True))
        for _, dom, by_ref, _ in sides:
            if not by_ref and dom != SELF:
                return DENIED
            if by_ref and dom != SELF and dom not in self.state.limit:
                return BAD_DOMAIN
        held: list[Use] = []
        frames: list[int] = []
        status = OKAY
        for name, dom, by_ref, writable in sides:
            if by_ref:
                use = self.pin_grant(cpu[0] if dom == SELF else dom, name & LOW, cpu[0], writable, False)
                if not isinstance(use, Use):
                    status = use
                    break
                held.append(use)
                frames.append(use.mfn)
            elif self.state.owner.get(name) != cpu[0]:
                status = BAD_PAGE
                break
            elif writable and self.state.table(name):
                status = GENERAL
                break
            else:
                frames.append(name)
        if not status:
            if max(source_at, dest_at) + length > PAGE:
                status = BAD_COPY
            else:
                self.state.put(frames[1] << 12 | dest_at, self.state.get(frames[0] << 12 | source_at, length))
        for use in reversed(held):
            self.unpin_grant(use)
        return status

    def transfer(self, cpu: Cpu, values: list[int]) -> int:
        mfn, dom, ref = values[:3]
        state, caller = self.state, cpu[0]
        if not state.idle(caller, mfn):
            return BAD_PAGE
        state.owner[mfn] = -1
        state.allocated.discard(mfn)
        state.derive()
        status = self.deliver(caller, mfn, dom, ref)
        if status:
            self.discard(mfn)
        return status

    def deliver(self, caller: int, mfn: int, dom: int, ref: int) -> int:
        state = self.state
        if dom not in state.limit:
            return BAD_DOMAIN
        address = state.entry_at(dom, ref)
        if address is None:
            return BAD_REF
        if state.get(address, 4) != struct.pack("<HH", 2, caller) or state.pages(dom) >= state.limit[dom]:
            return GENERAL
        state.owner[mfn] = None
        state.give(dom, mfn)
        state.set_machphys(mfn, INVALID)
        state.put(address, struct.pack("<HHI", 2 | 4 | 8, caller, mfn))
        return OKAY

    def setup_table(self, cpu: Cpu, values: list[int]) -> int:
        dom, count, _, frame_list = values
        if error := self.say(cpu[0], dom):
            return error
        if count > 64:
            return GENERAL
        while len(self.state.grant_frames[cpu[0]]) < count:
            mfn = self.allocate(cpu[0], share=True)
            if mfn is None:
                return GENERAL
            self.state.grant_frames[cpu[0]] += (mfn,)
        frames = self.state.grant_frames[cpu[0]][:count]
        try:
            self.state.write(cpu, frame_list, struct.pack(f"<{len(frames)}Q", *frames))
        except Refused:
            return BAD_VIRT
        return OKAY

    def say(self, caller: int, dom: int) -> int:
        who = caller if dom == SELF else dom
        return BAD_DOMAIN if who not in self.state.limit else 0 if who == caller else DENIED

    def query_size(self, cpu: Cpu, values: list[int]) -> int:
        if error := self.say(cpu[0], values[0]):
            return error
        values[1:3] = len(self.state.grant_frames[cpu[0]]), 64
        return OKAY

    def set_version(self, _cpu: Cpu, values: list[int]) -> int:
        if values[0] != 1:
            raise Refused(ENOSYS if values[0] == 2 else EINVAL)
        return OKAY

    def get_version(self, cpu: Cpu, values: list[int]) -> int:
        if error := self.say(cpu[0], values[0]):
            raise Refused(ESRCH if error == BAD_DOMAIN else EPERM)
        values[1] = 1
        return OKAY

    # -- vcpu_op, sched_op

    def vcpu_op(self, cpu: Cpu, cmd: int, index: int, arg: int) -> Answer:
        (domid, _), state = cpu, self.state
        target = (domid, index & LOW)
        if target[1] >= state.events.domains[domid][0]:
            raise Refused(ENOENT)
        if cmd == 0:
            self.initialise(cpu, target, arg)
        elif cmd == 1:
            if target not in state.initialised:
                raise Refused(EINVAL)
            state.unknown.append((state.events.info[target] + 32, 32))
            state.up.add(target)
        elif cmd == 2:
            state.up.discard(target)
            if not any(other[0] == domid for other in state.up):
                raise Ended
        elif cmd == 3:
            return int(target in state.up)
        elif cmd == 4:
            state.write_unknown(cpu, arg, 48)
        elif cmd == 10:
            mfn, offset, reserved = struct.unpack("<QII", state.read(cpu, arg, 16))
            if reserved or mfn >= 1 << 40 or offset > PAGE - 64 or offset % 8 or target in state.events.moved:
                raise Illegal
            self.change(lambda s: s.hold_writable(domid, mfn))
            self.state.events.move_info(target, mfn << 12 | offset)
        elif cmd in (6, 7, 8, 9, 11):
            if cmd in (8, 9) and target != cpu:
                raise Refused(EINVAL)
            if cmd in (6, 8):
                state.read(cpu, arg, 8 if cmd == 6 else 16)
            return None
        else:
            raise Refused(EINVAL if cmd == 12 else ENOSYS)
        return 0

    def initialise(self, cpu: Cpu, target: Cpu, arg: int) -> None:
        if target in self.state.initialised:
            raise Refused(EEXIST)
        raw = self.state.read(cpu, arg, CONTEXT_SIZE)

        def words(at: int, count: int) -> tuple[int, ...]:
            return struct.unpack_from(f"<{count}Q", raw, at)

        (ldt,), frames, (entries,), (stack,) = words(4824, 1), words(4832, 16), words(4960, 1), words(4976, 1)
        user, kernel = words(4992, 1)[0] >> 12, words(5008, 1)[0] >> 12
        handlers = [struct.unpack_from("<8xQ", raw, 720 + 16 * trap)[0] for trap in range(256)]
        for address in (stack, *handlers, *words(5112, 3), *words(5144, 3)):
            if (address + (1 << 47)) & WORD >= 1 << 48:
                raise Refused(EINVAL)
        if ldt or entries > 14 * 512:
            raise Illegal
        (domid, index), mfns = target, frames[: -(-entries // 512)]

        def begin(state: State) -> None:
            state.base_pointer(domid, kernel, f"kernel{index}")
            if words(4992, 1)[0]:
                state.base_pointer(domid, user, f"user{index}")
            state.set_descriptors(domid, mfns, f"gdt{index}")
            state.initialised.add(target)

        self.change(begin)

    def sched_op(self, cpu: Cpu, cmd: int, arg: int) -> Answer:
        state = self.state
        if cmd in (0, 5):
            return 0
        if cmd == 1:
            state.put(state.events.info[cpu] + 1, b"\0")  # evtchn_upcall_mask
            return 0
        if cmd == 2:
            state.read(cpu, arg, 4)
            raise Ended
        if cmd == 3:
            ports, count, _ = struct.unpack("<QI4xQ", state.read(cpu, arg, 24))
            if count > 128:
                raise Refused(EINVAL)
            if any(port > 4095 for (port,) in struct.iter_unpack("<I", state.read(cpu, ports, 4 * count))):
                raise Refused(EINVAL)
            return 0
        if cmd == 4:
            (domid,) = struct.unpack("<H", state.read(cpu, arg, 8)[:2])
            raise Refused(EPERM if domid in state.limit else ESRCH)
        raise Refused(EPERM if cmd == 7 else ENOSYS)

    def multicall(self, cpu: Cpu, calls: int, count: int) -> Answer:
        at = calls

        def carry_out(raw: bytes) -> None:
            nonlocal at
            number, _, *args = struct.unpack("<8Q", raw)
            answer = -EINVAL if number in (13, 23) else self.call(cpu, number, tuple(args))
            if answer in (None, REFUSED):
                self.state.write_unknown(cpu, at + 8, 8)
            else:
                assert answer is not None
                self.state.write(cpu, at + 8, struct.pack("<Q", answer & WORD))
            at += 64

        return self.each(cpu, calls, count, 64, carry_out, part=16)

    # -- what changes no memory but where it was told to write

    def quiet(self, _cpu: Cpu) -> Answer:
        return None

    def xen_version(self, cpu: Cpu, cmd: int, arg: int) -> Answer:
        length = {1: 16, 2: 144, 3: 1024, 4: 64, 5: 8, 6: 8, 8: 16}.get(cmd & LOW, 0)
        if length:
            if cmd & LOW == 6:
                self.state.read(cpu, arg, 8)
            self.state.write_unknown(cpu, arg, length)
        return None

    def console_io(self, cpu: Cpu, cmd: int, count: int, buffer: int) -> Answer:
        if cmd & LOW == 0:
            if count & LOW > 1 << 20:
                raise Refused(E2BIG)
            for at in range(0, count & LOW, PAGE):
                self.state.read(cpu, buffer + at, min(PAGE, (count & LOW) - at))
            return 0
        return None


GRANT_OPS: dict[int, tuple[str, int | None, Callable[[Rules, Cpu, list[int]], int], bool]] = {
    0: ("<QIIHhIQ", 4, Rules.map_grant, True),
    1: ("<QQIh2x", 3, Rules.unmap_grant, True),
    2: ("<H2xIh6xQ", 2, Rules.setup_table, False),
    4: ("<QH2xIh6x", 3, Rules.transfer, True),
    5: ("<QHH4xQHH4xHHh2x", 8, Rules.copy_grant, True),
    6: ("<H2xIIh2x", 3, Rules.query_size, False),
    8: ("<I", None, Rules.set_version, False),
    10: ("<H2xI", None, Rules.get_version, False),
}

CALLS: dict[int, Callable[..., Answer]] = {
    **dict.fromkeys((0, 3, 4, 5, 8, 9, 15, 21, 25, 28, 30, 33), Rules.quiet),
    1: Rules.mmu_update,
    2: Rules.set_gdt,
    10: Rules.update_descriptor,
    12: Rules.memory_op,
    13: Rules.multicall,
    14: Rules.update_va_mapping,
    17: Rules.xen_version,
    18: Rules.console_io,
    20: Rules.grant_table_op,
    22: Rules.update_va_mapping_otherdomain,
    24: Rules.vcpu_op,
    26: Rules.mmuext_op,
    29: Rules.sched_op,
    32: Rules.event_channel_op,
}
