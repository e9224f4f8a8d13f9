"""The sub-operations of memory_op and their structures: xen/include/public/memory.h.

Checked against the header by a test, as abi.py is.
"""

from __future__ import annotations

from typing import NamedTuple

from minivmm.layout import Layout


class MemoryOp:
    """XENMEM_*."""

    INCREASE_RESERVATION = 0
    DECREASE_RESERVATION = 1
    MAXIMUM_RAM_PAGE = 2
    CURRENT_RESERVATION = 3
    MAXIMUM_RESERVATION = 4
    MACHPHYS_MFN_LIST = 5
    POPULATE_PHYSMAP = 6
    ADD_TO_PHYSMAP = 7
    MEMORY_MAP = 9
    MACHINE_MEMORY_MAP = 10
    EXCHANGE = 11
    MACHPHYS_MAPPING = 12
    SET_MEMORY_MAP = 13
    MAXIMUM_GPFN = 14
    REMOVE_FROM_PHYSMAP = 15
    MACHPHYS_COMPAT_MFN_LIST = 25


XENMEMF_POPULATE_ON_DEMAND = 1 << 16  # of mem_flags


class XenMemoryReservation(NamedTuple):
    """struct xen_memory_reservation."""

    extent_start: int  # handle of pfns, or of mfns to give up
    nr_extents: int
    extent_order: int  # log2 of an extent's pages
    mem_flags: int
    domid: int


XEN_MEMORY_RESERVATION = Layout("<QQIIH6x", XenMemoryReservation)


class XenMemoryExchange(NamedTuple):
    """struct xen_memory_exchange, its two reservations field by field."""

    in_extent_start: int
    in_nr_extents: int
    in_extent_order: int
    in_mem_flags: int
    in_domid: int
    out_extent_start: int
    out_nr_extents: int
    out_extent_order: int
    out_mem_flags: int
    out_domid: int
    nr_exchanged: int


XEN_MEMORY_EXCHANGE = Layout("<QQIIH6xQQIIH6xQ", XenMemoryExchange)


class XenMemoryDomain(NamedTuple):
    """struct xen_memory_domain."""

    domid: int


XEN_MEMORY_DOMAIN = Layout("<H", XenMemoryDomain)


class XenMachphysMfnList(NamedTuple):
    """struct xen_machphys_mfn_list."""

    max_extents: int
    extent_start: int  # handle of mfns
    nr_extents: int


XEN_MACHPHYS_MFN_LIST = Layout("<I4xQI4x", XenMachphysMfnList)


class XenMachphysMapping(NamedTuple):
    """struct xen_machphys_mapping: where the machine-to-physical table is mapped."""

    v_start: int
    v_end: int
    max_mfn: int


XEN_MACHPHYS_MAPPING = Layout("<QQQ", XenMachphysMapping)


class XenMemoryMap(NamedTuple):
    """struct xen_memory_map: an e820 table."""

    nr_entries: int
    buffer: int  # handle of e820 entries, 20 bytes each


XEN_MEMORY_MAP = Layout("<I4xQ", XenMemoryMap)
