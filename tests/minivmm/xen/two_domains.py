"""Two small domains over a real frame table, as the handlers of hypercalls see them; no guest runs."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any, cast

from minivmm.memory import PAGE_SIZE, GuestMemory
from minivmm.tally import Tally
from minivmm.xen import grant_abi as xen
from minivmm.xen.calls.grants import grant_table_op
from minivmm.xen.calls.memory import memory_op
from minivmm.xen.errors import HypercallError
from minivmm.xen.frames import FrameTable
from minivmm.xen.grant_abi import GntMap, GrantOp
from minivmm.xen.grant_frames import GrantFrames
from minivmm.xen.grants import Grants
from minivmm.xen.guest_pointer import GuestPointers
from minivmm.xen.memory import Memory
from minivmm.xen.page_tables import PageTables
from minivmm.xen.recount import recount
from minivmm.xen.vcpu import VirtualCpu

FIRST = 0x100
PAGES = 24  # a domain has
MAX_PAGES = 40  # and may have
P, W, U = 1, 2, 4
LISTS = 0x0  # virtual addresses: an ordinary page for arguments,
ELEMENTS = 0x800  # with grant operations in its second half,
FREE = 0x10000  # one that nothing is mapped at,
TABLE = 0x20000  # the domain's grant table,
READ_ONLY = 0x30000  # and a page it cannot write to


class TwoDomains:
    """4 MiB of machine. Domain 1 and 2 run on tables `l4[domid]` to `l1[domid]`; `data[domid]` is left over."""

    def __init__(self) -> None:
        self.memory = GuestMemory(4 << 20)
        self.frames = FrameTable(self.memory, range(FIRST, 0x400))
        self.tables = PageTables(self.frames)
        self.memory_op = Memory(self.tables)
        self.grants = Grants(self.memory, GrantFrames(self.tables), self.copy_to_guest)
        self.at_start = self.frames.free_frames
        self.domains: dict[int, Any] = {}
        self.vcpus: dict[int, VirtualCpu] = {}
        self.shared_info: dict[int, int] = {}
        self.l1: dict[int, int] = {}
        self.l4: dict[int, int] = {}
        self.data: dict[int, list[int]] = {}
        for domid in (1, 2):
            self.create(domid)

    def create(self, domid: int) -> None:
        self.shared_info[domid] = self.frames.allocate_shared(domid)
        self.memory_op.add_domain(domid, MAX_PAGES)
        self.grants.add_domain(domid)
        l4, l3, l2, l1, lists, read_only, *data = (self.frames.allocate(domid) for _ in range(PAGES))
        for table, target in ((l4, l3), (l3, l2), (l2, l1)):
            self.memory.write_u64(table << 12, target << 12 | P | W)
        grant_table = self.grants.entry(domid, 0) >> 12
        for virtual, mfn, bits in ((LISTS, lists, P | W), (TABLE, grant_table, P | W), (READ_ONLY, read_only, P)):
            self.memory.write_u64(self.entry_at(l1, virtual), mfn << 12 | bits)
        self.tables.pin(domid, l4, 4)
        self.tables.new_baseptr(domid, l4)
        self.l1[domid], self.l4[domid], self.data[domid] = l1, l4, data
        domain = SimpleNamespace(
            domid=domid, shared_info=self.shared_info[domid] << 12, refused=Tally(), end=None, vcpus=[]
        )
        pages = GuestPointers(self.memory)
        pages.root = l4 << 12
        self.domains[domid] = domain
        self.vcpus[domid] = cast(VirtualCpu, SimpleNamespace(domain=domain, core=self, pages=pages, index=0))

    def destroy(self, domid: int) -> list[int]:
        """As the hypervisor does it. Returns what is not free yet."""
        del self.domains[domid], self.vcpus[domid]
        self.frames.free_shared(domid, self.shared_info[domid])
        self.tables.destroy(domid)
        self.grants.remove_domain(domid)
        self.memory_op.remove_domain(domid)
        return self.frames.frames_of(domid)

    def copy_to_guest(self, domid: int, pointer: int, data: bytes) -> None:
        self.vcpus[domid].pages.write(pointer, data)

    def let_others_in(self) -> None:
        """Between two parts of a long call: there are none."""

    @staticmethod
    def entry_at(l1: int, virtual: int) -> int:
        return l1 << 12 | virtual >> 12 << 3

    def entry(self, domid: int, virtual: int) -> int:
        return self.memory.read_u64(self.entry_at(self.l1[domid], virtual))

    def unmap(self, domid: int, virtual: int) -> None:
        self.tables.update_va_mapping(domid, virtual, 0)

    def write(self, domid: int, virtual: int, data: bytes) -> None:
        self.vcpus[domid].pages.write(virtual, data)

    def write_numbers(self, domid: int, virtual: int, numbers: list[int]) -> None:
        self.write(domid, virtual, struct.pack(f"<{len(numbers)}Q", *(number & (1 << 64) - 1 for number in numbers)))

    def numbers(self, domid: int, virtual: int, count: int) -> list[int]:
        return list(struct.unpack(f"<{count}Q", self.vcpus[domid].pages.read(virtual, 8 * count)))

    def memory_call(self, domid: int, cmd: int, arg: int) -> int:
        """The value for RAX."""
        try:
            return memory_op(self.vcpus[domid], cmd, arg)
        except HypercallError as error:
            return -error.errno

    def grant_call(self, domid: int, cmd: int, elements: int, count: int) -> int:
        try:
            return grant_table_op(self.vcpus[domid], cmd, elements, count)
        except HypercallError as error:
            return -error.errno

    def m2p(self, mfn: int) -> int:
        return self.memory.read_u64(self.frames.m2p_mfns.start * PAGE_SIZE + 8 * mfn)

    def check(self) -> None:
        assert recount(self.tables) == []

    def close(self) -> None:
        """The frames come back, whatever was done with them."""
        self.check()
        for domid in list(self.domains):
            self.destroy(domid)
            self.check()
        assert self.frames.free_frames == self.at_start
        assert not +self.frames.pages
        assert not +self.frames.held
        assert not self.tables.granted
        self.memory.close()


def grant(machine: TwoDomains, granter: int, ref: int, flags: int, to: int, mfn: int) -> None:
    """As the domain does it: in its own table."""
    machine.memory.write(machine.grants.entry(granter, ref), struct.pack("<HHI", flags, to, mfn & 0xFFFFFFFF))


def map_grant(
    machine: TwoDomains, caller: int, dom: int, ref: int, host: int, flags: int = GntMap.HOST_MAP
) -> xen.MapGrantRef:
    machine.write(caller, ELEMENTS, xen.MAP_GRANT_REF.pack(xen.MapGrantRef(host, flags, ref, dom, 77, 0, 0)))
    assert machine.grant_call(caller, GrantOp.MAP_GRANT_REF, ELEMENTS, 1) == 0
    return machine.vcpus[caller].pages.read_record(ELEMENTS, xen.MAP_GRANT_REF)


def unmap_grant(machine: TwoDomains, caller: int, host: int, handle: int) -> int:
    machine.write(caller, ELEMENTS, xen.UNMAP_GRANT_REF.pack(xen.UnmapGrantRef(host, 0, handle, 77)))
    assert machine.grant_call(caller, GrantOp.UNMAP_GRANT_REF, ELEMENTS, 1) == 0
    return machine.vcpus[caller].pages.read_record(ELEMENTS, xen.UNMAP_GRANT_REF).status
