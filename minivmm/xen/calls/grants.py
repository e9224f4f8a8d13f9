"""grant_table_op (xen/grant_table.h): the array in guest memory around minivmm/xen/grants.py."""

from __future__ import annotations

from errno import EINVAL

from minivmm.xen.errors import HypercallError
from minivmm.xen.grants import MAX_MAPPINGS
from minivmm.xen.vcpu import VirtualCpu

CHUNK = 64  # elements copied at a time
MAX_ELEMENTS = MAX_MAPPINGS  # of one call: as many mappings as there can be


def grant_table_op(vcpu: VirtualCpu, cmd: int, elements: int, count: int) -> int:
    """0, each element answered in its place. Raises HypercallError: the chunks before the one that failed are then done
    and answered, and nothing of that one but for what cannot be answered where it stands."""
    grants = vcpu.core.grants
    cmd, count = cmd & 0xFFFF_FFFF, count & 0xFFFF_FFFF
    size = grants.element_size(cmd)
    if count > MAX_ELEMENTS or (count != 1 and not grants.takes_many(cmd)):
        raise HypercallError(EINVAL, f"grant_table_op {cmd} on {count} elements")
    for start in range(0, count, CHUNK):
        if start:
            vcpu.core.let_others_in()
        if vcpu.domain.end is not None:
            break
        at = elements + start * size
        asked = vcpu.pages.read(at, min(CHUNK, count - start) * size)
        vcpu.pages.write(at, asked)  # where no answer can be stored nothing is done
        vcpu.pages.write(at, grants.grant_table_op(vcpu.domain.domid, cmd, asked, vcpu.index))
    return 0
