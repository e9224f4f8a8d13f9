"""Exceptions, events and system calls of a domain, bounced to the handlers it registered, and its way back.

The frame is Xen's (xen/include/public/arch-x86/xen-x86_64.h and the ABI's "bounce frame"): on the kernel's stack,
lowest address first,

    RCX  R11  [DS ES FS GS]  [error code]  RIP  CS and saved event mask  RFLAGS  RSP  SS

the segment registers for the failsafe callback only. Guest kernel and guest user both run at ring 3; which of them a
vCPU is in is known here, and shown in the pushed CS: RPL 0 for the kernel. IF in the pushed RFLAGS is the inverse of
the vCPU's event mask.
"""

from __future__ import annotations

import struct

from minivmm.deprivileged.events import WITH_ERROR_CODE, Vector
from minivmm.deprivileged.state import RFLAGS_RING3
from minivmm.outcome import EndOfRun, Outcome
from minivmm.x86.paging import is_canonical
from minivmm.x86.registers import RFLAGS_IF, RFLAGS_RESERVED
from minivmm.xen import abi
from minivmm.xen.abi import HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START
from minivmm.xen.errors import HypercallError
from minivmm.xen.hypercall_abi import CallbackType, VmAssistType
from minivmm.xen.vcpu import Callback, TrapHandler, VirtualCpu

PF_USER = 1 << 2  # page-fault error code: the access came from ring 3
RFLAGS_CLEARED = 0x7_4100  # TF, NT, RF, VM, as a gate does; and AC: a kernel has no alignment checks
RFLAGS_DF = 0x400
RFLAGS_IOPL = 0x3000
IOPL_SHIFT = 12
SYSCALL_SIZE = 2  # bytes of `syscall`
_WORD = (1 << 64) - 1


def bounce(vcpu: VirtualCpu, vector: int, error_code: int = 0, address: int = 0) -> None:
    """Enters the domain's handler for an exception. Raises EndOfRun(CRASHED) when it has none, or no stack."""
    what = f"exception {vector}, error {error_code:#x}, address={address:#x}, RIP {vcpu.regs.rip:#x}"
    if vector == Vector.PF:
        vcpu.fault_address = address
        if vcpu.in_kernel:
            error_code &= ~PF_USER  # its kernel is a supervisor to it
    handler = vcpu.traps.get(vector)
    if handler is None:
        raise EndOfRun(Outcome.CRASHED, f"the domain has no handler for its {what}")
    _enter(vcpu, handler, (error_code,) if vector in WITH_ERROR_CODE else (), what)


def upcall(vcpu: VirtualCpu) -> None:
    """Makes the event callback, which masks events. Without one, events wait."""
    callback = vcpu.callbacks.get(CallbackType.EVENT)
    if callback is not None:
        _enter(vcpu, Callback(callback.address, True), (), "event callback")


def nmi(vcpu: VirtualCpu) -> None:
    """Makes the NMI callback, or calls the handler of vector 2. In a handler, until its iret, NMIs wait."""
    if vcpu.nmi_masked:
        return
    vcpu.nmi_pending = False
    handler = vcpu.callbacks.get(CallbackType.NMI) or vcpu.traps.get(Vector.NMI)
    if handler is not None:
        vcpu.nmi_masked = True
        _enter(vcpu, handler, (), "NMI")


def system_call(vcpu: VirtualCpu) -> None:
    """`syscall` of user code: the syscall callback. Without one the instruction does not exist (#UD)."""
    callback = vcpu.callbacks.get(CallbackType.SYSCALL)
    regs = vcpu.regs
    if callback is None:
        regs.rip -= SYSCALL_SIZE
        bounce(vcpu, Vector.UD)
        return
    regs.rcx, regs.r11 = regs.rip, regs.rflags  # as the instruction leaves them
    vcpu.cpu.cs, vcpu.cpu.ss = abi.FlatRing3.CS64, abi.FlatRing3.SS64  # Xen guesses what they were
    _enter(vcpu, callback, (), "system call")
    regs.rflags &= ~RFLAGS_DF  # what Xen clears where a kernel would have it in SFMASK


def failsafe(vcpu: VirtualCpu) -> None:
    """The domain cannot be gone back to as it wished (a selector or RIP that is none): its failsafe callback is told.

    Raises EndOfRun(CRASHED) when it has none.
    """
    callback = vcpu.callbacks.get(CallbackType.FAILSAFE)
    cpu = vcpu.cpu
    where = f"return to CS {cpu.cs:#x}, RIP {vcpu.regs.rip:#x}, SS {cpu.ss:#x}"
    if callback is None:
        raise EndOfRun(Outcome.CRASHED, f"the domain has no failsafe callback for its {where}")
    _enter(vcpu, callback, (cpu.ds_selector, cpu.es_selector, cpu.fs_selector, cpu.gs_selector), where)


