"""Events between the vCPUs of a domain, and where each of them finds its own."""

from __future__ import annotations

import errno

import pytest

from minivmm.xen.event_abi import Virq
from tests.minivmm.xen.kernels import Guest, error

pytestmark = pytest.mark.kvm

# -- two vCPUs


@pytest.mark.svm_smoke
def test_ipis_go_both_ways(two_vcpus: Guest) -> None:
    guest = two_vcpus
    to_second, to_first = guest.bind_ipi(1), guest.bind_ipi(0)
    guest.load(
        f"""
            hypercall set_callbacks, callback, 0, 0
            up
            hypercall event_channel_op, SEND, to_second
            hypercall sched_op, 1, 0
            shutdown
    callback:
            btr qword [port_pending], {to_first}
            mov byte [pending], 0
            mov qword [selector], 0
            record 1
            return

    second: hypercall sched_op, 1, 0
            jmp second
    callback1:
            btr qword [port_pending], {to_second}
            mov byte [pending + 64], 0
            mov qword [selector + 64], 0
            record 2
            hypercall event_channel_op, SEND, to_first
            return
    to_first:
            dd {to_first}
    to_second:
            dd {to_second}
        """
    )
    guest.prepare_vcpu("second", event_callback_eip=guest.address("callback1"))
    guest.start()
    assert guest.finish() == [1]
    assert guest.recorded(1) == [2]


@pytest.mark.parametrize("spins", [False, True])
def test_bind_vcpu_moves_a_ports_events_to_another_vcpu(two_vcpus: Guest, spins: bool) -> None:
    guest = two_vcpus
    port = guest.domain.store_port  # a port with a peer
    guest.load(
        f"""
            hypercall set_callbacks, wrong, 0, 0
            mov byte [mask], 0
            up
            hypercall event_channel_op, BIND_VCPU, move
            record rax
            mov qword [ready], 1
    wait:   cmp qword [go], 1
            jne wait
            shutdown
    wrong:  record 66
            shutdown
    second: {"jmp second" if spins else "hypercall sched_op, 1, 0"}
            jmp second
    callback1:
            mov rax, 0
            xchg [port_pending], rax
            record rax
            mov qword [go], 1
            hypercall vcpu_op, 2, 1, 0
    move:   dd {port}, 1
        """
    )
    guest.prepare_vcpu("second", event_callback_eip=guest.address("callback1"))
    guest.domain.vcpus[1].events_masked = False
    guest.start()
    guest.wait_until_ready()
    with guest.core.lock:
        guest.core.events.raise_port(guest.domid, port)
    assert guest.finish() == [0]
    assert guest.recorded(1) == [1 << port]


def test_a_debug_virq_goes_to_every_vcpu(two_vcpus: Guest) -> None:
    guest = two_vcpus
    ports = [guest.bind_virq(Virq.DEBUG, vcpu) for vcpu in (0, 1)]
    guest.load(
        """
            hypercall set_callbacks, callback, 0, 0
            up
            mov byte [mask], 0
            mov qword [ready], 1
    spin:   cmp qword [go], 2
            jne spin
            shutdown
    callback:
            record [selector]
            inc qword [go]
            mov byte [pending], 0
            return
    second: jmp second
    callback1:
            record [selector + 64]
            inc qword [go]
            mov byte [pending + 64], 0
            hypercall vcpu_op, 2, 1, 0
        """
    )
    guest.prepare_vcpu("second", event_callback_eip=guest.address("callback1"))
    guest.domain.vcpus[1].events_masked = False
    guest.start()
    guest.wait_until_ready()
    guest.hypervisor.send_debug(guest.domain)
    assert guest.finish() == [1]
    assert guest.recorded(1) == [1]
    assert ports[0] != ports[1]


def test_register_vcpu_info_moves_the_words_of_a_vcpu(guest: Guest) -> None:
    port = guest.bind_ipi()
    recorded = guest.records(
        f"""
            hypercall set_callbacks, callback, 0, 0
            hypercall vcpu_op, 10, 0, where
            record rax
            record [spare + 256]            ; it says that something is pending: nothing may be lost
            mov byte [spare + 256], 0
            mov qword [spare + 264], 0
            mov byte [spare + 257], 0
            hypercall event_channel_op, SEND, port
            record [mask]                   ; the old words are nobody's
            record [fault_address]
            hypercall set_trap_table, table
            mov rbx, 0x7fff00000000
            mov rax, [rbx]
    fault:  record [spare + 256 + 16]
            hypercall vcpu_op, 10, 0, where
            record rax                      ; once only
            shutdown
    callback:
            record [spare + 257]
            record [port_pending]
            mov byte [spare + 256], 0
            return
    where:  dq {guest.frame("spare")}
            dd 256, 0
    port:   dd {port}
            align 8
    table:  trap 14, 0, fault
            end_of_traps
        """
    )
    assert recorded[0] == 0
    assert recorded[1] & 0xFFFF == 0x0101
    assert recorded[2] & 1 == 1
    assert recorded[3] == 1 << port
    assert recorded[5] == 0
    assert recorded[6:] == [0x7FFF00000000, error(errno.EINVAL)]


@pytest.mark.parametrize(("frame", "offset"), [("spare", 4096 - 56), ("spare", 4), ("none", 0)])
def test_a_vcpu_info_that_does_not_fit_is_refused_and_nothing_is_held(guest: Guest, frame: str, offset: int) -> None:
    mfn = guest.frame("spare") if frame == "spare" else 1 << 30
    held = list(guest.domain.held_mfns)
    recorded = guest.records(f"hypercall vcpu_op, 10, 0, where\nrecord rax\nshutdown\nwhere: dq {mfn}\ndd {offset}, 0")
    assert recorded == [error(errno.EINVAL)]
    assert guest.domain.held_mfns == held
