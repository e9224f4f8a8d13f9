"""A domain sleeps until a port has an event, or a time has come."""

from __future__ import annotations

import errno
import threading
from functools import partial

import pytest

from minivmm.xen.event_abi import Virq
from tests.minivmm.xen.kernels import Guest, error

pytestmark = pytest.mark.kvm

# -- SCHEDOP_poll


POLL = """
    poll:   dq port
            dd {count}, 0
            dq {timeout}
    port:   dd {port}
"""


def polled(guest: Guest, port: int, *, count: int = 1, timeout: int = 0, before: str = "") -> list[int]:
    return guest.records(
        f"""
            {before}
            hypercall sched_op, 3, poll
            record rax
            record [port_pending]
            shutdown
        {POLL.format(port=port, count=count, timeout=timeout)}
        """
    )


def test_poll_returns_at_once_for_a_port_with_an_event(guest: Guest) -> None:
    port = guest.bind_ipi()
    assert polled(guest, port, before="hypercall event_channel_op, SEND, port") == [0, 1 << port]


def test_poll_returns_at_a_time_that_has_passed(guest: Guest) -> None:
    assert polled(guest, guest.bind_ipi(), timeout=1) == [0, 0]


def test_poll_returns_when_its_time_is_up(guest: Guest) -> None:
    guest.vcpu.update_time(force=True)
    assert polled(guest, guest.bind_ipi(), timeout=guest.core.clock.now() + 2_000_000) == [0, 0]
    assert guest.domain.polling == 0


@pytest.mark.parametrize(("port", "count", "number"), [(4096, 1, errno.EINVAL), (1, 129, errno.EINVAL)])
def test_poll_refuses_what_is_no_port_and_too_many(guest: Guest, port: int, count: int, number: int) -> None:
    assert polled(guest, port, count=count)[0] == error(number)


@pytest.mark.parametrize("masked", [False, True])
def test_poll_is_woken_by_its_port_with_events_masked(guest: Guest, masked: bool) -> None:
    port = guest.bind_virq(Virq.DEBUG)
    guest.load(
        f"""
            {f"bts qword [port_mask], {port}" if masked else "nop"}
            mov qword [ready], 1
            hypercall sched_op, 3, poll
            record rax
            record [port_pending]
            shutdown
        {POLL.format(port=port, count=1, timeout=0)}
        """
    )
    guest.start()
    guest.wait_until_ready()
    guest.hypervisor.send_debug(guest.domain)
    assert guest.finish() == [0, 1 << port]
    assert guest.domain.polling == 0


# -- timers


def test_the_timer_of_set_timer_op_is_an_event_at_its_time(guest: Guest) -> None:
    port = guest.bind_virq(Virq.TIMER)
    when = guest.core.clock.now() + 3_000_000
    recorded = guest.records(
        f"""
            hypercall set_callbacks, callback, 0, 0
            hypercall set_timer_op, {when}
            record rax
            hypercall sched_op, 1, 0
            shutdown
    callback:
            take_events
            record [mask]
            return
        """
    )
    assert recorded[:2] == [0, 1 << port]
    assert guest.core.clock.now() >= when


def test_a_timer_that_is_stopped_does_not_come(guest: Guest) -> None:
    guest.bind_virq(Virq.TIMER)
    when = guest.core.clock.now() + 300_000_000_000
    recorded = guest.records(
        f"""
            hypercall set_timer_op, {when}
            hypercall set_timer_op, 0
            record rax
            record [port_pending]
            shutdown
        """
    )
    assert recorded == [0, 0]
    assert (guest.vcpu, "singleshot") not in guest.core.timers._due


def singleshot(guest: Guest, when: int, flags: int) -> list[int]:
    return guest.records(
        f"""
            hypercall vcpu_op, 8, 0, timer
            record rax
            cmp rax, 0
            jne out
            hypercall sched_op, 1, 0
            record [port_pending]
    out:    shutdown
    timer:  dq {when}
            dd {flags}, 0
        """
    )


def test_a_singleshot_timer_of_the_past_comes_at_once(guest: Guest) -> None:
    port = guest.bind_virq(Virq.TIMER)
    assert singleshot(guest, 1, 0) == [0, 1 << port]


def test_a_singleshot_timer_that_must_be_in_the_future_is_refused_in_the_past(guest: Guest) -> None:
    guest.bind_virq(Virq.TIMER)
    assert singleshot(guest, 1, 1) == [error(errno.ETIME)]


def test_a_periodic_timer_comes_again_until_it_is_stopped(guest: Guest) -> None:
    port = guest.bind_virq(Virq.TIMER)
    recorded = guest.records(
        """
            hypercall set_callbacks, callback, 0, 0
            mov rbx, 3
            hypercall vcpu_op, 6, 0, period
            record rax
    again:  hypercall sched_op, 1, 0
            cmp rbx, 0
            jne again
            hypercall vcpu_op, 7, 0, 0
            record rax
            shutdown
    callback:
            take_events
            cmp rbx, 0
            je out
            dec rbx
    out:    return
            align 8
    period: dq 5000000
        """
    )
    assert recorded[0] == recorded[-1] == 0
    assert recorded[1:4] == [1 << port] * 3
    assert (guest.vcpu, "periodic") not in guest.core.timers._due


def test_a_period_below_a_millisecond_is_refused(guest: Guest) -> None:
    assert guest.records("hypercall vcpu_op, 6, 0, p\nrecord rax\nshutdown\np: dq 999999") == [error(errno.EINVAL)]


def test_a_timer_that_is_set_for_ever_costs_no_memory(guest: Guest) -> None:
    timers, now = guest.core.timers, guest.core.clock.now()
    called: list[int] = []
    with guest.core.lock:
        for number in range(10_000):
            timers.set("a timer", now + (1 << 50) + number, lambda: called.append(1))
        assert len(timers._heap) < 200
        timers.cancel("a timer")
    assert not called


def test_timers_come_in_their_order_however_often_they_were_set(guest: Guest) -> None:
    timers, now = guest.core.timers, guest.core.clock.now()
    called: list[int] = []
    over = threading.Event()
    with guest.core.lock:
        for _ in range(200):
            for number in range(3):
                timers.set(number, now + 1_000_000 * (number + 1), partial(called.append, number))
        timers.set("last", now + 5_000_000, over.set)
    assert over.wait(30)
    assert called == [0, 1, 2]
