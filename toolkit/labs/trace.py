"""Who was on a vCPU, in order, and why each left it: seen from where the hypervisor enters ring 3."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from minivmm.deprivileged.events import Event
    from minivmm.xen.vcpu import VirtualCpu


class Step(NamedTuple):
    """One stay of the domain at ring 3."""

    in_kernel: bool
    """Whether its kernel or its user code was entered: the hypervisor alone tells them apart."""
    rip: int
    """Where it was entered."""
    fault_address: int
    """vcpu_info.arch.cr2, as whoever was entered could read it."""
    event: Event
    """Why it came out."""
    number: int
    """RAX as it came out: which hypercall or system call it was, where it was one."""


class Trace:
    """The steps of a domain with one vCPU: `domain.watch = Trace()`. A kick from outside, of which the domain sees
    nothing, is none."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def __call__(self, vcpu: VirtualCpu, run: Callable[[], Event]) -> Event:
        """Runs the vCPU to its next event."""
        from minivmm.deprivileged.events import Interrupted

        in_kernel, rip, fault_address = vcpu.in_kernel, vcpu.regs.rip, vcpu.fault_address
        event = run()
        if type(event) is not Interrupted:
            self.steps.append(Step(in_kernel, rip, fault_address, event, vcpu.regs.rax & 0xFFFF_FFFF))
        return event
