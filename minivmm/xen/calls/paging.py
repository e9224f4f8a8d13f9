"""Direct paging: mmu_update, update_va_mapping, mmuext_op (xen.h). The checks are page_tables.py's."""

from __future__ import annotations

from errno import EINVAL, ENOSYS, EPERM

from minivmm.memory import PAGE_SIZE
from minivmm.xen.calls.lists import each, own
from minivmm.xen.calls.segments import set_ldt
from minivmm.xen.errors import HypercallError
from minivmm.xen.frame_words import PageType
from minivmm.xen.hypercall_abi import MMU_UPDATE, MMUEXT_OP, Mmu, Mmuext, MmuextOp, MmuUpdate
from minivmm.xen.vcpu import VirtualCpu

_FLUSHES = frozenset(
    {
        *(Mmuext.TLB_FLUSH_LOCAL, Mmuext.INVLPG_LOCAL, Mmuext.TLB_FLUSH_MULTI, Mmuext.INVLPG_MULTI),
        *(Mmuext.TLB_FLUSH_ALL, Mmuext.INVLPG_ALL),
    }
)


def mmu_update(vcpu: VirtualCpu, requests: int, count: int, done: int, target: int) -> int:
    """A list of stores to page tables, each checked. `done`, where given, gets how many succeeded."""
    own(vcpu, target)
    tables, domid = vcpu.core.tables, vcpu.domain.domid

    def store(request: MmuUpdate) -> None:
        if request.ptr & 3 == Mmu.PT_UPDATE_PRESERVE_AD:
            vcpu.core.hold_others()
        tables.mmu_update(domid, request.ptr, request.val)

    return each(vcpu, requests, count, MMU_UPDATE, store, done)


def update_va_mapping(vcpu: VirtualCpu, address: int, entry: int, flags: int) -> int:  # noqa: ARG001  every flush is whole
    """The L1 entry that maps `address`, found through the kernel's page tables."""
    vcpu.core.tables.update_va_mapping(vcpu.domain.domid, address, entry, vcpu.index)
    return 0


def update_va_mapping_otherdomain(vcpu: VirtualCpu, address: int, entry: int, flags: int, domid: int) -> int:
    """The same with another domain's frame, which takes privilege."""
    own(vcpu, domid)
    return update_va_mapping(vcpu, address, entry, flags)


def mmuext_op(vcpu: VirtualCpu, operations: int, count: int, done: int, target: int) -> int:
    """A list of operations on whole page tables. `done` as for mmu_update."""
    own(vcpu, target)
    return each(vcpu, operations, count, MMUEXT_OP, lambda operation: _operate(vcpu, operation), done)


def _operate(vcpu: VirtualCpu, operation: MmuextOp) -> None:
    tables, domid, cmd = vcpu.core.tables, vcpu.domain.domid, operation.cmd
    if cmd <= Mmuext.PIN_L4_TABLE:
        tables.pin(domid, operation.arg1, cmd - Mmuext.PIN_L1_TABLE + 1)
    elif cmd == Mmuext.UNPIN_TABLE:
        tables.unpin(domid, operation.arg1)
    elif cmd == Mmuext.NEW_BASEPTR:
        tables.new_baseptr(domid, operation.arg1, vcpu.index)
        vcpu.load_root(operation.arg1)
    elif cmd == Mmuext.NEW_USER_BASEPTR:
        tables.new_user_baseptr(domid, operation.arg1, vcpu.index)
        vcpu.hide_mailbox(operation.arg1)
    elif cmd in _FLUSHES:
        pass  # a changed entry never outlives the call that changed it, on any vCPU
    elif cmd == Mmuext.SET_LDT:
        set_ldt(vcpu, operation.arg1, operation.arg2 & 0xFFFF_FFFF)
    elif cmd == Mmuext.CLEAR_PAGE:
        _write_page(vcpu, operation.arg1, bytes(PAGE_SIZE))
    elif cmd == Mmuext.COPY_PAGE:
        vcpu.core.frames.owned(domid, operation.arg2)
        _write_page(vcpu, operation.arg1, vcpu.core.memory.read(operation.arg2 * PAGE_SIZE, PAGE_SIZE))
    elif cmd in (Mmuext.FLUSH_CACHE, Mmuext.FLUSH_CACHE_GLOBAL):
        raise HypercallError(EPERM, "a domain without devices has no cache to write back")
    elif cmd in (Mmuext.MARK_SUPER, Mmuext.UNMARK_SUPER):
        raise HypercallError(EINVAL, "there are no superpages for paravirtual domains")
    else:
        raise HypercallError(ENOSYS, f"mmuext_op {cmd} is not there")


def _write_page(vcpu: VirtualCpu, mfn: int, data: bytes) -> None:
    """Into an ordinary frame of the domain's: no page table, no descriptors."""
    frames = vcpu.core.frames
    frames.take(vcpu.domain.domid, mfn, PageType.WRITABLE)
    vcpu.core.memory.write(mfn * PAGE_SIZE, data)
    frames.drop_typed(mfn)
