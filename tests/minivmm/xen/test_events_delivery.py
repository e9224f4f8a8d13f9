"""Events reach a domain's kernel: while it runs, sleeps, has them masked, or waits for a port; timers and IPIs."""

from __future__ import annotations

import threading

import pytest

from minivmm.outcome import Outcome
from minivmm.xen.event_abi import Virq
from tests.minivmm.xen.kernels import SYMBOLS, Guest

pytestmark = pytest.mark.kvm

IF = 1 << 9


@pytest.mark.svm_smoke
def test_an_event_interrupts_a_loop_without_exits(guest: Guest) -> None:
    port = guest.bind_virq(Virq.DEBUG)
    guest.load(
        """
            hypercall set_callbacks, callback, 0, 0
            mov byte [mask], 0
            mov rcx, 0x1111
            mov r11, 0x2222
            mov qword [ready], 1
    spin:   jmp spin
    callback:
            record_frame 7
            record rsp
            record [mask]
            take_events
            shutdown
        """
    )
    guest.start()
    guest.wait_until_ready()
    guest.hypervisor.send_debug(guest.domain)
    rcx, r11, rip, cs, rflags, rsp, ss, top, mask, ports = guest.finish()
    assert (rcx, r11, rip) == (0x1111, 0x2222, guest.address("spin"))
    assert (cs, ss, rsp) == (0xE030, 0xE02B, SYMBOLS["stack_top"])
    assert rflags & IF
    assert top == SYMBOLS["stack_top"] - 56
    assert mask & 1 == 1
    assert ports == 1 << port


@pytest.mark.svm_smoke
def test_an_event_interrupts_user_code_on_the_kernels_stack(guest: Guest) -> None:
    guest.give_user_space()
    guest.bind_virq(Virq.DEBUG)
    guest.load(
        """
            hypercall set_callbacks, callback, 0, 0
            hypercall stack_switch, flat_ss, trap_stack_top
            to_user user
    user:   mov qword [ready], 1
    spin:   jmp spin
    callback:
            record_frame 7
            record rsp
            shutdown
        """
    )
    guest.start()
    guest.wait_until_ready()
    guest.hypervisor.send_debug(guest.domain)
    _, _, rip, cs, _, rsp, _, top = guest.finish()
    assert (rip, cs, rsp) == (guest.address("spin"), 0xE033, SYMBOLS["user_stack_top"])
    assert top == SYMBOLS["trap_stack_top"] - 56


@pytest.mark.svm_smoke
def test_an_event_wakes_a_kernel_that_blocks_and_comes_before_the_call_returns(guest: Guest) -> None:
    port = guest.bind_virq(Virq.DEBUG)
    guest.load(
        """
            hypercall set_callbacks, callback, 0, 0
            mov qword [ready], 1
            hypercall sched_op, 1, 0
            record rax
            record [mask]
            shutdown
    callback:
            take_events
            record [mask]
            return
        """
    )
    guest.start()
    guest.wait_until_ready()
    guest.hypervisor.send_debug(guest.domain)
    ports, mask, result, mask_after = guest.finish()
    assert (ports, mask & 1, result, mask_after & 1) == (1 << port, 1, 0, 0)  # blocking lets events in


@pytest.mark.parametrize("way", ["hlt", "hypercall sched_op, 1, 0"])
def test_a_kernel_does_not_sleep_over_an_event_that_waits_already(guest: Guest, way: str) -> None:
    port = guest.bind_ipi()
    recorded = guest.records(
        f"""
            hypercall set_callbacks, callback, 0, 0
            hypercall event_channel_op, SEND, port
            record [pending]
            {way}
            record 7
            shutdown
    port:   dd {port}
    callback:
            take_events
            record [mask]
            return
        """
    )
    assert recorded[0] & 0xFFFF == 0x0101  # pending, and masked: it waits
    assert recorded[1] == 1 << port
    assert recorded[3] == 7


def test_a_masked_event_waits_until_iret_lets_it_in(guest: Guest) -> None:
    port = guest.bind_ipi()
    recorded = guest.records(
        f"""
            hypercall set_callbacks, callback, 0, 0
            hypercall event_channel_op, SEND, port
            record [port_pending]
            record [selector]
            iret_to there, kernel_cs, 0x202, stack_top, flat_ss, 0
    there:  record 7
            shutdown
    port:   dd {port}
    callback:
            take_events
            record [mask]
            return
        """
    )
    assert recorded[:3] == [1 << port, 1, 1 << port]
    assert recorded[4] == 7


def test_a_store_to_the_mask_lets_events_in_at_the_next_hypercall(guest: Guest) -> None:
    port = guest.bind_ipi()
    recorded = guest.records(
        f"""
            hypercall set_callbacks, callback, 0, 0
            hypercall event_channel_op, SEND, port
            mov byte [mask], 0
            hypercall xen_version, 0, 0     ; what Linux calls force_evtchn_callback
            record rax
            shutdown
    port:   dd {port}
    callback:
            take_events
            record [mask]
            return
        """
    )
    assert recorded[0] == 1 << port
    assert recorded[2] == 4 << 16 | 17


