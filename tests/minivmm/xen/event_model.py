"""What event channels must do, said another way: connections are pairs, and memory is a copy that is predicted.

Every operation answers with Xen's errno (0 when it succeeds) and changes the model's own copy of each shared page, byte
by byte; the real pages must then equal the copies.
"""

from __future__ import annotations

from errno import EEXIST, EINVAL, ENOENT, ENOSPC, EPERM, ESRCH

SELF = 0x7FF0
PENDING, MASK = 2048, 2560
PER_VCPU = {0, 1, 7, 13}

End = tuple[int, int]  # domain, port


class EventModel:
    """Domains are {domid: (vcpus, last port)}; domain 0 may speak for the others."""

    def __init__(self, domains: dict[int, tuple[int, int]]) -> None:
        self.domains = dict(domains)
        self.pages = {domid: bytearray(4096) for domid in domains}
        self.notified: list[tuple[int, int]] = []
        self.pairs: set[frozenset[End]] = set()
        self.waiting: dict[End, int] = {}
        self.virqs: dict[End, tuple[int, int]] = {}  # virq, vCPU it was bound on
        self.ipis: set[End] = set()
        self.vcpu: dict[End, int] = {}  # every open port, and whom it notifies

    def peer(self, end: End) -> End | None:
        for pair in self.pairs:
            if end in pair:
                (other,) = pair - {end}
                return other
        return None

    def who(self, caller: int, named: int) -> int:
        return caller if named == SELF else named

    def fresh(self, domid: int) -> int:
        """The port the next allocation gets, 0 for none."""
        return next((port for port in range(1, self.domains[domid][1] + 1) if (domid, port) not in self.vcpu), 0)

    def is_port(self, domid: int, port: int) -> bool:
        return port <= self.domains[domid][1]

    def trust(self, caller: int, named: int) -> int:
        who = self.who(caller, named)
        if who not in self.domains:
            return ESRCH
        return 0 if caller in (who, 0) else EPERM

    # Operations: errno

    def alloc_unbound(self, caller: int, dom: int, remote: int) -> int:
        if error := self.trust(caller, dom):
            return error
        who = self.who(caller, dom)
        if not (port := self.fresh(who)):
            return ENOSPC
        self.waiting[who, port] = self.who(caller, remote)
        self.vcpu[who, port] = 0
        return 0

    def bind_interdomain(self, caller: int, remote: int, remote_port: int) -> int:
        there = self.who(caller, remote)
        if there not in self.domains:
            return ESRCH
        if not (port := self.fresh(caller)):
            return ENOSPC
        if self.waiting.get((there, remote_port)) != caller:
            return EINVAL
        del self.waiting[there, remote_port]
        self.pairs.add(frozenset({(there, remote_port), (caller, port)}))
        self.vcpu[caller, port] = 0
        self.arrive((caller, port))
        return 0

    def bind_virq(self, caller: int, virq: int, vcpu: int) -> int:
        if virq > 23 or (virq not in PER_VCPU and vcpu != 0):
            return EINVAL
        if vcpu >= self.domains[caller][0]:
            return ENOENT
        if any(end[0] == caller and bound == (virq, vcpu) for end, bound in self.virqs.items()):
            return EEXIST
        if not (port := self.fresh(caller)):
            return ENOSPC
        self.virqs[caller, port] = (virq, vcpu)
        self.vcpu[caller, port] = vcpu
        return 0

    def bind_ipi(self, caller: int, vcpu: int) -> int:
        if vcpu >= self.domains[caller][0]:
            return ENOENT
        if not (port := self.fresh(caller)):
            return ENOSPC
        self.ipis.add((caller, port))
        self.vcpu[caller, port] = vcpu
        return 0

    def close(self, caller: int, port: int) -> int:
        end = (caller, port)
        if end not in self.vcpu:
            return EINVAL
        if other := self.peer(end):
            self.pairs.remove(frozenset({end, other}))
            self.waiting[other] = caller
        del self.vcpu[end]
        self.waiting.pop(end, None)
        self.virqs.pop(end, None)
        self.ipis.discard(end)
        self.pages[caller][PENDING + port // 8] &= ~(1 << port % 8)
        return 0

    def send(self, caller: int, port: int) -> int:
        end = (caller, port)
        if other := self.peer(end):
            self.arrive(other)
        elif end in self.ipis:
            self.arrive(end)
        elif end not in self.waiting:
            return EINVAL
        return 0

    def bind_vcpu(self, caller: int, port: int, vcpu: int) -> int:
        if vcpu >= self.domains[caller][0]:
            return ENOENT
        end = (caller, port)
        fixed = end in self.ipis or self.virqs.get(end, (2, 0))[0] in PER_VCPU
        if end not in self.vcpu or fixed:
            return EINVAL
        self.vcpu[end] = vcpu
        return 0

    def unmask(self, caller: int, port: int) -> int:
        if not self.is_port(caller, port):
            return EINVAL
        page, byte, bit = self.pages[caller], port // 8, 1 << port % 8
        if (caller, port) in self.vcpu and page[MASK + byte] & bit:
            page[MASK + byte] &= ~bit
            if page[PENDING + byte] & bit:
                self.select((caller, port))
        return 0

    def reset(self, caller: int, dom: int) -> int:
        if error := self.trust(caller, dom):
            return error
        who = self.who(caller, dom)
        for domid, port in sorted(self.vcpu):
            if domid == who:
                self.close(who, port)
        return 0

    def remove(self, domid: int) -> None:
        self.reset(domid, SELF)
        del self.domains[domid], self.pages[domid]

    def raise_virq(self, domid: int, virq: int, vcpu: int) -> None:
        bound = (virq, vcpu if virq in PER_VCPU else 0)
        for end, what in self.virqs.items():
            if end[0] == domid and what == bound:
                self.arrive(end)

    # Delivery, on the copies

    def arrive(self, end: End) -> None:
        page, byte, bit = self.pages[end[0]], end[1] // 8, 1 << end[1] % 8
        if not page[PENDING + byte] & bit:
            page[PENDING + byte] |= bit
            if not page[MASK + byte] & bit:
                self.select(end)

    def select(self, end: End) -> None:
        domid, port = end
        page, info, word = self.pages[domid], self.vcpu[end] * 64, port // 64
        selector, bit = info + 8 + word // 8, 1 << word % 8
        if not page[selector] & bit:
            page[selector] |= bit
            if not page[info] & 1:
                page[info] |= 1
                self.notified.append((domid, self.vcpu[end]))

    def status(self, end: End) -> tuple[int, int, int, int]:
        """State, vCPU, and the two words of the union."""
        vcpu = self.vcpu.get(end, 0)
        if other := self.peer(end):
            return 2, vcpu, *other
        if end in self.waiting:
            return 1, vcpu, self.waiting[end], 0
        if end in self.virqs:
            return 4, vcpu, self.virqs[end][0], 0
        return (5 if end in self.ipis else 0), vcpu, 0, 0
