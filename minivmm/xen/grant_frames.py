"""The frame table as grants see it: references held for a grant, and the page-table entries a grant makes.

A domain maps another's frame through here and in no other way: mmu_update and a page table that is validated refuse
every foreign frame, granted or not (frames.take_leaf). So each such entry is one that a grant entered, at an address
that is known (PageTables.granted), and a recount can hold the one against the other.
"""

from __future__ import annotations

import errno

from minivmm.x86.paging import Pte
from minivmm.xen.errors import HypercallError
from minivmm.xen.frame_owners import INVALID_M2P_ENTRY
from minivmm.xen.frame_words import PAGE_SHIFT, PageType
from minivmm.xen.grant_abi import GUEST_AVAIL0, GntMap
from minivmm.xen.page_tables import PageTables

# What a grant's entry is, as Xen makes it. Always user (every mapping of a domain is), whatever application_map says;
# accessed and dirty, so that no processor has to write to it; never executable.
ENTRY = Pte.PRESENT | Pte.USER | Pte.ACCESSED | Pte.DIRTY | 1 << 63
AVAILABLE_SHIFT = 9  # PTE bits 9 to 11 are the guest's; it may have the first three of its 16 flag bits in them
AVAILABLE = 7


class GrantFrames:
    """`Frames` of grant_table.py."""

    def __init__(self, tables: PageTables) -> None:
        self._tables = tables
        self._frames = tables.frames
        self.vcpu = 0

    def get_page(self, domid: int, mfn: int) -> None:
        """Keeps the frame the domain's."""
        self._frames.get_page(domid, mfn)

    def put_page(self, _domid: int, mfn: int) -> None:
        """Gives that back."""
        self._frames.put_page(mfn)

    def get_writable(self, domid: int, mfn: int) -> None:
        """Keeps the frame ordinary memory: no page table, no descriptors."""
        self._frames.get_page_type(domid, mfn, PageType.WRITABLE)

    def put_writable(self, _domid: int, mfn: int) -> None:
        """Gives that back."""
        self._frames.put_page_type(mfn, PageType.WRITABLE)

    def map_grant(self, domid: int, mfn: int, host_addr: int, flags: int) -> None:
        """Enters the frame at `host_addr`. Raises HypercallError when there is no L1 entry of the domain's."""
        entry = mfn << PAGE_SHIFT | ENTRY | (flags >> GUEST_AVAIL0 & AVAILABLE) << AVAILABLE_SHIFT
        if not flags & GntMap.READONLY:
            entry |= Pte.WRITABLE
        self._tables.map_granted(domid, self._entry_address(domid, host_addr, flags), entry)

    def unmap_grant(self, domid: int, mfn: int, host_addr: int, flags: int) -> None:
        """Takes the frame out again. Raises HypercallError when `host_addr` does not map it any more."""
        address = self._entry_address(domid, host_addr, flags)
        self._tables.unmap_granted(domid, address, mfn, not flags & GntMap.READONLY)

    def _entry_address(self, domid: int, host_addr: int, flags: int) -> int:
        """The machine address of the L1 entry that `host_addr` means: itself, or what maps that virtual address in the
        vCPU's kernel address space."""
        if flags & GntMap.CONTAINS_PTE:
            return host_addr
        return self._tables.entry_address(domid, host_addr, self.vcpu)

    def allocate_shared(self, domid: int) -> int:
        """A frame of a grant table. Raises HypercallError(ENOMEM)."""
        return self._frames.allocate_shared(domid)

    def free_shared(self, domid: int, mfn: int) -> None:
        """Gives it back."""
        self._frames.free_shared(domid, mfn)

    def steal(self, domid: int, mfn: int) -> None:
        """Takes a frame nobody uses from its domain. Raises HypercallError(EINVAL)."""
        self._frames.steal(domid, mfn)

    def give(self, domid: int, mfn: int) -> None:
        """Makes a stolen frame the domain's; which pfn it is, is for the domain to say. Raises HypercallError(ENOMEM)
        when it has as many as it may have."""
        frames = self._frames
        if frames.pages[domid] >= frames.max_pages.get(domid, len(frames.state)):
            raise HypercallError(
                errno.ENOMEM, f"domain {domid} may not have more than {frames.max_pages[domid]} frames"
            )
        frames.give(domid, mfn)
        frames.set_machphys(mfn, INVALID_M2P_ENTRY)

    def discard(self, mfn: int) -> None:
        """A stolen frame is nobody's."""
        self._frames.discard(mfn)
