"""From a trap of a program to the guest kernel's handler, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from toolkit.labs.domains import ExperimentBroken, LabDomain, hypervisor
from toolkit.labs.host import Host
from toolkit.labs.registry import lab
from toolkit.labs.trace import Step
from toolkit.labs.verdict import Check, Table, Verdict

if TYPE_CHECKING:
    from minivmm.deprivileged.events import Event

IRET = 23  # __HYPERVISOR_iret
SYS_GETPPID = 110  # guest_os/include/system_calls.h: what the program `spin` calls, once


class Case(NamedTuple):
    """A program of guest_os/processor/x86_64/checks.c that traps: `vector`, or None for a system call."""

    program: str
    title: str
    handler: str
    """Its name among the handlers that the guest lab_traps tells."""
    vector: int | None
    touches: int = 0
    """The address a page fault is about."""


CASES = (
    Case("offend 0", "divide by zero (#DE)", "divide", 0),
    Case("offend 1", "an invalid opcode (#UD)", "opcode", 6),
    Case("offend 4", "a read of kernel memory (#PF)", "page", 14, 0xFFFFFFFF80101000),
    Case("offend 5", "a store to its own code (#PF)", "page", 14, 0x400000),
    Case("spin 0", "a system call", "syscall", None),
)


@lab("interrupt-path", idea="a trap of a program goes straight to the guest kernel's handler; Xen hands over CR2")
def interrupt_path(host: Host) -> Verdict:
    """Claim: the hypervisor handles no trap of a program. It pushes a frame and enters the handler that the guest's
    kernel registered for the vector, and nothing of the guest runs in between. CR2, which only ring 0 can read, comes
    to a page fault's handler in vcpu_info.
    Experiment: programs of a domain divide by zero, execute what is no instruction, touch what they may not, and make a
    system call, while every entry to the domain and every exit from it is recorded.
    Source: Barham et al., Xen and the Art of Virtualization, SOSP 2003, 2.1.2 and 3.1; struct trap_info and struct
    arch_vcpu_info in xen/include/public/arch-x86/xen.h and xen-x86_64.h.
    """
    with hypervisor() as machine:
        guest = LabDomain(machine, "lab_traps", deadline=host.deadline)
        guest.run()
    handlers: dict[str, int] = {}
    for said in guest.said:
        handlers |= said.message.get("handlers", {})
    checks: list[Check] = []
    tables: list[Table] = []
    for case in CASES:
        index, steps = _trap(guest, case)
        end = guest.find("end", case.program).message
        checks.append(_straight(case, steps, index, handlers))
        if case.vector is None:
            checks.append(_back(steps, index))
        else:
            checks.append(_told(case, steps[index], steps[index + 1], end))
        tables.append(_table(case, steps, index, handlers))
    return Verdict(tuple(checks), tuple(tables))


def _trap(guest: LabDomain, case: Case) -> tuple[int, list[Step]]:
    """Where in the trace the case's program trapped; the steps from its first on. Raises ExperimentBroken."""
    first, last = guest.find("begin", case.program).step, guest.find("end", case.program).step
    steps = guest.trace.steps[first:last]
    for index, step in enumerate(steps[:-1]):
        if not step.in_kernel and _is(step, case):
            return index, steps
    raise ExperimentBroken(f"{case.title}: the program never trapped")


def _is(step: Step, case: Case) -> bool:
    from minivmm.deprivileged.events import SystemCall, Trap

    if case.vector is None:
        return isinstance(step.event, SystemCall) and step.number == SYS_GETPPID
    return isinstance(step.event, Trap) and step.event.vector == case.vector


# -- what is claimed


def _straight(case: Case, steps: list[Step], index: int, handlers: dict[str, int]) -> Check:
    """The next code of the domain to run is the handler's first instruction."""
    entered = steps[index + 1]
    return Check(
        f"{case.title}: next runs the kernel's own handler",
        entered.in_kernel and entered.rip == handlers.get(case.handler),
        f"{'kernel' if entered.in_kernel else 'user'} at {entered.rip:#x}",
    )


def _told(case: Case, trapped: Step, entered: Step, end: dict[str, Any]) -> Check:
    """What the handler saw is what happened."""
    from minivmm.deprivileged.events import Trap

    assert isinstance(trapped.event, Trap)
    if not case.touches:
        return Check(
            f"{case.title}: it saw the instruction that did it",
            end["pc"] == trapped.event.rip,
            f"RIP {end['pc']:#x}",
        )
    addresses = (case.touches, entered.fault_address, end["address"])
    return Check(
        f"{case.title}: it read the address touched",
        len(set(addresses)) == 1,
        ", not ".join(f"{address:#x}" for address in dict.fromkeys(addresses)),
    )


def _back(steps: list[Step], index: int) -> Check:
    """A system call's program goes on after the instruction, by the iret hypercall."""
    from minivmm.deprivileged.events import SystemCall

    call, answer, after = steps[index].event, steps[index + 1], steps[index + 2]
    assert isinstance(call, SystemCall)
    by_iret = isinstance(answer.event, SystemCall) and answer.number == IRET
    return Check(
        "a system call: back by the iret hypercall, to what follows",
        by_iret and not after.in_kernel and after.rip == call.rip,
        f"{'user' if not after.in_kernel else 'kernel'} at {after.rip:#x}",
    )


# -- the trace, for people


def _table(case: Case, steps: list[Step], index: int, handlers: dict[str, int]) -> Table:
    rows: list[tuple[str, str]] = []
    for step in steps[index : index + (3 if case.vector is None else 2)]:
        who = "guest kernel" if step.in_kernel else "guest user"
        named = step.in_kernel and step.rip == handlers.get(case.handler)
        where = f"{step.rip:#x}{': the handler' if named else ''}"
        if named and case.touches:
            where += f"; vcpu_info.arch.cr2 = {step.fault_address:#x}"
        rows += [(who, f"runs from {where}"), ("hypervisor", _event(step))]
    return Table(case.title, ("who", "what"), tuple(rows[:-1]))


def _event(step: Step) -> str:
    from minivmm.deprivileged.events import SystemCall, Trap

    event: Event = step.event
    if isinstance(event, Trap):
        at = f", CR2 {event.address:#x}" if event.vector == 14 else ""
        return f"gets exception {event.vector} at {event.rip:#x}, error {event.error_code:#x}{at}"
    if isinstance(event, SystemCall):
        return f"gets {'hypercall' if step.in_kernel else 'system call'} {step.number}"
    return f"gets {type(event).__name__}"
