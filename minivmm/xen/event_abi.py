"""xen/event_channel.h, and what it touches of xen/xen.h, for x86-64 under their own names. Nothing here does anything.

The tests compile these numbers against Xen's headers.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from minivmm.layout import Layout

EVTCHN_2L_NR_CHANNELS = 4096  # the two-level ABI: 64 selector bits of 64 ports each
NR_VIRQS = 24


class Virq(IntEnum):
    """VIRQ_*: what the hypervisor has to tell. Global unless in PER_VCPU_VIRQS."""

    TIMER = 0
    DEBUG = 1
    CONSOLE = 2
    DOM_EXC = 3
    TBUF = 4
    DEBUGGER = 6
    XENOPROF = 7
    CON_RING = 8
    PCPU_STATE = 9
    MEM_EVENT = 10
    ARGO = 11
    ENOMEM = 12
    XENPMU = 13


# xen.h marks these "V." (per vCPU), the others "G." (global).
PER_VCPU_VIRQS = frozenset({Virq.TIMER, Virq.DEBUG, Virq.XENOPROF, Virq.XENPMU})


class EventOp(IntEnum):
    """EVTCHNOP_*: the first argument of event_channel_op."""

    BIND_INTERDOMAIN = 0
    BIND_VIRQ = 1
    BIND_PIRQ = 2
    CLOSE = 3
    SEND = 4
    STATUS = 5
    ALLOC_UNBOUND = 6
    BIND_IPI = 7
    BIND_VCPU = 8
    UNMASK = 9
    RESET = 10


class PortState(IntEnum):
    """EVTCHNSTAT_*."""

    CLOSED = 0
    UNBOUND = 1
    INTERDOMAIN = 2
    PIRQ = 3
    VIRQ = 4
    IPI = 5


class AllocUnbound(NamedTuple):
    """struct evtchn_alloc_unbound. `port` is returned."""

    dom: int
    remote_dom: int
    port: int


class BindInterdomain(NamedTuple):
    """struct evtchn_bind_interdomain. `local_port` is returned."""

    remote_dom: int
    remote_port: int
    local_port: int


class BindVirq(NamedTuple):
    """struct evtchn_bind_virq. `port` is returned."""

    virq: int
    vcpu: int
    port: int


class BindPirq(NamedTuple):
    """struct evtchn_bind_pirq. `port` is returned."""

    pirq: int
    flags: int
    port: int


class BindIpi(NamedTuple):
    """struct evtchn_bind_ipi. `port` is returned."""

    vcpu: int
    port: int


class Port(NamedTuple):
    """struct evtchn_close, evtchn_send and evtchn_unmask."""

    port: int


class Status(NamedTuple):
    """struct evtchn_status: everything from `status` on is returned, `u` as `remote` and `remote_port` below."""

    dom: int
    port: int
    status: int  # PortState
    vcpu: int
    remote: int  # u.unbound.dom, u.interdomain.dom (16 bits) or u.virq
    remote_port: int  # u.interdomain.port


class BindVcpu(NamedTuple):
    """struct evtchn_bind_vcpu."""

    port: int
    vcpu: int


class Reset(NamedTuple):
    """struct evtchn_reset."""

    dom: int


ALLOC_UNBOUND = Layout("<HHI", AllocUnbound)
BIND_INTERDOMAIN = Layout("<H2xII", BindInterdomain)
BIND_VIRQ = Layout("<III", BindVirq)
BIND_PIRQ = Layout("<III", BindPirq)
BIND_IPI = Layout("<II", BindIpi)
PORT = Layout("<I", Port)
STATUS = Layout("<H2xIIIII", Status)
BIND_VCPU = Layout("<II", BindVcpu)
RESET = Layout("<H", Reset)
