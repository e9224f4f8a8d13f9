"""What grants must do, said another way: a list of uses, and copies of the pages that are predicted byte by byte.

`FrameOwner` stands in for the frame table behind the grants, and counts; `GrantModel` answers each operation with its
GNTST_ status before the real one is made.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from errno import EBUSY, EINVAL, ENOMEM

from minivmm.xen.errors import HypercallError

SELF = 0x7FF0
PAGE = 4096
REFUSED_ADDRESSES = (0, 0xBAD000)
OKAY, GENERAL, BAD_DOMAIN, BAD_REF, BAD_HANDLE, NO_DEVICE, DENIED, BAD_PAGE, BAD_COPY = (
    0,
    -1,
    -2,
    -3,
    -4,
    -7,
    -8,
    -9,
    -10,
)


class FrameOwner:
    """Owners, references and mappings of machine frames 16..63."""

    def __init__(self) -> None:
        self.free = list(range(63, 15, -1))
        self.owner: dict[int, int] = {}
        self.tables: set[int] = set()  # page tables: never writable
        self.shared: set[int] = set()
        self.references: Counter[int] = Counter()
        self.writers: Counter[int] = Counter()
        self.mapped: dict[tuple[int, int], tuple[int, int]] = {}
        self.vcpu = 0
        self.limit = 6  # data frames a domain may own

    def allocate(self, domid: int) -> int:
        if not self.free:
            raise HypercallError(ENOMEM, "no frame left")
        mfn = self.free.pop()
        self.owner[mfn] = domid
        return mfn

    def end(self, domid: int) -> None:
        """The domain's page tables and frames go; what is referenced stays, nobody's."""
        self.mapped = {place: what for place, what in self.mapped.items() if place[0] != domid}
        for mfn in [mfn for mfn, owner in self.owner.items() if owner == domid]:
            del self.owner[mfn]
            self.tables.discard(mfn)
            if not self.references[mfn]:
                self.free.append(mfn)

    def get_page(self, domid: int, mfn: int) -> None:
        if self.owner.get(mfn) != domid:
            raise HypercallError(EINVAL, f"frame {mfn} is not of domain {domid}")
        self.references[mfn] += 1

    def put_page(self, domid: int, mfn: int) -> None:
        assert self.references[mfn] > 0
        assert self.owner.get(mfn, domid) == domid
        self.references[mfn] -= 1
        if not self.references[mfn] and mfn not in self.owner:
            self.free.append(mfn)

    def get_writable(self, domid: int, mfn: int) -> None:
        assert self.owner[mfn] == domid
        if mfn in self.tables:
            raise HypercallError(EINVAL, f"frame {mfn} is a page table")
        self.writers[mfn] += 1

    def put_writable(self, domid: int, mfn: int) -> None:
        assert self.writers[mfn] > 0
        assert self.owner.get(mfn, domid) == domid
        self.writers[mfn] -= 1

    def map_grant(self, domid: int, mfn: int, host_addr: int, flags: int) -> None:
        if host_addr in REFUSED_ADDRESSES or (domid, host_addr) in self.mapped:
            raise HypercallError(EINVAL, f"{host_addr:#x} cannot be mapped")
        self.mapped[domid, host_addr] = (mfn, flags)

    def unmap_grant(self, domid: int, mfn: int, host_addr: int, flags: int) -> None:
        if self.mapped.get((domid, host_addr)) != (mfn, flags):
            raise HypercallError(EINVAL, f"{host_addr:#x} is not that mapping")
        del self.mapped[domid, host_addr]

    def allocate_shared(self, domid: int) -> int:
        if not self.free:
            raise HypercallError(ENOMEM, f"no frame for the grant table of domain {domid}")
        mfn = self.free.pop()
        self.shared.add(mfn)
        return mfn

    def free_shared(self, _domid: int, mfn: int) -> None:
        self.shared.remove(mfn)
        self.free.append(mfn)

    def steal(self, domid: int, mfn: int) -> None:
        if self.owner.get(mfn) != domid or self.references[mfn] or mfn in self.tables:
            raise HypercallError(EBUSY, f"frame {mfn} cannot leave domain {domid}")
        del self.owner[mfn]

    def give(self, domid: int, mfn: int) -> None:
        if self.full(domid):
            raise HypercallError(ENOMEM, f"domain {domid} has frames enough")
        self.owner[mfn] = domid

    def full(self, domid: int) -> bool:
        return list(self.owner.values()).count(domid) >= self.limit

    def discard(self, mfn: int) -> None:
        self.free.append(mfn)


@dataclass(eq=False)
class Table:
    """One life of a domain as a granter. `page` is the mfn of its first frame."""

    domid: int
    page: int
    contents: bytearray
    alive: bool = True


@dataclass(eq=False)
class Use:
    """One use of a grant that lasts: a mapping."""

    table: Table
    ref: int
    user: int
    mfn: int
    writable: bool
    host_addr: int


class GrantModel:
    """One grant frame (512 entries) a domain; more are never set up here."""

    def __init__(self, frames: FrameOwner) -> None:
        self.frames = frames
        self.tables: dict[int, Table] = {}
        self.buried: list[Table] = []  # dead and still in use
        self.uses: list[Use] = []
        self.handles: dict[tuple[int, int], Use] = {}

    def admit(self, domid: int, page: int) -> None:
        self.tables[domid] = Table(domid, page, bytearray(PAGE))

    def end(self, domid: int) -> None:
        for name in [name for name in self.handles if name[0] == domid]:
            self.finish(self.handles.pop(name))
        table = self.tables.pop(domid)
        table.alive = False
        self.buried.append(table)
        self.sweep()

    def sweep(self) -> None:
        self.buried = [table for table in self.buried if any(use.table is table for use in self.uses)]

    def current(self, table: Table, ref: int) -> list[Use]:
        return [use for use in self.uses if use.table is table and use.ref == ref]

    def begin(self, table: Table, ref: int, user: int, writable: bool, whole: bool, host: int = 0) -> Use | int:
        """A use, or the status of the refusal."""
        if ref >= 512:
            return BAD_REF
        uses = self.current(table, ref)
        if any(use.user != user for use in uses):
            return GENERAL
        flags, domid, frame = struct.unpack_from("<HHI", table.contents, ref * 8)
        if not uses or (writable and not any(use.writable for use in uses)):
            permits = flags & 3 == 1 and domid == user and not (whole and flags & 0x100)
            if not permits or (writable and flags & 4):
                return GENERAL
            table.contents[ref * 8] |= 0x18 if writable else 8
        use = Use(table, ref, user, uses[0].mfn if uses else frame, writable, host)
        self.uses.append(use)
        status = OKAY
        if self.frames.owner.get(use.mfn) != table.domid:
            status = BAD_PAGE
        elif writable and use.mfn in self.frames.tables:
            status = GENERAL
        if status:
            self.finish(use)
            return status
        return use

    def finish(self, use: Use) -> None:
        self.uses.remove(use)
        left = self.current(use.table, use.ref)
        if use.writable and not any(other.writable for other in left):
            use.table.contents[use.ref * 8] &= ~0x10
        if not left:
            use.table.contents[use.ref * 8] &= ~0x08
        self.sweep()

    def map(self, caller: int, dom: int, ref: int, flags: int, host: int) -> Use | int:
        if flags & 3 == 0:
            return BAD_REF
        if flags & 1:
            return NO_DEVICE
        if dom not in self.tables:
            return BAD_DOMAIN
        use = self.begin(self.tables[dom], ref, caller, not flags & 4, True, host)
        if isinstance(use, Use) and (host in REFUSED_ADDRESSES or (caller, host) in self.frames.mapped):
            self.finish(use)
            return GENERAL
        return use

    def unmap(self, caller: int, handle: int, host: int) -> int:
        use = self.handles.get((caller, handle))
        if use is None:
            return BAD_HANDLE
        if host and host != use.host_addr:
            return GENERAL
        if host:
            del self.handles[caller, handle]
            self.finish(use)
        return OKAY

    def side(self, caller: int, dom: int, name: int, by_ref: int, writable: bool) -> Use | int:
        """One side of a copy: the use of a grant, or of one's own frame, which no entry knows of."""
        if by_ref:
            return self.begin(self.tables[caller if dom == SELF else dom], name, caller, writable, False)
        if self.frames.owner.get(name) != caller:
            return BAD_PAGE
        if writable and name in self.frames.tables:
            return GENERAL
        return Use(self.tables[caller], -1, caller, name, writable, 0)

    def copy(
        self, caller: int, ends: tuple[tuple[int, int, int], ...], length: int, flags: int
    ) -> tuple[int, list[int]]:
        """Status, and the frames from and to which bytes go."""
        for number, (dom, _, _) in enumerate(ends):
            by_ref = flags >> number & 1
            if not by_ref and dom != SELF:
                return DENIED, []
            if by_ref and dom != SELF and dom not in self.tables:
                return BAD_DOMAIN, []
        held: list[Use] = []
        status = OKAY
        for number, (dom, name, _) in enumerate(ends):
            use = self.side(caller, dom, name, flags >> number & 1, number == 1)
            if not isinstance(use, Use):
                status = use
                break
            held.append(use)
        if not status and any(offset + length > PAGE for _, _, offset in ends):
            status = BAD_COPY
        for use in reversed(held):
            if use in self.uses:
                self.finish(use)
        return status, [use.mfn for use in held]

    def transfer(self, caller: int, mfn: int, dom: int, ref: int) -> int:
        frames = self.frames
        if frames.owner.get(mfn) != caller or frames.references[mfn] or mfn in frames.tables:
            return BAD_PAGE
        if dom not in self.tables:
            return BAD_DOMAIN
        if ref >= 512:
            return BAD_REF
        contents = self.tables[dom].contents
        owned = list(frames.owner.values()).count(dom) - (dom == caller)
        if struct.unpack_from("<HH", contents, ref * 8) != (2, caller) or owned >= frames.limit:
            return GENERAL
        struct.pack_into("<HHI", contents, ref * 8, 2 | 12, caller, mfn)
        return OKAY