def _enter(vcpu: VirtualCpu, handler: TrapHandler | Callback, extra: tuple[int, ...], what: str) -> None:
    """Pushes the frame and goes to `handler`. The whole of Xen's create_bounce_frame."""
    regs, cpu, mask, from_kernel = vcpu.regs, vcpu.cpu, vcpu.info[1], vcpu.in_kernel
    stack = regs.rsp if from_kernel else vcpu.kernel_stack
    rflags = regs.rflags & ~(RFLAGS_IF | RFLAGS_IOPL) | (0 if mask else RFLAGS_IF)
    if VmAssistType.ARCHITECTURAL_IOPL in vcpu.domain.vm_assist:
        rflags |= vcpu.iopl << IOPL_SHIFT
    code = (cpu.cs & ~3 if from_kernel else cpu.cs) | mask << 32
    words = (regs.rcx, regs.r11, *extra, regs.rip, code, rflags, regs.rsp, cpu.ss)
    frame = struct.pack(f"<{len(words)}Q", *words)
    top = (stack & ~0xF) - len(frame) & _WORD
    vcpu.enter_kernel()
    try:
        if HYPERVISOR_VIRT_START <= top < HYPERVISOR_VIRT_END:
            raise HypercallError(14, "the stack is in the hypervisor's range")
        vcpu.pages.write(top, frame)
    except HypercallError as refused:
        raise EndOfRun(Outcome.CRASHED, f"no stack at {top:#x} for the domain's {what}: {refused.message}") from refused
    if handler.masks_events:
        vcpu.info[1] = 1
    regs.rip, regs.rsp, regs.rflags = handler.address, top, regs.rflags & ~RFLAGS_CLEARED
    cpu.cs, cpu.ss = abi.FlatRing3.CS64, abi.FlatRing3.SS64


def iret(vcpu: VirtualCpu) -> None:
    """Hypercall 23: back to what the iret_context on the kernel's stack says.

    Raises EndOfRun when there is none, or it goes to user code that has no page tables.
    """
    regs, cpu = vcpu.regs, vcpu.cpu
    try:
        context = vcpu.pages.read_record(regs.rsp, abi.IRET_CONTEXT)
    except HypercallError as refused:
        raise EndOfRun(Outcome.CRASHED, f"iret without a context: {refused.message}") from refused
    regs.rax, regs.rip, regs.rsp, regs.rflags = context.rax, context.rip, context.rsp, context.rflags
    if context.flags & abi.ContextFlag.IN_SYSCALL:  # as sysret: what it leaves in RCX and R11
        regs.rcx, regs.r11 = context.rip, context.rflags & RFLAGS_RING3 | RFLAGS_IF | RFLAGS_RESERVED
    else:
        regs.rcx, regs.r11 = context.rcx, context.r11
    if VmAssistType.ARCHITECTURAL_IOPL in vcpu.domain.vm_assist:
        vcpu.iopl = context.rflags >> IOPL_SHIFT & 3
    vcpu.info[1] = not context.rflags & RFLAGS_IF
    vcpu.nmi_masked = False
    cpu.cs, cpu.ss = context.cs & 0xFFFF | 3, context.ss & 0xFFFF | 3
    if context.cs & 3 == 3 and not vcpu.enter_user():
        raise EndOfRun(Outcome.CRASHED, "iret to user mode without a user page table (MMUEXT_NEW_USER_BASEPTR)")
    usable = cpu.segments.code(cpu.cs) and cpu.segments.stack(cpu.ss)
    if not usable or not is_canonical(context.rip):
        failsafe(vcpu)


def software_interrupt(vcpu: VirtualCpu, vector: int, rip: int) -> None:
    """`int vector` at `rip`, RIP past it: the handler, when its DPL lets this mode in, else the domain's #GP there."""
    handler = vcpu.traps.get(vector)
    if handler is not None and handler.dpl >= (1 if vcpu.in_kernel else 3):
        _enter(vcpu, handler, (), f"int {vector:#x}")
        return
    vcpu.regs.rip = rip
    bounce(vcpu, Vector.GP, vector << 3 | 2)  # SDM 3A 6.13: the IDT's entry
