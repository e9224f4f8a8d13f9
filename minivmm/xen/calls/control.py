"""Where the hypervisor enters the kernel, and single registers: traps, callbacks, stack, assistance, debug, ports."""

from __future__ import annotations

from errno import EINVAL, ENOSYS, EPERM

from minivmm.xen.errors import HypercallError
from minivmm.xen.guest_pointer import canonical
from minivmm.xen.hypercall_abi import (
    CALLBACK_REGISTER,
    CALLBACK_UNREGISTER,
    CALLBACKF_MASK_EVENTS,
    TRAP_INFO,
    CallbackOp,
    CallbackType,
    TrapInfo,
    VmAssistCommand,
    VmAssistType,
)
from minivmm.xen.platform_abi import PHYSDEV_SET_IOPL, XENNMI_CALLBACK, NmiOp, PhysdevOp
from minivmm.xen.vcpu import Callback, TrapHandler, VirtualCpu

TRAP_VECTORS = 256
TRAP_DPL = 3
TRAP_MASKS_EVENTS = 1 << 2  # trap_info.flags: as an interrupt gate clears IF

CALLBACK_TYPES = frozenset(
    {
        *(CallbackType.EVENT, CallbackType.FAILSAFE, CallbackType.SYSCALL, CallbackType.NMI),
        *(CallbackType.SYSENTER, CallbackType.SYSENTER_DEPRECATED, CallbackType.SYSCALL32),
    }
)
# What a 64-bit paravirtual domain may ask for. Only two of them change anything here: four-gigabyte segments are 32-bit
# code's, page tables are always changed by hypercall or by an emulated store, and CR3 is always extended.
ASSISTS = frozenset(
    {
        *(VmAssistType.FOUR_GB_SEGMENTS, VmAssistType.FOUR_GB_SEGMENTS_NOTIFY, VmAssistType.WRITABLE_PAGETABLES),
        *(VmAssistType.PAE_EXTENDED_CR3, VmAssistType.ARCHITECTURAL_IOPL, VmAssistType.RUNSTATE_UPDATE_FLAG),
        VmAssistType.M2P_STRICT,
    }
)


def set_trap_table(vcpu: VirtualCpu, address: int) -> int:
    """xen.h: takes handlers until one with a zero address; a zero list clears them all."""
    if not address:
        vcpu.traps.clear()
        return 0
    for _ in range(TRAP_VECTORS + 1):
        info = vcpu.pages.read_record(address, TRAP_INFO)
        if not info.address:
            return 0
        vcpu.traps[info.vector] = trap_handler(info)
        address += TRAP_INFO.size
    raise HypercallError(EINVAL, f"a trap table of more than {TRAP_VECTORS} entries")


def trap_handler(info: TrapInfo) -> TrapHandler:
    """An entry of a trap table. Raises HypercallError(EINVAL)."""
    return TrapHandler(canonical(info.address), bool(info.flags & TRAP_MASKS_EVENTS), info.flags & TRAP_DPL)


def stack_switch(vcpu: VirtualCpu, _stack_segment: int, stack: int) -> int:
    """xen.h: the kernel stack that a trap from user mode is pushed on."""
    vcpu.kernel_stack = canonical(stack)
    return 0


def set_callbacks(vcpu: VirtualCpu, event: int, failsafe: int, system_call: int) -> int:
    """arch-x86/xen.h: the three callbacks a 64-bit kernel has."""
    for kind, address in (
        (CallbackType.EVENT, event),
        (CallbackType.FAILSAFE, failsafe),
        (CallbackType.SYSCALL, system_call),
    ):
        _register(vcpu, kind, address, masks_events=False)
    return 0


