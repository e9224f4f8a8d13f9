"""Lists of requests in a domain's memory, as mmu_update, mmuext_op and multicall take them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from errno import EINVAL, EPERM

from minivmm.layout import Layout, Record
from minivmm.xen.abi import Domid
from minivmm.xen.errors import HypercallError
from minivmm.xen.vcpu import VirtualCpu

CHUNK = 256  # entries at a time: a long list does not outlive the domain's deadline
MAX_ENTRIES = 1 << 24


def each(
    vcpu: VirtualCpu,
    address: int,
    count: int,
    layout: Layout[Record],
    carry_out: Callable[[Record], None],
    done: int,
    part: int = CHUNK,
) -> int:
    """A list, copied and carried out until an entry is refused, or the domain ends: that many entries at a time, and
    others have their turn in between. `done` gets how many were, where it is given. Raises HypercallError."""
    completed = 0
    count = checked(count)
    try:
        while completed < count and vcpu.domain.end is None:
            chunk = min(count - completed, part)
            records = vcpu.pages.read(address + completed * layout.size, chunk * layout.size)
            for at in range(0, len(records), layout.size):
                carry_out(layout.unpack(records, at))
                completed += 1
            if completed < count:
                vcpu.core.let_others_in()
    finally:
        if done:
            vcpu.pages.write(done, struct.pack("<I", completed))
    return 0


def checked(count: int) -> int:
    """A count of list entries that may be served. Raises HypercallError(EINVAL)."""
    count &= 0xFFFF_FFFF
    if count > MAX_ENTRIES:
        raise HypercallError(EINVAL, f"a list of {count} entries")
    return count


def own(vcpu: VirtualCpu, domid: int) -> None:
    """An unprivileged domain has a say over itself only. Raises HypercallError(EPERM)."""
    if domid & 0xFFFF not in (Domid.SELF, vcpu.domain.domid):
        raise HypercallError(EPERM, f"domain {domid:#x} is not this domain's")
