"""Exceptions of a domain, bounced to the handlers it registered, and its way back.

The frame is Xen's (docs: xen/include/public/arch-x86/xen-x86_64.h and the ABI's "bounce frame"): on the kernel's stack,
lowest address first,

    RCX  R11  [error code]  RIP  CS and saved event mask  RFLAGS  RSP  SS

Guest kernel and guest user both run at ring 3; which of them a vCPU is in is known here, and shown in the pushed CS:
RPL 0 for the kernel. IF in the pushed RFLAGS is the inverse of the vCPU's event mask.
"""

from __future__ import annotations

import errno
import struct

from minivmm.deprivileged.cpu import DeprivilegedCpu
from minivmm.deprivileged.events import WITH_ERROR_CODE, Trap, Vector
from minivmm.outcome import EndOfRun, Outcome
from minivmm.x86.registers import RFLAGS_IF
from minivmm.xen import abi
from minivmm.xen.domain import Domain, TrapHandler
from minivmm.xen.errors import HypercallError
from minivmm.xen.hypercall_abi import TRAP_INFO

TRAP_VECTORS = 256
TRAP_MASKS_EVENTS = 1 << 2  # trap_info.flags: as an interrupt gate clears IF
ADDRESS_CANONICAL = 1 << 47

PF_USER = 1 << 2  # page-fault error code: the access came from ring 3
RFLAGS_CLEARED = 0x3_4100  # TF, NT, RF, VM: what a gate clears
RFLAGS_IOPL = 0x3000


def set_trap_table(domain: Domain, address: int) -> int:
    """Takes handlers until one with a zero address; a zero list clears them all."""
    if not address:
        domain.traps.clear()
        return 0
    for _ in range(TRAP_VECTORS + 1):
        info = domain.pages.read_record(address, TRAP_INFO)
        if not info.address:
            return 0
        _check_canonical(info.address)
        domain.traps[info.vector] = TrapHandler(info.address, bool(info.flags & TRAP_MASKS_EVENTS))
        address += TRAP_INFO.size
    raise HypercallError(errno.EINVAL, f"a trap table of more than {TRAP_VECTORS} entries")


def stack_switch(domain: Domain, _ss: int, stack: int) -> int:
    """The kernel stack that a trap from user mode is pushed on."""
    _check_canonical(stack)
    domain.kernel_stack = stack
    return 0


def _check_canonical(address: int) -> None:
    if (address + ADDRESS_CANONICAL) & (1 << 64) - 1 >= 1 << 48:
        raise HypercallError(errno.EINVAL, f"{address:#x} is no address (SDM 1, 3.3.7.1)")


def bounce(domain: Domain, cpu: DeprivilegedCpu, trap: Trap) -> None:
    """Enters the domain's handler for `trap`. Raises EndOfRun(CRASHED) when it has none, or no stack for the frame."""
    handler = domain.traps.get(trap.vector)
    where = f"exception {trap.vector}, error {trap.error_code:#x}, address={trap.address}, RIP {trap.rip:#x}"
    if handler is None:
        raise EndOfRun(Outcome.CRASHED, f"the domain has no handler for its {where}")
    regs, mask = cpu.regs, domain.events_masked
    error_code = trap.error_code
    if trap.vector == Vector.PF:
        domain.fault_address = trap.address
        if domain.in_kernel:
            error_code &= ~PF_USER  # its kernel is a supervisor to it
    stack = regs.rsp if domain.in_kernel else domain.kernel_stack
    code = cpu.cs & ~3 if domain.in_kernel else cpu.cs
    rflags = regs.rflags & ~(RFLAGS_IF | RFLAGS_IOPL) | (0 if mask else RFLAGS_IF)
    error = (error_code,) if trap.vector in WITH_ERROR_CODE else ()
    words = (regs.rcx, regs.r11, *error, regs.rip, code | int(mask) << 32, rflags, regs.rsp, cpu.ss)
    frame = struct.pack(f"<{len(words)}Q", *words)
    top = (stack & ~0xF) - len(frame) & (1 << 64) - 1
    domain.enter_kernel(cpu)
    try:
        domain.pages.write(top, frame)
    except HypercallError as refused:
        raise EndOfRun(
            Outcome.CRASHED, f"no stack at {top:#x} for the domain's {where}: {refused.message}"
        ) from refused
    domain.events_masked = mask or handler.masks_events
    regs.rip, regs.rsp, regs.rflags = handler.address, top, regs.rflags & ~RFLAGS_CLEARED
    cpu.cs, cpu.ss = abi.FlatRing3.CS64, abi.FlatRing3.SS64


def iret(domain: Domain, cpu: DeprivilegedCpu) -> None:
    """Hypercall 23: back to what the iret_context on the kernel's stack says. Raises EndOfRun when it says nonsense."""
    regs = cpu.regs
    try:
        context = domain.pages.read_record(regs.rsp, abi.IRET_CONTEXT)
    except HypercallError as refused:
        raise EndOfRun(Outcome.CRASHED, f"iret without a context: {refused.message}") from refused
    for name in ("rax", "r11", "rcx", "rip", "rflags", "rsp"):
        setattr(regs, name, getattr(context, name))
    if context.flags & abi.ContextFlag.IN_SYSCALL:  # as sysret: what the user finds in RCX and R11
        regs.rcx, regs.r11 = regs.rip, regs.rflags
    domain.events_masked = not regs.rflags & RFLAGS_IF
    cpu.cs, cpu.ss = context.cs & 0xFFFF | 3, context.ss & 0xFFFF | 3
    if context.cs & 3 == 3 and not domain.enter_user(cpu):
        raise EndOfRun(Outcome.CRASHED, "iret to user mode without a user page table (MMUEXT_NEW_USER_BASEPTR)")