def callback_op(vcpu: VirtualCpu, cmd: int, argument: int) -> int:
    """callback.h."""
    if cmd == CallbackOp.REGISTER:
        asked = vcpu.pages.read_record(argument, CALLBACK_REGISTER)
        if asked.type not in CALLBACK_TYPES:
            raise HypercallError(ENOSYS, f"callback {asked.type} is not there")
        _register(vcpu, asked.type, asked.address, masks_events=bool(asked.flags & CALLBACKF_MASK_EVENTS))
    elif cmd == CallbackOp.UNREGISTER:
        kind = vcpu.pages.read_record(argument, CALLBACK_UNREGISTER).type
        if kind not in CALLBACK_TYPES:
            raise HypercallError(ENOSYS, f"callback {kind} is not there")
        if kind in (CallbackType.EVENT, CallbackType.FAILSAFE, CallbackType.SYSCALL):
            raise HypercallError(EINVAL, f"callback {kind} cannot be taken away")
        vcpu.callbacks.pop(kind, None)
    else:
        raise HypercallError(ENOSYS, f"callback_op {cmd} is not there")
    return 0


def _register(vcpu: VirtualCpu, kind: int, address: int, *, masks_events: bool) -> None:
    if address:
        vcpu.callbacks[kind] = Callback(canonical(address), masks_events)
    else:
        vcpu.callbacks.pop(kind, None)


def nmi_op(vcpu: VirtualCpu, cmd: int, argument: int) -> int:
    """nmi.h."""
    match cmd:
        case NmiOp.REGISTER_CALLBACK:
            address = vcpu.pages.read_record(argument, XENNMI_CALLBACK).handler_address
            _register(vcpu, CallbackType.NMI, address, masks_events=False)
        case NmiOp.UNREGISTER_CALLBACK:
            vcpu.callbacks.pop(CallbackType.NMI, None)
        case _:
            raise HypercallError(ENOSYS, f"nmi_op {cmd} is not there")
    return 0


def vm_assist(vcpu: VirtualCpu, cmd: int, kind: int) -> int:
    """xen.h: behaviour a kernel may ask for."""
    if kind not in ASSISTS:
        raise HypercallError(EINVAL, f"vm_assist {kind} is not there")
    match cmd:
        case VmAssistCommand.ENABLE:
            vcpu.domain.vm_assist.add(kind)
        case VmAssistCommand.DISABLE:
            vcpu.domain.vm_assist.discard(kind)
        case _:
            raise HypercallError(ENOSYS, f"vm_assist command {cmd} is not there")
    return 0


def fpu_taskswitch(vcpu: VirtualCpu, switched: int) -> int:
    """xen.h: sets or clears CR0.TS."""
    vcpu.set_task_switched(bool(switched))
    return 0


def set_debugreg(vcpu: VirtualCpu, number: int, value: int) -> int:
    """xen.h."""
    vcpu.set_debug_register(number, value)
    return 0


def get_debugreg(vcpu: VirtualCpu, number: int) -> int:
    """xen.h: the value, where an error would be a small negative number."""
    if number in (4, 5):
        number += 2
    if number >= len(vcpu.debug_registers):
        raise HypercallError(EINVAL, f"there is no debug register {number}")
    return vcpu.debug_registers[number]


def physdev_op(vcpu: VirtualCpu, cmd: int, argument: int) -> int:
    """physdev.h: a domain without devices has an I/O privilege level, and no port it would open."""
    match cmd:
        case PhysdevOp.SET_IOPL:
            iopl = vcpu.pages.read_record(argument, PHYSDEV_SET_IOPL).iopl
            if iopl > 3:
                raise HypercallError(EINVAL, f"there is no I/O privilege level {iopl}")
            vcpu.iopl = iopl
            return 0
        case PhysdevOp.SET_IOBITMAP:
            return 0  # whatever its kernel lets user code have: there is nothing behind the ports
        case PhysdevOp.EOI | PhysdevOp.IRQ_STATUS_QUERY:
            raise HypercallError(EINVAL, "the domain has no physical interrupts")
    raise HypercallError(ENOSYS if cmd > PhysdevOp.EOI else EPERM, f"physdev_op {cmd} is not there")
