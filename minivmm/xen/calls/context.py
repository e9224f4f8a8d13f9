"""VCPUOP_initialise: a vCPU begins with the registers and tables of a vcpu_guest_context (arch-x86/xen.h)."""

from __future__ import annotations

import struct
from errno import EEXIST, EINVAL

from minivmm.memory import PAGE_SIZE
from minivmm.xen.abi import CPU_USER_REGS, ContextFlag, FlatRing3, VcpuGuestContext
from minivmm.xen.calls.control import trap_handler
from minivmm.xen.calls.segments import load_gdt
from minivmm.xen.errors import HypercallError
from minivmm.xen.frame_words import ENTRIES
from minivmm.xen.guest_pointer import canonical
from minivmm.xen.hypercall_abi import TRAP_INFO, CallbackType
from minivmm.xen.vcpu import Callback, VirtualCpu

TRAPS = 256
GDT_FRAMES = 16
RFLAGS_IOPL_SHIFT = 12
GENERAL_REGISTERS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "rip", "rflags"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)


def initialise(vcpu: VirtualCpu, target: VirtualCpu, argument: int) -> None:
    """Gives `target` its start. Raises HypercallError: EEXIST when it has one."""
    if target.initialised:
        raise HypercallError(EEXIST, f"vCPU {target.index} is initialised")
    context = vcpu.pages.read(argument, VcpuGuestContext.SIZE)
    core, domid = vcpu.core, vcpu.domain.domid

    def word(offset: int) -> int:
        (value,) = struct.unpack_from("<Q", context, offset)
        return int(value)

    regs = CPU_USER_REGS.unpack(context, VcpuGuestContext.USER_REGS)
    callbacks = {
        kind: canonical(word(offset))
        for kind, offset in (
            (CallbackType.EVENT, VcpuGuestContext.EVENT_CALLBACK_EIP),
            (CallbackType.FAILSAFE, VcpuGuestContext.FAILSAFE_CALLBACK_EIP),
            (CallbackType.SYSCALL, VcpuGuestContext.SYSCALL_CALLBACK_EIP),
        )
    }
    bases = [
        canonical(word(offset))
        for offset in (VcpuGuestContext.FS_BASE, VcpuGuestContext.GS_BASE_KERNEL, VcpuGuestContext.GS_BASE_USER)
    ]
    infos = [TRAP_INFO.unpack(context, VcpuGuestContext.TRAP_CTXT + index * TRAP_INFO.size) for index in range(TRAPS)]
    traps = {info.vector: trap_handler(info) for info in infos if info.address}
    kernel_stack = canonical(word(VcpuGuestContext.KERNEL_SP))
    if word(VcpuGuestContext.LDT_ENTS):
        raise HypercallError(EINVAL, "a vCPU begins without an LDT here")
    entries = word(VcpuGuestContext.GDT_ENTS)
    gdt_frames = struct.unpack_from(f"<{GDT_FRAMES}Q", context, VcpuGuestContext.GDT_FRAMES)

    # From here on the domain's frames are referred to: the roots first, which may be refused.
    core.tables.new_baseptr(domid, _frame(word(VcpuGuestContext.CTRLREG + 8 * 3)), target.index)
    try:
        if user_root := word(VcpuGuestContext.CTRLREG + 8):
            core.tables.new_user_baseptr(domid, _frame(user_root), target.index)
        load_gdt(target, list(gdt_frames[: -(-entries // ENTRIES)]), entries)
    except HypercallError:
        core.tables.release_vcpu(domid, target.index)
        raise

    for name in GENERAL_REGISTERS:
        setattr(target.regs, name, getattr(regs, name))
    # As Xen has it (fixup_guest_code_selector): a selector of another ring means the flat one of this ring.
    target.cpu.cs = regs.cs if regs.cs & 3 == 3 else FlatRing3.CS64
    target.cpu.ss = regs.ss if regs.ss & 3 == 3 else FlatRing3.SS64
    target.iopl = regs.rflags >> RFLAGS_IOPL_SHIFT & 3
    target.traps = traps
    target.callbacks = {
        kind: Callback(address, kind == CallbackType.SYSCALL and _syscall_masks(word(VcpuGuestContext.FLAGS)))
        for kind, address in callbacks.items()
        if address
    }
    target.kernel_stack = kernel_stack
    target.cpu.fs_base, target.cpu.gs_base, target.gs_base_user = bases
    target.in_kernel = True
    target.load_root(core.tables.kernel_roots[domid, target.index])
    if not word(VcpuGuestContext.FLAGS) & ContextFlag.IN_KERNEL:
        target.enter_user()
    target.initialised = True


def _syscall_masks(flags: int) -> bool:
    return bool(flags & ContextFlag.SYSCALL_DISABLES_EVENTS)


def _frame(cr3: int) -> int:
    """xen-x86_64.h, xen_cr3_to_pfn."""
    return cr3 // PAGE_SIZE
