"""When a vCPU runs: sched_op (sched.h), set_timer_op (xen.h), vcpu_op (vcpu.h)."""

from __future__ import annotations

import struct
from errno import EINVAL, ENOENT, ENOSYS, EPERM, ESRCH, ETIME

from minivmm.outcome import EndOfRun, Outcome
from minivmm.xen import abi
from minivmm.xen.calls.context import initialise
from minivmm.xen.errors import HypercallError
from minivmm.xen.event_abi import Virq
from minivmm.xen.frame_words import PageType
from minivmm.xen.hypercall_abi import (
    SCHED_POLL,
    SCHED_REMOTE_SHUTDOWN,
    SCHED_SHUTDOWN,
    VCPU_REGISTER_VCPU_INFO,
    VCPU_SET_SINGLESHOT_TIMER,
    VCPU_SSHOTTMR_FUTURE,
    SchedOp,
    Shutdown,
    VcpuOp,
)
from minivmm.xen.vcpu import VirtualCpu

MAX_POLLED = 128  # ports of one SCHEDOP_poll, as Xen has it
MIN_PERIOD_NS = 1_000_000  # of a periodic timer: Xen's, too
FOREVER = 1 << 62  # ns

_ENDINGS = {
    Shutdown.POWEROFF: Outcome.SHUTDOWN,
    Shutdown.REBOOT: Outcome.RESET,
    Shutdown.SOFT_RESET: Outcome.RESET,
    Shutdown.SUSPEND: Outcome.SUSPENDED,
    Shutdown.CRASH: Outcome.CRASHED,
}
_REASONS = {value: name.lower() for name, value in vars(Shutdown).items() if name.isupper()}


def sched_op(vcpu: VirtualCpu, cmd: int, argument: int) -> int:
    """sched.h. Raises EndOfRun for a shutdown."""
    match cmd:
        case SchedOp.YIELD:
            return 0
        case SchedOp.BLOCK:
            vcpu.block()
            return 0
        case SchedOp.SHUTDOWN:
            raise ending(vcpu.pages.read_record(argument, SCHED_SHUTDOWN).reason)
        case SchedOp.SHUTDOWN_CODE:
            return 0
        case SchedOp.POLL:
            return _poll(vcpu, argument)
        case SchedOp.REMOTE_SHUTDOWN:
            asked = vcpu.pages.read_record(argument, SCHED_REMOTE_SHUTDOWN)
            known = asked.domain_id in vcpu.core.domains
            raise HypercallError(EPERM if known else ESRCH, f"domain {asked.domain_id} is not this one's to end")
        case SchedOp.PIN_OVERRIDE:
            raise HypercallError(EPERM, "a vCPU has its CPU for itself")
    raise HypercallError(ENOSYS, f"sched_op {cmd} is not there")


def ending(reason: int) -> EndOfRun:
    """How a domain that shut down for `reason` has ended.

    Xen reads eight bits of it. What a poweroff has above them is the domain's exit code: a mere poweroff on Xen.
    """
    why, code = reason & 0xFF, reason >> 8
    if why == Shutdown.POWEROFF and code:
        return EndOfRun(Outcome.EXITED, f"the domain shut down with code {code}", code)
    return EndOfRun(_ENDINGS.get(why, Outcome.CRASHED), f"the domain shut down: {_REASONS.get(why, f'reason {why}')}")


def _poll(vcpu: VirtualCpu, argument: int) -> int:
    """Sleeps until one of the ports has an event, masked or not, until any event comes, or until the time is up."""
    asked = vcpu.pages.read_record(argument, SCHED_POLL)
    if asked.nr_ports > MAX_POLLED:
        raise HypercallError(EINVAL, f"{asked.nr_ports} ports cannot be polled at once")
    ports = struct.unpack(f"<{asked.nr_ports}I", vcpu.pages.read(asked.ports, 4 * asked.nr_ports))
    events, domid = vcpu.core.events, vcpu.domain.domid
    pending = [events.is_pending(domid, port) for port in ports]  # all of them: one that is no port is refused
    if any(pending):
        return 0
    if vcpu.event_pending and not vcpu.events_masked:
        return 0
    if asked.timeout and asked.timeout <= vcpu.core.clock.now():
        return 0
    vcpu.blocked = True
    vcpu.domain.polling += bool(ports) - bool(vcpu.polled)  # a second poll of one multicall replaces the first
    vcpu.polled = frozenset(ports)
    if asked.timeout:
        vcpu.core.timers.set((vcpu, "poll"), asked.timeout, vcpu.wake)
    return 0


# -- timers


def set_timer_op(vcpu: VirtualCpu, timeout: int) -> int:
    """xen.h: VIRQ_TIMER at this system time; 0 stops it. The singleshot timer is the same one."""
    if timeout:
        _start_timer(vcpu, timeout)
    else:
        vcpu.core.timers.cancel((vcpu, "singleshot"))
    return 0


def _start_timer(vcpu: VirtualCpu, when: int) -> None:
    core, domid = vcpu.core, vcpu.domain.domid
    core.timers.set(
        (vcpu, "singleshot"), min(when, FOREVER), lambda: core.events.raise_virq(domid, Virq.TIMER, vcpu.index)
    )


