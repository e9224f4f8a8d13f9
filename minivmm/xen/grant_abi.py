"""xen/grant_table.h for x86-64 under its own names: version 1 entries and the operations' structures.

The tests compile these numbers against Xen's header.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from minivmm.layout import Layout


class GrantEntry(NamedTuple):
    """struct grant_entry_v1. The guest writes it, the hypervisor two bits of `flags`."""

    flags: int  # Gtf
    domid: int  # to whom
    frame: int  # mfn granted, or received


class Gtf:
    """GTF_*: flags of a grant entry."""

    INVALID = 0
    PERMIT_ACCESS = 1
    ACCEPT_TRANSFER = 2
    TYPE_MASK = 3
    READONLY = 1 << 2
    READING = 1 << 3  # set by the hypervisor while in use
    WRITING = 1 << 4  # set by the hypervisor while in use for writing
    SUB_PAGE = 1 << 8
    TRANSFER_COMMITTED = 1 << 2
    TRANSFER_COMPLETED = 1 << 3


READING_BIT = 3  # _GTF_reading
WRITING_BIT = 4  # _GTF_writing
TRANSFER_COMPLETED_BIT = 3  # _GTF_transfer_completed
NR_RESERVED_ENTRIES = 8
RESERVED_CONSOLE = 0
RESERVED_XENSTORE = 1


class GrantOp(IntEnum):
    """GNTTABOP_*: the first argument of grant_table_op."""

    MAP_GRANT_REF = 0
    UNMAP_GRANT_REF = 1
    SETUP_TABLE = 2
    TRANSFER = 4
    COPY = 5
    QUERY_SIZE = 6
    SET_VERSION = 8
    GET_VERSION = 10


class GntMap:
    """GNTMAP_*: flags of a mapping."""

    DEVICE_MAP = 1 << 0
    HOST_MAP = 1 << 1
    READONLY = 1 << 2
    APPLICATION_MAP = 1 << 3
    CONTAINS_PTE = 1 << 4


GUEST_AVAIL0 = 16  # _GNTMAP_guest_avail0: the first of the flags that go into the entry's available bits


class GntCopy:
    """GNTCOPY_*: which ends of a copy are grant references."""

    SOURCE_GREF = 1 << 0
    DEST_GREF = 1 << 1


class GrantStatus(IntEnum):
    """GNTST_*: what became of one element."""

    OKAY = 0
    GENERAL_ERROR = -1
    BAD_DOMAIN = -2
    BAD_GNTREF = -3
    BAD_HANDLE = -4
    BAD_VIRT_ADDR = -5
    BAD_DEV_ADDR = -6
    NO_DEVICE_SPACE = -7
    PERMISSION_DENIED = -8
    BAD_PAGE = -9
    BAD_COPY_ARG = -10
    ADDRESS_TOO_BIG = -11
    EAGAIN = -12
    NO_SPACE = -13


class MapGrantRef(NamedTuple):
    """struct gnttab_map_grant_ref. From `status` on returned."""

    host_addr: int  # virtual address, or machine address of the PTE (CONTAINS_PTE)
    flags: int  # GntMap
    ref: int
    dom: int
    status: int
    handle: int
    dev_bus_addr: int


class UnmapGrantRef(NamedTuple):
    """struct gnttab_unmap_grant_ref. `status` is returned."""

    host_addr: int
    dev_bus_addr: int
    handle: int
    status: int


class SetupTable(NamedTuple):
    """struct gnttab_setup_table. `status` is returned, the frames go to `frame_list`."""

    dom: int
    nr_frames: int
    status: int
    frame_list: int  # the guest's pointer to u64


class Transfer(NamedTuple):
    """struct gnttab_transfer. `status` is returned."""

    mfn: int
    domid: int
    ref: int
    status: int


class Copy(NamedTuple):
    """struct gnttab_copy. `status` is returned."""

    source: int  # mfn, or grant reference in its low 32 bits
    source_domid: int
    source_offset: int
    dest: int
    dest_domid: int
    dest_offset: int
    len: int  # bytes
    flags: int  # GntCopy
    status: int


class QuerySize(NamedTuple):
    """struct gnttab_query_size. From `nr_frames` on returned."""

    dom: int
    nr_frames: int
    max_nr_frames: int
    status: int


class SetVersion(NamedTuple):
    """struct gnttab_set_version."""

    version: int


class GetVersion(NamedTuple):
    """struct gnttab_get_version. `version` is returned."""

    dom: int
    version: int


GRANT_ENTRY = Layout("<HHI", GrantEntry)
MAP_GRANT_REF = Layout("<QIIHhIQ", MapGrantRef)
UNMAP_GRANT_REF = Layout("<QQIh2x", UnmapGrantRef)
SETUP_TABLE = Layout("<H2xIh6xQ", SetupTable)
TRANSFER = Layout("<QH2xIh6x", Transfer)
COPY = Layout("<QHH4xQHH4xHHh2x", Copy)
QUERY_SIZE = Layout("<H2xIIh2x", QuerySize)
SET_VERSION = Layout("<I", SetVersion)
GET_VERSION = Layout("<H2xI", GetVersion)
