"""memory_op: how many frames a domain has, which, and how it gets and gives them (xen/include/public/memory.h).

The frames' owners and references are frames.py's; what is said here is how many a domain may have, what an extent is,
and what happens when only a part can be done. Guest pointers are followed by calls/memory.py.

Not thread-safe: the hypervisor's lock is held around every call.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from minivmm.boot.e820 import E820_RAM, E820Entry
from minivmm.memory import PAGE_SIZE
from minivmm.xen import abi
from minivmm.xen.errors import HypercallError
from minivmm.xen.frame_owners import INVALID_M2P_ENTRY
from minivmm.xen.frame_words import PAGE_SHIFT
from minivmm.xen.memory_abi import XenMachphysMapping
from minivmm.xen.page_tables import PageTables

MAX_ORDER = 9  # log2 of the frames of an extent: what Xen allows a domain without devices (memop-max-order)
M2P_EXTENT = 512  # frames of 2 MiB
_WORD = (1 << 64) - 1


class Memory:
    """The reservations of all domains.

    "Increase or decrease the specified domain's memory reservation. Returns the number of extents successfully
    allocated or freed": those operations have no errors, only fewer extents than asked for.
    """

    def __init__(self, tables: PageTables) -> None:
        self.frames = tables.frames
        self.m2p_virt = abi.MACH2PHYS_VIRT_START
        """Where domains find the machine-to-physical table."""

    def add_domain(self, domid: int, max_pages: int) -> None:
        """A domain that may have `max_pages` frames."""
        self.frames.max_pages[domid] = max_pages

    def remove_domain(self, domid: int) -> None:
        """The domain is gone."""
        self.frames.max_pages.pop(domid, None)

    # -- more, and less

    def increase_reservation(self, domid: int, count: int, order: int = 0, address_bits: int = 0) -> list[int]:
        """XENMEM_increase_reservation. Returns the first mfns of up to `count` new extents of 2**order frames.

        `address_bits`: "Maximum # bits addressable by the user of the allocated region", 0 for no restriction.
        """
        if not 0 <= order <= MAX_ORDER:
            return []
        room = max(self.maximum_reservation(domid) - self.frames.pages[domid], 0)
        return self._allocate(domid, min(count, room >> order), order, address_bits)

    def populate_physmap(self, domid: int, pfns: Sequence[int], order: int = 0, address_bits: int = 0) -> list[int]:
        """XENMEM_populate_physmap: as increase_reservation, and "this command also updates the mach_to_phys translation
        table". Pfns are a paravirtual domain's own affair: it may name any."""
        mfns = self.increase_reservation(domid, len(pfns), order, address_bits)
        self._enter(pfns, mfns, order)
        return mfns

    def decrease_reservation(self, domid: int, mfns: Sequence[int], order: int = 0) -> int:
        """XENMEM_decrease_reservation. Returns how many extents were given back: it ends at the first that has a frame
        which is not the domain's, or is given back already.

        A frame in use - mapped, pinned, granted - is the domain's, and counts as such, until its last use ends.
        """
        if not 0 <= order <= MAX_ORDER:
            return 0
        for done, first in enumerate(mfns):
            for mfn in range(first, first + (1 << order)):
                try:
                    self.frames.free(domid, mfn)
                except HypercallError:
                    return done
                self.frames.set_machphys(mfn, INVALID_M2P_ENTRY)
        return len(mfns)

    def exchange(
        self, domid: int, mfns: Sequence[int], order: int, pfns: Sequence[int], out_order: int, address_bits: int = 0
    ) -> list[int]:
        """XENMEM_exchange, one indivisible part of it: all frames of the extents `mfns` against as many new ones, in
        extents of 2**out_order at `pfns`. Returns the new extents' mfns; their contents are zero.

        Raises HypercallError, and then has changed nothing: EINVAL for a frame that is in use or not the domain's,
        ENOMEM when there is no such memory. "Note that @in.address_bits is ignored and unused": it is the new one's.
        """
        frames = self.frames
        stolen: list[int] = []
        try:
            for first in mfns:
                for mfn in range(first, first + (1 << order)):
                    frames.steal(domid, mfn)
                    stolen.append(mfn)
            new = self._allocate(domid, len(pfns), out_order, address_bits)
            if len(new) < len(pfns):
                for first in new:
                    for mfn in range(first, first + (1 << out_order)):
                        frames.free(domid, mfn)
                raise HypercallError(errno.ENOMEM, f"no {len(pfns)} runs of {1 << out_order} frames")
        except HypercallError:
            for mfn in stolen:
                frames.give(domid, mfn)
            raise
        for mfn in stolen:
            frames.discard(mfn)
        self._enter(pfns, new, out_order)
        return new

    def _allocate(self, domid: int, count: int, order: int, address_bits: int) -> list[int]:
        frames = self.frames
        if not order and not address_bits:
            return [frames.allocate(domid) for _ in range(min(count, frames.free_frames))]
        end = len(frames.state)
        if address_bits:
            end = min(end, 1 << max(address_bits - PAGE_SHIFT, 0))
        return frames.allocate_runs(domid, count, order, end)

    def _enter(self, pfns: Sequence[int], mfns: Sequence[int], order: int) -> None:
        """The machine-to-physical entries of new extents."""
        for pfn, mfn in zip(pfns, mfns, strict=False):
            for page in range(1 << order):
                self.frames.set_machphys(mfn + page, pfn + page & _WORD)

    # -- what there is

    def current_reservation(self, domid: int) -> int:
        """XENMEM_current_reservation, in pages."""
        return self.frames.pages[domid]

    def maximum_reservation(self, domid: int) -> int:
        """XENMEM_maximum_reservation, in pages. What a domain has, where nobody said more."""
        return self.frames.max_pages.get(domid, self.frames.pages[domid])

    def maximum_ram_page(self) -> int:
        """XENMEM_maximum_ram_page: "the maximum machine frame number of mapped RAM in this system"."""
        return len(self.frames.state) - 1

    def maximum_gpfn(self, shared_info: int) -> int:
        """XENMEM_maximum_gpfn: "the maximum GFN in use by the specified domain", as a paravirtual one says itself.

        `shared_info` is a machine address.
        """
        info = abi.ARCH_SHARED_INFO.unpack(
            self.frames.memory.read(shared_info + abi.SharedInfo.ARCH, abi.ARCH_SHARED_INFO.size)
        )
        return max(info.max_pfn, 1) - 1

    def memory_map(self, domid: int) -> tuple[E820Entry, ...]:
        """XENMEM_memory_map: "the pseudo-physical memory map as it was when the domain was started". RAM, as much as
        the domain may come to have."""
        return (E820Entry(0, self.maximum_reservation(domid) * PAGE_SIZE, E820_RAM),)

    def machphys_mapping(self) -> XenMachphysMapping:
        """XENMEM_machphys_mapping: "the location in virtual address space of the machine_to_phys mapping table"."""
        size = len(self.frames.m2p_mfns) * PAGE_SIZE
        return XenMachphysMapping(self.m2p_virt, self.m2p_virt + size, self.maximum_ram_page())

    def machphys_mfn_list(self, max_extents: int) -> list[int]:
        """XENMEM_machphys_mfn_list: "a list of MFN bases of 2MB extents comprising the machine_to_phys mapping table",
        the last one perhaps only begun. "Fewer entries will be filled if the machphys table is smaller"."""
        return list(self.frames.m2p_mfns[::M2P_EXTENT][:max_extents])
