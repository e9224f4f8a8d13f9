"""How one frame's bookkeeping is packed into one word, and the bits of page-table entries a domain may not set.

Xen keeps the same facts in `struct page_info`. One Python integer a frame means that "is it this owner's, and of this
type" is one comparison and "one more mapping" one addition: Linux's boot validates tables by the thousand.
"""

from __future__ import annotations

from minivmm.x86.paging import Pte

PAGE_SHIFT = 12
ENTRIES = 512  # of 8 bytes in a table


class PageType:
    """What a frame is used as. One at a time, for as long as somebody uses it so (Barham et al. 2003, 3.3)."""

    NONE = 0
    L1, L2, L3, L4 = 1, 2, 3, 4  # page tables
    SEGDESC = 5  # segment descriptors: in a GDT or an LDT
    WRITABLE = 6


NAMES = ("none", "L1", "L2", "L3", "L4", "descriptors", "writable")


# bits 60.. | 59..21     | 20     | 19        | 18     | 17..15 | 14..0
# references  type count   shared   allocated   pinned   type     owner
OWNER = (1 << 15) - 1
TYPE_SHIFT = 15
TYPE = 7 << TYPE_SHIFT
PINNED = 1 << 18  # one reference and one type count belong to the pin
ALLOCATED = 1 << 19  # one reference belongs to the allocation
SHARED = 1 << 20  # the hypervisor's own, for its domain to see: writable for ever, in no reservation
TYPE_ONE = 1 << 21
TYPE_COUNT = (1 << 39) - 1 << 21
REF_SHIFT = 60
REF_ONE = 1 << REF_SHIFT
BOTH = REF_ONE + TYPE_ONE
KEY = OWNER | TYPE

# Bits Pte of minivmm.x86 does not need. Bits 52 to 62 are the guest's to use; 40 to 51 name frames that do not exist.
PWT, PCD, PAT, GLOBAL = 1 << 3, 1 << 4, 1 << 7, 1 << 8
ADDRESS = (1 << 52) - (1 << PAGE_SHIFT)
# Cache attributes are a device's driver's business; bit 7 is PSE from L2 up (PV has no 2 MiB pages) and PAT in an L1.
FORBIDDEN_LEAF = PWT | PCD | PAT
FORBIDDEN_LINK = PWT | PCD | Pte.LARGE | GLOBAL
# What makes two present entries the same as far as references go.
SAME = Pte.PRESENT | Pte.WRITABLE | ADDRESS

# xen/arch-x86/xen-x86_64.h: HYPERVISOR_VIRT_START to _END is Xen's, in every address space.
HYPERVISOR_SLOTS = range(256, 272)

# A whole table as one number: bit 0 of each of its entries, and all bits of Xen's slots.
LANES = int.from_bytes(b"\1\0\0\0\0\0\0\0" * ENTRIES, "little")
HYPERVISOR_LANES = ((1 << 64 * len(HYPERVISOR_SLOTS)) - 1) << 64 * HYPERVISOR_SLOTS.start


def normal(entry: int, level: int) -> int:
    """A present entry as it is stored: user, since guest kernels run at ring 3, and never global, so that no entry
    survives a switch to another domain. `level` is 1 to 4."""
    return (entry | Pte.USER) & ~GLOBAL if level == PageType.L1 else entry | Pte.USER
