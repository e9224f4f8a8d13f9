"""Event channels, one property a test; any order of calls is test_events_model.py's."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from errno import EINVAL, ENOENT, ENOSPC, ENOSYS

import pytest

from minivmm.errors import ConfigError, GuestMemoryError
from minivmm.memory import GuestMemory
from minivmm.xen import event_abi as abi
from minivmm.xen.abi import Domid, SharedInfo, VcpuInfo
from minivmm.xen.atomic import AtomicMemory
from minivmm.xen.errors import HypercallError
from minivmm.xen.event_abi import EventOp, Virq
from minivmm.xen.events import EventChannels

SHARED = {1: 0x1000, 2: 0x2000}
MOVED = 0x8040


class Xen:
    """Two domains of two vCPUs and what was told about them."""

    def __init__(self) -> None:
        self.memory = GuestMemory(1 << 20)
        self.notified: list[tuple[int, int]] = []
        self.polled: list[tuple[int, int]] = []
        self.events = EventChannels(
            self.memory,
            lambda domid, vcpu: self.notified.append((domid, vcpu)),
            lambda domid, port: self.polled.append((domid, port)),
        )
        for domid, page in SHARED.items():
            self.events.add_domain(domid, vcpus=2, shared_info=page)

    def connect(self) -> tuple[int, int]:
        """A channel between the domains, nothing pending: domain 1's port and domain 2's."""
        one = self.events.alloc_unbound(1, abi.AllocUnbound(Domid.SELF, 2, 0)).port
        two = self.events.bind_interdomain(2, abi.BindInterdomain(1, one, 0)).local_port
        self.quiet(2)
        return one, two

    def quiet(self, domid: int) -> None:
        """The guest has handled everything."""
        self.memory.write(SHARED[domid], bytes(SharedInfo.EVTCHN_MASK))
        self.notified.clear()
        self.polled.clear()


@pytest.fixture
def xen() -> Iterator[Xen]:
    machine = Xen()
    yield machine
    machine.memory.close()


def test_an_event_reaches_the_peer_once_until_it_is_handled(xen: Xen) -> None:
    one, two = xen.connect()
    xen.events.send(1, abi.Port(one))
    xen.events.send(1, abi.Port(one))
    assert xen.notified == [(2, 0)]
    assert xen.memory.read_u64(SHARED[2] + SharedInfo.EVTCHN_PENDING) == 1 << two
    assert xen.memory.read_u64(SHARED[2] + VcpuInfo.EVTCHN_PENDING_SEL) == 1
    assert xen.events.deliverable(2, 0)
    xen.quiet(2)
    xen.events.send(1, abi.Port(one))
    assert xen.notified == [(2, 0)]


def test_a_vcpu_with_its_upcalls_masked_is_notified_but_not_called(xen: Xen) -> None:
    one, _ = xen.connect()
    xen.memory.write(SHARED[2] + VcpuInfo.EVTCHN_UPCALL_MASK, b"\x01")
    xen.events.send(1, abi.Port(one))
    assert xen.notified == [(2, 0)]
    assert not xen.events.deliverable(2, 0)


def test_a_masked_event_waits_for_unmask_and_a_poller_sees_it(xen: Xen) -> None:
    one, two = xen.connect()
    xen.memory.write_u64(SHARED[2] + SharedInfo.EVTCHN_MASK, (1 << 64) - 1)
    xen.events.send(1, abi.Port(one))
    assert (xen.notified, xen.polled) == ([], [(2, two)])
    assert xen.events.is_pending(2, two)
    xen.events.unmask(2, abi.Port(two))
    assert xen.notified == [(2, 0)]


def test_binding_sets_the_new_end_pending_so_that_an_early_event_is_not_lost(xen: Xen) -> None:
    one = xen.events.alloc_unbound(1, abi.AllocUnbound(Domid.SELF, 2, 0)).port
    xen.events.send(1, abi.Port(one))
    assert xen.notified == []
    xen.events.bind_interdomain(2, abi.BindInterdomain(1, one, 0))
    assert xen.notified == [(2, 0)]


def test_a_closed_peer_waits_for_the_same_domain_to_return(xen: Xen) -> None:
    one, _ = xen.connect()
    xen.events.remove_domain(2)
    xen.events.send(1, abi.Port(one))
    status = xen.events.status(1, abi.Status(Domid.SELF, one, 0, 0, 0, 0))
    assert (status.status, status.remote) == (abi.PortState.UNBOUND, 2)
    xen.events.add_domain(2, vcpus=1, shared_info=SHARED[2])
    xen.events.bind_interdomain(2, abi.BindInterdomain(1, one, 0))
    assert xen.events.status(1, abi.Status(1, one, 0, 0, 0, 0)).status == abi.PortState.INTERDOMAIN


def test_loopback_ends_survive_their_own_reset(xen: Xen) -> None:
    port = xen.events.alloc_unbound(1, abi.AllocUnbound(Domid.SELF, Domid.SELF, 0)).port
    xen.events.bind_interdomain(1, abi.BindInterdomain(Domid.SELF, port, 0))
    xen.events.reset(1, abi.Reset(Domid.SELF))
    assert list(xen.events.ports(1)) == []


def test_a_per_vcpu_virq_goes_to_its_vcpu_and_a_global_one_where_it_was_moved(xen: Xen) -> None:
    xen.events.bind_virq(1, abi.BindVirq(Virq.TIMER, 1, 0))
    console = xen.events.bind_virq(1, abi.BindVirq(Virq.CONSOLE, 0, 0)).port
    xen.events.bind_vcpu(1, abi.BindVcpu(console, 1))
    xen.events.raise_virq(1, Virq.TIMER, 0)
    assert xen.notified == []
    xen.events.raise_virq(1, Virq.TIMER, 1)
    assert xen.notified == [(1, 1)]
    xen.quiet(1)
    xen.events.raise_virq(1, Virq.CONSOLE)
    assert xen.notified == [(1, 1)]
    xen.events.close(1, abi.Port(console))
    assert xen.events.bind_virq(1, abi.BindVirq(Virq.CONSOLE, 0, 0)).port == console


def test_a_channel_to_the_hypervisor_works_both_ways_until_the_guest_closes_it(xen: Xen) -> None:
    heard: list[int] = []
    port = xen.events.attach(1, heard.append)
    xen.events.send(1, abi.Port(port))
    xen.events.raise_port(1, port)
    assert (heard, xen.notified) == ([port], [(1, 0)])
    xen.quiet(1)
    xen.events.close(1, abi.Port(port))
    xen.events.raise_port(1, port)
    assert xen.notified == []


def test_a_moved_vcpu_info_has_everything_pending_and_moves_once(xen: Xen) -> None:
    one, _ = xen.connect()
    xen.events.register_vcpu_info(2, 0, MOVED)
    assert xen.notified == [(2, 0)]
    assert xen.memory.read_u64(MOVED + VcpuInfo.EVTCHN_PENDING_SEL) == (1 << 64) - 1
    xen.memory.write(MOVED, bytes(VcpuInfo.SIZE))
    xen.events.send(1, abi.Port(one))
    assert xen.memory.read(MOVED, 1) == b"\x01"
    assert xen.memory.read(SHARED[2], 1) == b"\x00"
    for vcpu, address, errno in ((0, MOVED, EINVAL), (1, 0x8FC8, EINVAL), (1, MOVED + 4, EINVAL), (2, MOVED, ENOENT)):
        with pytest.raises(HypercallError) as refused:
            xen.events.register_vcpu_info(2, vcpu, address)
        assert refused.value.errno == errno


def test_all_4095_ports_can_be_had_and_no_more(xen: Xen) -> None:
    ports = [xen.events.bind_ipi(1, abi.BindIpi(1, 0)).port for _ in range(4095)]
    assert ports == list(range(1, 4096))
    with pytest.raises(HypercallError) as full:
        xen.events.bind_ipi(1, abi.BindIpi(1, 0))
    assert full.value.errno == ENOSPC
    xen.events.send(1, abi.Port(4095))
    assert xen.memory.read_u64(SHARED[1] + 64 + VcpuInfo.EVTCHN_PENDING_SEL) == 1 << 63


@pytest.mark.parametrize(
    ("cmd", "argument", "errno"),
    [
        (EventOp.BIND_PIRQ, struct.pack("<III", 1, 0, 0), EINVAL),
        (11, bytes(24), ENOSYS),  # EVTCHNOP_init_control: there is no FIFO ABI
        (2**32 - 1, b"", ENOSYS),
        (EventOp.SEND, b"\x01", EINVAL),
        (EventOp.SEND, struct.pack("<I", 0), EINVAL),
    ],
)
def test_what_there_is_not_is_refused_with_xens_error(xen: Xen, cmd: int, argument: bytes, errno: int) -> None:
    with pytest.raises(HypercallError) as refused:
        xen.events.event_channel_op(1, cmd, argument)
    assert refused.value.errno == errno


def test_a_domain_that_does_not_fit_is_refused(xen: Xen) -> None:
    for domid, vcpus, page in ((1, 1, 0x3000), (0x7FF0, 1, 0x3000), (3, 33, 0x3000), (3, 0, 0x3000), (3, 1, 0x3008)):
        with pytest.raises(ConfigError):
            xen.events.add_domain(domid, vcpus=vcpus, shared_info=page)
    with pytest.raises(GuestMemoryError):
        xen.events.add_domain(3, vcpus=1, shared_info=1 << 20)


def test_locked_instructions_touch_only_aligned_memory_of_the_machine(xen: Xen) -> None:
    atomic = AtomicMemory(xen.memory)
    assert not atomic.test_and_set_bit(0x100, 63)
    assert atomic.test_and_set_bit(0x100, 63)
    assert xen.memory.read(0x100, 8) == bytes(7) + b"\x80"
    assert atomic.test_and_clear_bit(0x100, 63)
    assert atomic.compare_exchange(0x104, 5, 6) == 0
    assert atomic.compare_exchange(0x104, 0, 0xFFFFFFFF) == 0
    assert xen.memory.read_u64(0x100) == 0xFFFFFFFF00000000
    for address in (0x101, 0x104, 1 << 20, (1 << 20) - 4, -8, 1 << 63):
        with pytest.raises(GuestMemoryError):
            atomic.test_and_set_bit(address, 0)


def test_a_locked_instruction_on_closed_memory_harms_nobody() -> None:
    memory = GuestMemory(1 << 20)
    atomic = AtomicMemory(memory)
    memory.close()
    assert not atomic.test_and_set_bit(0x100, 1)
    assert atomic.test_and_set_bit(0x100, 1)