def _start_periodic_timer(vcpu: VirtualCpu, period: int) -> None:
    core, domid = vcpu.core, vcpu.domain.domid

    def tick() -> None:
        core.events.raise_virq(domid, Virq.TIMER, vcpu.index)
        core.timers.set((vcpu, "periodic"), core.clock.now() + period, tick)

    core.timers.set((vcpu, "periodic"), core.clock.now() + period, tick)


# -- vcpu_op


def vcpu_op(vcpu: VirtualCpu, cmd: int, index: int, argument: int) -> int:
    """vcpu.h. A vCPU may act on any of its domain; timers and areas of another are refused where Xen refuses them."""
    vcpus = vcpu.domain.vcpus
    index &= 0xFFFF_FFFF
    if index >= len(vcpus):
        raise HypercallError(ENOENT, f"the domain has no vCPU {index}")
    target = vcpus[index]
    match cmd:
        case VcpuOp.INITIALISE:
            initialise(vcpu, target, argument)
        case VcpuOp.UP:
            if not target.initialised:
                raise HypercallError(EINVAL, f"vCPU {index} is not initialised")
            if not target.up:  # one that runs has its time already, and its TSC cannot be read
                target.up = True
                target.update_time(force=True)
                target.wakeup.notify()
        case VcpuOp.DOWN:
            target.up = False
            target.set_runstate(abi.Runstate.OFFLINE)
            if not any(other.up for other in vcpus):
                raise EndOfRun(Outcome.HALTED, "every vCPU of the domain is down")
            if target.inside:
                target.cpu.kick()
        case VcpuOp.IS_UP:
            return int(target.up)
        case VcpuOp.GET_RUNSTATE_INFO:
            vcpu.pages.write(argument, target.runstate_info())
        case VcpuOp.REGISTER_RUNSTATE_MEMORY_AREA:
            (address,) = struct.unpack("<Q", vcpu.pages.read(argument, 8))
            vcpu.pages.write(address, target.runstate_info())
            target.runstate_area = address
        case VcpuOp.REGISTER_VCPU_TIME_MEMORY_AREA:
            (address,) = struct.unpack("<Q", vcpu.pages.read(argument, 8))
            vcpu.pages.write(address, bytes(abi.VCPU_TIME_INFO.size))
            target.time_area = address
            if target is vcpu:
                target.update_time(force=True)
        case VcpuOp.REGISTER_VCPU_INFO:
            _register_vcpu_info(vcpu, target, argument)
        case VcpuOp.SEND_NMI:
            target.nmi_pending = True
            target.wake()
        case VcpuOp.GET_PHYSID:
            raise HypercallError(EINVAL, "a vCPU is on no CPU of its own")
        case _:
            return _timer_op(vcpu, target, cmd, argument)
    return 0


def _timer_op(vcpu: VirtualCpu, target: VirtualCpu, cmd: int, argument: int) -> int:
    core = vcpu.core
    match cmd:
        case VcpuOp.SET_PERIODIC_TIMER:
            (period,) = struct.unpack("<Q", vcpu.pages.read(argument, 8))
            if not MIN_PERIOD_NS <= period <= FOREVER:
                raise HypercallError(EINVAL, f"a period of {period} ns")
            _start_periodic_timer(target, period)
        case VcpuOp.STOP_PERIODIC_TIMER:
            core.timers.cancel((target, "periodic"))
        case VcpuOp.SET_SINGLESHOT_TIMER:
            if target is not vcpu:
                raise HypercallError(EINVAL, "the singleshot timer is set by its own vCPU")
            asked = vcpu.pages.read_record(argument, VCPU_SET_SINGLESHOT_TIMER)
            if asked.flags & VCPU_SSHOTTMR_FUTURE and asked.timeout_abs_ns < core.clock.now():
                raise HypercallError(ETIME, "that time has passed")
            _start_timer(vcpu, asked.timeout_abs_ns)
        case VcpuOp.STOP_SINGLESHOT_TIMER:
            if target is not vcpu:
                raise HypercallError(EINVAL, "the singleshot timer is stopped by its own vCPU")
            core.timers.cancel((vcpu, "singleshot"))
        case _:
            raise HypercallError(ENOSYS, f"vcpu_op {cmd} is not there")
    return 0


def _register_vcpu_info(vcpu: VirtualCpu, target: VirtualCpu, argument: int) -> None:
    """The frame stays the domain's and writable for as long as the domain lives."""
    core, domid = vcpu.core, vcpu.domain.domid
    asked = vcpu.pages.read_record(argument, VCPU_REGISTER_VCPU_INFO)
    if asked.rsvd or asked.mfn >= 1 << 40:
        raise HypercallError(EINVAL, "vcpu_register_vcpu_info has a reserved field set, or no mfn")
    core.frames.get_page_type(domid, asked.mfn, PageType.WRITABLE)
    address = (asked.mfn << 12) + asked.offset
    try:
        if asked.offset > 4096 - abi.VcpuInfo.SIZE:
            raise HypercallError(EINVAL, f"vcpu_info does not fit at offset {asked.offset}")
        core.events.register_vcpu_info(domid, target.index, address)
    except HypercallError:
        core.frames.put_page_type(asked.mfn, PageType.WRITABLE)
        raise
    vcpu.domain.held_mfns.append(asked.mfn)
    target.place_info(address)
