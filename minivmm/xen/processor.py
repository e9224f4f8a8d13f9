"""The life of a vCPU: in the guest, out with an event, the event answered, and in again."""

from __future__ import annotations

from functools import partial

from minivmm.deprivileged.events import Event, Interrupted, SoftwareInterrupt, Stopped, SystemCall, Trap
from minivmm.errors import KvmError
from minivmm.outcome import EndOfRun, Outcome
from minivmm.xen import abi, faults, traps
from minivmm.xen.calls import call
from minivmm.xen.crash import dump, registers
from minivmm.xen.hypercall_abi import Hypercall
from minivmm.xen.recount import recount
from minivmm.xen.vcpu import VirtualCpu

_WORD = (1 << 64) - 1
_NUMBER = (1 << 32) - 1
_CODE, _STACK = abi.FlatRing3.CS64, abi.FlatRing3.SS64
AS_WISHED = frozenset({Outcome.SHUTDOWN, Outcome.EXITED, Outcome.RESET, Outcome.SUSPENDED})


def live(vcpu: VirtualCpu, audit: int = 0) -> None:
    """Runs a vCPU on this thread until its domain has ended. `audit`: see Hypervisor."""
    domain, core = vcpu.domain, vcpu.core
    with core.lock:
        try:
            _serve(vcpu, audit)
        except EndOfRun as end:
            _end(vcpu, end)
        except KvmError as error:
            _end(vcpu, EndOfRun(Outcome.INTERNAL_ERROR, error.message))
        finally:
            if domain.end is None:  # its traceback is on its way to standard error
                domain.finish(EndOfRun(Outcome.HOST_ERROR, "the hypervisor itself failed"))
            core.current = None
            vcpu.set_runstate(abi.Runstate.OFFLINE)
            domain.stopped = core.clock.now()


def _end(vcpu: VirtualCpu, end: EndOfRun) -> None:
    """This vCPU ended its domain: what it was doing is kept, unless it ended as it wished."""
    domain = vcpu.domain
    if domain.end is None and end.outcome not in AS_WISHED:
        domain.registers = registers(vcpu)
        domain.dump = dump(vcpu)
    domain.finish(end)


def _serve(vcpu: VirtualCpu, audit: int) -> None:
    """Entered and left with the lock held. The hot path of every domain: benchmark `paravirt`."""
    domain, core, cpu, info = vcpu.domain, vcpu.core, vcpu.cpu, vcpu.info
    lock, mailbox = core.lock, vcpu.mailbox
    run = cpu.run if domain.watch is None else partial(domain.watch, vcpu, cpu.run)
    left = audit
    if vcpu.runnable:
        vcpu.set_runstate(abi.Runstate.RUNNING)
    while domain.end is None:
        if vcpu.blocked or not vcpu.up or domain.paused:
            _sleep(vcpu)
            continue
        if info is not vcpu.info:
            info = vcpu.info  # it has moved
        if vcpu.nmi_pending:
            traps.nmi(vcpu)
        # evtchn_upcall_pending, evtchn_upcall_mask
        if info[0] and not info[1] and (mailbox is None or not mailbox.busy):
            vcpu.update_time()
            traps.upcall(vcpu)
        core.current = None
        vcpu.inside = True
        lock.release()
        try:
            event = run()
        finally:
            vcpu.inside = False
            lock.acquire()
        core.current = vcpu
        if type(event) is SystemCall and vcpu.in_kernel:
            _hypercall(vcpu)
        else:
            _answer(vcpu, event)
        core.shoot_down()
        if audit:
            left -= 1
            if not left:
                left = audit
                _audit(vcpu)


def _sleep(vcpu: VirtualCpu) -> None:
    """Until an event, the domain's end, or another vCPU wakes it."""
    vcpu.core.current = None
    if vcpu.up:
        vcpu.set_runstate(abi.Runstate.BLOCKED if vcpu.blocked else abi.Runstate.RUNNABLE)
    while not vcpu.runnable and vcpu.domain.end is None:
        vcpu.wakeup.wait()
    if vcpu.domain.end is None:
        vcpu.set_runstate(abi.Runstate.RUNNING)
        vcpu.update_time()


def _hypercall(vcpu: VirtualCpu) -> None:
    cpu = vcpu.cpu
    regs = cpu.regs
    cpu.cs, cpu.ss = _CODE, _STACK  # what `syscall` and `sysret` load, whatever was there
    number = regs.rax & _NUMBER
    if number == Hypercall.IRET:
        vcpu.domain.hypercalls["iret"] += 1
        traps.iret(vcpu)
        return
    mailbox = vcpu.mailbox
    done = mailbox.exit(number) if mailbox is not None else None
    if done is not None:
        regs.rax = done
    else:
        arguments = (regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9)
        regs.rax = call(vcpu, number, arguments) & _WORD


def _answer(vcpu: VirtualCpu, event: Event) -> None:
    domain = vcpu.domain
    match event:
        case SystemCall():
            domain.exits["system call"] += 1
            traps.system_call(vcpu)
        case Trap() as trap:
            domain.traps_taken[trap.vector] += 1
            faults.take(vcpu, trap)
        case SoftwareInterrupt(vector, rip):
            domain.exits["int"] += 1
            traps.software_interrupt(vcpu, vector, rip)
        case Interrupted():
            domain.exits["interrupted"] += 1
        case Stopped(reason):
            raise EndOfRun(Outcome.INTERNAL_ERROR, reason)
        case _:
            raise EndOfRun(Outcome.CRASHED, f"the domain did what nobody answers: {event}")


def _audit(vcpu: VirtualCpu) -> None:
    """Counts every frame's uses again from the page tables: what is kept must be the same."""
    wrong = recount(vcpu.core.tables)
    if wrong:
        raise EndOfRun(Outcome.HOST_ERROR, "the frame table is wrong: " + "; ".join(wrong[:3]))