def test_events_during_a_callback_come_after_it_and_not_within(guest: Guest) -> None:
    first, second = guest.bind_ipi(), guest.bind_ipi()
    recorded = guest.records(
        f"""
            mov rbx, 0
            hypercall set_callbacks, callback, 0, 0
            mov byte [mask], 0
            hypercall event_channel_op, SEND, first
            record rax
            shutdown
    callback:
            take_events
            inc rbx
            cmp rbx, 2
            je out
            hypercall event_channel_op, SEND, second
            record [pending]
    out:    record 9
            return
    first:  dd {first}
    second: dd {second}
        """
    )
    assert recorded[0] == 1 << first
    assert recorded[1] & 0xFFFF == 0x0101
    assert recorded[2:5] == [9, 1 << second, 9]


def test_a_callback_that_lets_events_in_is_interrupted_by_the_next(guest: Guest) -> None:
    first, second = guest.bind_ipi(), guest.bind_ipi()
    recorded = guest.records(
        f"""
            mov rbx, 0
            hypercall set_callbacks, callback, 0, 0
            mov byte [mask], 0
            hypercall event_channel_op, SEND, first
            record 5
            shutdown
    callback:
            take_events
            inc rbx
            record rbx
            cmp rbx, 2
            je out
            mov byte [mask], 0
            hypercall event_channel_op, SEND, second
            record 8
    out:    return
    first:  dd {first}
    second: dd {second}
        """
    )
    assert recorded == [1 << first, 1, 1 << second, 2, 8, 5]


def test_a_masked_port_is_pending_without_an_upcall_and_comes_when_unmasked(guest: Guest) -> None:
    port = guest.bind_ipi()
    recorded = guest.records(
        f"""
            hypercall set_callbacks, callback, 0, 0
            mov byte [mask], 0
            bts qword [port_mask], {port}
            hypercall event_channel_op, SEND, port
            record [port_pending]
            record [selector]
            hypercall event_channel_op, UNMASK, port
            record 7
            shutdown
    port:   dd {port}
    callback:
            take_events
            record [mask]
            return
        """
    )
    assert recorded[:3] == [1 << port, 0, 1 << port]
    assert recorded[4] == 7


def test_an_event_without_a_callback_waits_for_one(guest: Guest) -> None:
    port = guest.bind_ipi()
    recorded = guest.records(
        f"""
            mov byte [mask], 0
            hypercall event_channel_op, SEND, port
            record rax
            hypercall set_callbacks, callback, 0, 0
            record 7
            shutdown
    port:   dd {port}
    callback:
            take_events
            record [mask]
            return
        """
    )
    assert recorded[:2] == [0, 1 << port]
    assert recorded[3] == 7


def test_the_callback_may_be_registered_by_callback_op(guest: Guest) -> None:
    port = guest.bind_ipi()
    recorded = guest.records(
        f"""
            hypercall callback_op, 0, register
            mov byte [mask], 0
            hypercall event_channel_op, SEND, port
            shutdown
    port:   dd {port}
    register:
            dw 0, 0
            dd 0
            dq callback
    callback:
            take_events
            record [mask]
            return
        """
    )
    assert recorded[0] == 1 << port


def test_a_storm_of_events_does_not_starve_the_kernel(guest: Guest) -> None:
    guest.bind_virq(Virq.DEBUG)
    guest.load(
        """
            hypercall set_callbacks, callback, 0, 0
            mov byte [mask], 0
            mov rbx, 300
    again:  hypercall xen_version, 0, 0
            dec rbx
            jne again
            shutdown
    callback:
            take_events
            mov r15, records
            return
        """
    )
    guest.start()
    over = threading.Event()

    def storm() -> None:
        while not over.is_set():
            guest.hypervisor.send_debug(guest.domain)

    threads = [threading.Thread(target=storm) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert guest.wait().outcome is Outcome.SHUTDOWN
    finally:
        over.set()
        for thread in threads:
            thread.join()


# -- NMIs


def test_an_nmi_waits_for_the_iret_of_the_one_before(guest: Guest) -> None:
    recorded = guest.records(
        """
            mov rbx, 0
            hypercall nmi_op, 0, nmi
            record rax
            hypercall vcpu_op, 11, 0, 0
            record 5
            shutdown
    handler:
            inc rbx
            record rbx
            record [rsp + 16]
            cmp rbx, 2
            je out
            hypercall vcpu_op, 11, 0, 0
    inside: record 6
    out:    return
    nmi:    dq handler, 0
        """
    )
    assert recorded[:2] == [0, 1]
    assert recorded[3:5] == [6, 2]
    assert recorded[5] == recorded[2]
    assert recorded[6] == 5
