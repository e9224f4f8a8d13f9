"""event_channel_op (event_channel.h): the copying; what is done is events.py's."""

from __future__ import annotations

from minivmm.xen.vcpu import VirtualCpu


def event_channel_op(vcpu: VirtualCpu, cmd: int, argument: int) -> int:
    """One operation. Its structure is copied in once, and back where it returns something."""
    events = vcpu.core.events
    cmd &= 0xFFFF_FFFF
    copied = vcpu.pages.read(argument, events.argument_size(cmd))
    answer = events.event_channel_op(vcpu.domain.domid, cmd, copied)
    if answer != copied:
        vcpu.pages.write(argument, answer)
    return 0
