"""Mistakes somebody might make in the hypervisor, one line each: the search in test_hypercalls_model.py finds them."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import NamedTuple

import pytest

from minivmm.xen import calls
from minivmm.xen.calls import context, lists, paging, schedule, segments
from minivmm.xen.calls import grants as grant_calls
from minivmm.xen.calls import memory as memory_calls
from minivmm.xen.core import Core
from minivmm.xen.events import EventChannels, EventDomain
from minivmm.xen.frames import FrameTable
from minivmm.xen.grant_frames import GrantFrames
from minivmm.xen.grant_table import GrantTable
from minivmm.xen.grants import Grants
from minivmm.xen.guest_pointer import GuestPointers
from minivmm.xen.hypervisor import Hypervisor
from minivmm.xen.memory import Memory
from minivmm.xen.page_tables import PageTables
from tests.minivmm.xen.seeded import mistaken


class Mistake(NamedTuple):
    """`line` of a method or function, as it is, and as somebody might have written it."""

    name: str
    owner: type | ModuleType
    method: str
    line: str
    mistake: str

    def make(self, patch: pytest.MonkeyPatch) -> None:
        right = getattr(self.owner, self.method)
        wrong = mistaken(right, self.line, self.mistake)
        patch.setattr(self.owner, self.method, wrong)
        if isinstance(self.owner, ModuleType):
            for user in [m for name, m in sys.modules.items() if name.startswith("minivmm.xen")]:
                if getattr(user, self.method, None) is right:
                    patch.setattr(user, self.method, wrong)
        for number, entry in calls.TABLE.items():
            if entry.handler is right:
                patch.setitem(calls.TABLE, number, entry._replace(handler=wrong))


# What takes seconds to find.
SELDOM = {
    "a shared frame is given back",
    "unpinned twice",
    "Xen's slots change",
    "a grant is entered anywhere",
    "unmapped elsewhere",
    "a refused mapping holds on",
    "anybody binds",
    "a virq twice",
    "a port without bound",
    "a refused exchange costs frames",
    "exchanged frames are lost",
    "a list within a list",
    "frames nobody is told of",
    "a descriptor stays old",
    "a poll of no port",
}

MISTAKES = [
    # frames
    Mistake("a type changes in use", FrameTable, "take", "if (word & TYPE) >> TYPE_SHIFT != page_type:", "if False:"),
    Mistake("another's frame is taken", FrameTable, "owned", "if word & OWNER != domid:", "if False:"),
    Mistake("another's frame is mapped", FrameTable, "take_leaf", "or self.state[mfn] & OWNER != domid", ""),
    Mistake("a frame number without bound", FrameTable, "owned", "not 0 <= mfn < len(self.state) or", ""),
    Mistake("a refused table stays one", FrameTable, "take", "self.state[mfn] -= BOTH", "pass"),
    Mistake("an old table keeps references", FrameTable, "drop_typed", "self._invalidate(mfn, page_type)", "pass"),
    Mistake(
        "secrets reach the next owner", FrameTable, "discard", "self.memory.write(mfn << PAGE_SHIFT, _ZEROES)", "pass"
    ),
    Mistake("a shared frame is given back", FrameTable, "free", "or word & SHARED", ""),
    Mistake("a frame in use is stolen", FrameTable, "steal", "word >> REF_SHIFT != 1 or", ""),
    Mistake("a new table may be written", FrameTable, "take", "self.forget(mfn)", "pass"),
    Mistake("Xen's slots are the guest's", FrameTable, "_checked_entries", "table &= ~HYPERVISOR_LANES", "pass"),
    # page tables
    Mistake("pinned twice", PageTables, "pin", "if self.frames.owned(domid, mfn) & PINNED:", "if False:"),
    Mistake("unpinned twice", PageTables, "unpin", "if not word & PINNED:", "if False:"),
    Mistake("an update is not checked", PageTables, "update_entry", "frames.take_entry(domid, value, level)", "pass"),
    Mistake("an update keeps the old", PageTables, "update_entry", "frames.drop_entry(old, level)", "pass"),
    Mistake(
        "Xen's slots change", PageTables, "update_entry", "address >> 3 & ENTRIES - 1 in HYPERVISOR_SLOTS", "False"
    ),
    Mistake("a GDT is writable", PageTables, "_set_descriptors", "PageType.SEGDESC", "PageType.WRITABLE"),
    Mistake("any descriptor", PageTables, "update_descriptor", "checked(descriptor & _WORD)", "descriptor"),
    Mistake("another's machphys entry", PageTables, "mmu_update", "self.frames.owned(domid, mfn)", "pass"),
    Mistake("a grant is entered anywhere", PageTables, "map_granted", "self._check_l1(domid, address)", "pass"),
    Mistake("any entry is unmapped", PageTables, "unmap_granted", "& SAME", "& 0"),
    Mistake("a dead vCPU keeps its tables", PageTables, "destroy", "self.release_vcpu(domid, vcpu)", "pass"),
    # grants
    Mistake("anybody's grant", GrantTable, "_claim", "or word >> 16 != user", ""),
    Mistake("a grant of two users", GrantTable, "pin", "active.user != user or", ""),
    Mistake("a read-only grant is written", GrantTable, "_claim", "if writable and word & Gtf.READONLY:", "if False:"),
    Mistake("a table is granted writable", GrantTable, "_refer", "if writable:", "if False:"),
    Mistake("a writer stays", GrantTable, "unpin", "self._frames.put_writable(self.domid, active.mfn)", "pass"),
    Mistake(
        "the dead keep mappings",
        GrantTable,
        "kill",
        "mapping.granter.unpin(mapping.ref, writable=mapping.writable)",
        "pass",
    ),
    Mistake(
        "a grant table without end",
        GrantTable,
        "entry",
        "if not 0 <= ref < len(self.shared) * ENTRIES_A_FRAME:",
        "if False:",
    ),
    Mistake(
        "a transfer nobody awaits", GrantTable, "commit_transfer", "word != Gtf.ACCEPT_TRANSFER | giver << 16", "False"
    ),
    Mistake(
        "a transfer over the limit",
        GrantFrames,
        "give",
        "frames.pages[domid] >= frames.max_pages.get(domid, len(frames.state))",
        "False",
    ),
    Mistake(
        "a copy past the page",
        Grants,
        "copy",
        "max(args.source_offset, args.dest_offset) + args.len > PAGE_SIZE",
        "False",
    ),
    Mistake("a copy of another's frame", Grants, "_copy_side", "if domid != Domid.SELF:", "if False:"),
    Mistake("a copy into a table", Grants, "_claim_own", "if writable:", "if False:"),
    Mistake(
        "another's grant table",
        Grants,
        "_target",
        "table.domid != caller and not self._table(caller).privileged",
        "False",
    ),
    Mistake("unmapped elsewhere", Grants, "unmap_grant_ref", "args.host_addr != mapping.host_addr", "False"),
    Mistake(
        "a refused mapping holds on", Grants, "map_grant_ref", "granter.unpin(args.ref, writable=writable)", "pass"
    ),
    # events
    Mistake("anybody binds", EventChannels, "bind_interdomain", "or peer.remote_dom != caller", ""),
    Mistake(
        "a closed port's event stays",
        EventChannels,
        "_close",
        "self._atomic.test_and_clear_bit(*_bit(domain.shared_info + SharedInfo.EVTCHN_PENDING, port))",
        "pass",
    ),
    Mistake(
        "a peer is not told",
        EventChannels,
        "_close",
        "peer.state, peer.remote_dom, peer.remote_port = PortState.UNBOUND, domain.domid, 0",
        "pass",
    ),
    Mistake(
        "another's ports",
        EventChannels,
        "_permit",
        "target.domid != caller and not self._domain(caller).privileged",
        "False",
    ),
    Mistake("a virq twice", EventChannels, "bind_virq", "(args.vcpu, args.virq) in domain.virqs", "False"),
    Mistake("a vCPU that is none", EventDomain, "check_vcpu", "if not 0 <= vcpu < len(self.vcpu_info):", "if False:"),
    Mistake("a port without bound", EventDomain, "channel", "if not 0 <= port <= self.max_port:", "if False:"),
    Mistake("vcpu_info moves twice", EventChannels, "register_vcpu_info", "vcpu in domain.registered or", ""),
    # memory
    Mistake("more than it may have", Memory, "increase_reservation", "room >> order", "1 << 20"),
    Mistake(
        "given back, still known",
        Memory,
        "decrease_reservation",
        "self.frames.set_machphys(mfn, INVALID_M2P_ENTRY)",
        "pass",
    ),
    Mistake("a refused exchange costs frames", Memory, "exchange", "frames.give(domid, mfn)", "pass"),
    Mistake("exchanged frames are lost", Memory, "exchange", "frames.discard(mfn)", "pass"),
    Mistake("high memory for low", Memory, "_allocate", "min(end, 1 << max(address_bits - PAGE_SHIFT, 0))", "end"),
    # calls
    Mistake(
        "in another's name", lists, "own", "if domid & 0xFFFF not in (Domid.SELF, vcpu.domain.domid):", "if False:"
    ),
    Mistake("a list without end", lists, "checked", "if count > MAX_ENTRIES:", "if False:"),
    Mistake("a list within a list", calls, "multicall", "entry.op in (Hypercall.MULTICALL, Hypercall.IRET)", "False"),
    Mistake("the new root is not loaded", paging, "_operate", "vcpu.load_root(operation.arg1)", "pass"),
    Mistake(
        "a table is cleared",
        paging,
        "_write_page",
        "frames.take(vcpu.domain.domid, mfn, PageType.WRITABLE)",
        "frames.get_page(vcpu.domain.domid, mfn); frames.state[mfn] += 1 << 21",
    ),
    Mistake(
        "another's page is copied",
        paging,
        "_operate",
        "vcpu.core.frames.owned(domid, operation.arg2)",
        "pass",
    ),
    Mistake("frames nobody is told of", memory_calls, "_check_writable", "vcpu.pages.write(address, raw)", "pass"),
    Mistake(
        "exchange without sums",
        memory_calls,
        "_exchange",
        "record.in_nr_extents << order != record.out_nr_extents << out_order",
        "False",
    ),
    Mistake("a grant call without answer", grant_calls, "grant_table_op", "vcpu.pages.write(at, asked)", "pass"),
    Mistake("an LDT anywhere", segments, "set_ldt", "or address % PAGE_SIZE", ""),
    Mistake(
        "a descriptor stays old",
        segments,
        "update_descriptor",
        "other.cpu.store_descriptor(page * ENTRIES + address % PAGE_SIZE // 8, stored)",
        "pass",
    ),
    Mistake("a refused vCPU holds on", context, "initialise", "core.tables.release_vcpu(domid, target.index)", "pass"),
    Mistake("a vCPU begins twice", context, "initialise", "if target.initialised:", "if False:"),
    Mistake(
        "a refused vcpu_info holds on",
        schedule,
        "_register_vcpu_info",
        "core.frames.put_page_type(asked.mfn, PageType.WRITABLE)",
        "pass",
    ),
    Mistake("a poll of no port", schedule, "_poll", "events.is_pending(domid, port)", "False and port"),
    # pointers, other processors, the end
    Mistake("read-only memory is written", GuestPointers, "write", "walk.WRITABLE", "walk.READABLE"),
    Mistake(
        "an address that is none",
        GuestPointers,
        "_translate",
        "is_canonical(address)",
        "True",
    ),
    Mistake("half of it is written", GuestPointers, "_pieces", "length - count", "0"),
    Mistake("another CPU is not flushed", Core, "shoot_down", "other.cpu.flush()", "pass"),
    Mistake("a CPU comes back with the old", Core, "shoot_down", "if other is not vcpu:", "if other.up:"),
    Mistake("another CPU runs meanwhile", Core, "shoot_down", "self.hold_others()", "pass"),
    Mistake("a stored entry stays cached", Core, "_store_entry", "self._stale = True", "pass"),
    Mistake("a frame stays cached", Core, "_forget", "self.shoot_down()", "pass"),
    Mistake(
        "held frames outlive the domain",
        Hypervisor,
        "_let_go",
        "core.frames.put_page_type(mfn, PageType.WRITABLE)",
        "pass",
    ),
    Mistake("timers outlive the domain", Hypervisor, "_let_go", "core.timers.cancel((vcpu, timer))", "pass"),
    Mistake("ports outlive the domain", Hypervisor, "_let_go", "core.events.remove_domain(domid)", "pass"),
    Mistake("its limit outlives the domain", Memory, "remove_domain", "self.frames.max_pages.pop(domid, None)", "pass"),
]
