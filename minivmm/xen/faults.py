"""What a domain's exception means: something the hypervisor does for it, or its own to handle."""

from __future__ import annotations

from minivmm.deprivileged.events import Trap, Vector
from minivmm.memory import PAGE_SIZE
from minivmm.xen import traps
from minivmm.xen.abi import EMULATE_PREFIX, MACH2PHYS_VIRT_END, MACH2PHYS_VIRT_START
from minivmm.xen.errors import HypercallError
from minivmm.xen.vcpu import VirtualCpu

PF_PRESENT, PF_WRITE = 1 << 0, 1 << 1
_STORE = PF_PRESENT | PF_WRITE


def take(vcpu: VirtualCpu, trap: Trap) -> None:
    """Answers an exception. Raises EndOfRun when the domain cannot go on."""
    vector = trap.vector
    if vector == Vector.PF:
        if vcpu.in_kernel and _page_fault(vcpu, trap):
            return
    elif vector == Vector.GP:
        if trap.error_code == 0 and _privileged(vcpu, trap):
            return
    elif vector == Vector.UD:
        if _prefixed(vcpu) and _privileged(vcpu, trap):
            return
    elif vector == Vector.NM:
        vcpu.set_task_switched(False)  # as Xen does: the handler need not ask
    elif vector == Vector.DB:
        vcpu.debug_registers[6] = vcpu.cpu.debug_status
    traps.bounce(vcpu, vector, trap.error_code, trap.address)


def _page_fault(vcpu: VirtualCpu, trap: Trap) -> bool:
    """A store into a page table in use, or a load from where Xen has the machine-to-physical table: carried out."""
    address = trap.address
    if MACH2PHYS_VIRT_START <= address < MACH2PHYS_VIRT_END and not trap.error_code & PF_WRITE:
        return _emulate_m2p_load(vcpu, address)
    if trap.error_code & _STORE != _STORE:
        return False
    machine = vcpu.pages.translate(address)
    if machine is None or not vcpu.core.tables.is_page_table(vcpu.domain.domid, machine // PAGE_SIZE):
        return False
    return _emulate_store(vcpu, address, machine)


def _emulate_store(vcpu: VirtualCpu, address: int, machine: int) -> bool:
    from minivmm.xen.table_store import emulate_store

    core, domid = vcpu.core, vcpu.domain.domid
    core.hold_others()  # the instruction is a locked one
    try:
        done = emulate_store(
            vcpu, address, machine, lambda at, value, size: core.tables.emulate_store(domid, at, value, size)
        )
    except HypercallError as refused:
        vcpu.domain.refused.count(f"store: {refused.message}")
        return False
    if done:
        vcpu.domain.exits["table store"] += 1
    return done


def _emulate_m2p_load(vcpu: VirtualCpu, address: int) -> bool:
    from minivmm.xen.table_store import emulate_load

    frames, memory = vcpu.core.frames, vcpu.core.memory
    table = range(frames.m2p_mfns.start * PAGE_SIZE, frames.m2p_mfns.stop * PAGE_SIZE)

    def load(virtual: int, size: int) -> bytes:
        machine = table.start + virtual - MACH2PHYS_VIRT_START
        if machine not in table or machine + size > table.stop:
            raise HypercallError(14, f"the machine-to-physical table has no {virtual:#x}")  # EFAULT
        return memory.read(machine, size)

    try:
        return emulate_load(vcpu, address, load)
    except HypercallError:
        return False


def _privileged(vcpu: VirtualCpu, trap: Trap) -> bool:
    from minivmm.xen.privileged import emulate

    try:
        done = emulate(vcpu, trap)
    except HypercallError as refused:
        vcpu.domain.refused.count(f"instruction: {refused.message}")
        return False
    if done:
        vcpu.domain.exits["instruction"] += 1
    return done


def _prefixed(vcpu: VirtualCpu) -> bool:
    """Whether the instruction has Xen's prefix: carry this one out (xen.h, XEN_EMULATE_PREFIX)."""
    try:
        return vcpu.pages.read(vcpu.regs.rip, len(EMULATE_PREFIX)) == EMULATE_PREFIX
    except HypercallError:
        return False
