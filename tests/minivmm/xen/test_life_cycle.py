"""A domain's life seen from outside: how it ends, by whose wish, and that nothing of it is left."""

from __future__ import annotations

import os
import threading
import time

import pytest

import guest_os
from minivmm.deprivileged.walk import translate
from minivmm.memory import HOLE_END, PAGE_SIZE
from minivmm.outcome import Outcome
from minivmm.xen.event_abi import Virq
from minivmm.xen.hypervisor import M2P_VIRT, Hypervisor
from minivmm.xen.machine import XenMachine
from minivmm.xen.recount import recount
from tests.minivmm.xen.kernels import Guest

pytestmark = pytest.mark.kvm

SPIN = "mov qword [ready], 1\nspin: jmp spin"
BLOCKED = "mov qword [ready], 1\nspin: hypercall sched_op, 1, 0\njmp spin"
HYPERCALLS = "mov qword [ready], 1\nspin: hypercall xen_version, 0, 0\njmp spin"
PAGE_CALLS = """
            mov qword [ready], 1
    spin:   call hypercall_page + 32 + 32 + 32 + 32 + 32 + 32 + 32 + 32 + 32 + 32 + 32 + 32 + 32 + 32 + 32 + 32 + 32
            jmp spin
"""
EXCEPTIONS = """
            hypercall set_trap_table, table
            mov qword [ready], 1
    spin:   ud2
    again:  mov rsp, stack_top
            jmp spin
            align 8
    table:  trap 6, 0, again
            end_of_traps
"""
LONG_TEXT = "mov qword [ready], 1\nspin: hypercall console_io, 0, 0x300000, 0xffffffff80000000\njmp spin"
# A thousand calls, each with a list of fifty thousand entries: an hour's work for one hypercall.
LONG_LIST = """
            mov rbx, 0xffffffff80240000
            mov rax, 1000
    fill:   mov qword [rbx], 26             ; mmuext_op
            mov rcx, 0xffffffff80260000
            mov [rbx + 16], rcx
            mov qword [rbx + 24], 50000
            mov qword [rbx + 40], 0x7ff0
            add rbx, 64
            dec rax
            jne fill
            mov rbx, 0xffffffff80260000
            mov rax, 50000
    flush:  mov qword [rbx], 6              ; tlb_flush_local
            add rbx, 24
            dec rax
            jne flush
            mov qword [ready], 1
            hypercall multicall, 0xffffffff80240000, 1000
            ud2
"""
USERS = {
    "a loop": SPIN,
    "asleep": BLOCKED,
    "hypercalls": HYPERCALLS,
    "the hypercall page": PAGE_CALLS,
    "exceptions": EXCEPTIONS,
    "a long text": LONG_TEXT,
    "a list without end": LONG_LIST,
}


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        (0, Outcome.SHUTDOWN),
        (1, Outcome.RESET),
        (2, Outcome.SUSPENDED),
        (3, Outcome.CRASHED),
        (4, Outcome.CRASHED),
        (5, Outcome.RESET),
        (0x2A00, Outcome.EXITED),
    ],
)
def test_the_reason_of_a_shutdown_is_the_outcome(guest: Guest, reason: int, outcome: Outcome) -> None:
    result = guest.run(f"hypercall sched_op, 2, reason\nreason: dd {reason}")
    assert result.outcome is outcome
    if outcome is Outcome.EXITED:
        assert result.code == 0x2A


@pytest.mark.parametrize("doing", USERS)
def test_a_domain_meets_its_deadline_whatever_it_does(guest: Guest, doing: str) -> None:
    guest.load(USERS[doing])
    guest.start(timeout=0.05)
    result = guest.wait()
    assert result.outcome is Outcome.DEADLINE
    assert result.seconds >= 0.05


@pytest.mark.parametrize("doing", USERS)
def test_a_domain_is_stopped_from_outside_whatever_it_does(guest: Guest, doing: str) -> None:
    guest.load(USERS[doing])
    guest.start()
    guest.wait_until_ready()
    guest.hypervisor.stop(guest.domain)
    assert guest.wait().outcome is Outcome.INTERRUPTED


@pytest.mark.svm_smoke
@pytest.mark.parametrize("doing", USERS)
def test_a_running_domain_is_destroyed_whatever_it_does(machine: Hypervisor, doing: str) -> None:
    free, cpus = machine.core.frames.free_frames, len(machine.free_cpus)
    with Guest(machine) as guest:
        guest.load(USERS[doing])
        guest.start()
        guest.wait_until_ready()
    assert machine.core.frames.free_frames == free
    assert len(machine.free_cpus) == cpus
    assert not machine.core.domains


def test_a_paused_domain_is_stopped_and_meets_its_deadline(machine: Hypervisor) -> None:
    for end in ("stop", "deadline"):
        with Guest(machine) as guest:
            guest.load(SPIN)
            guest.start(timeout=0.05 if end == "deadline" else 30)
            machine.pause(guest.domain)
            if end == "stop":
                machine.stop(guest.domain)
            assert guest.wait().outcome is (Outcome.INTERRUPTED if end == "stop" else Outcome.DEADLINE)


def test_a_domain_that_is_paused_before_it_starts_begins_when_it_is_unpaused(guest: Guest) -> None:
    guest.load("mov qword [ready], 1\nrecord 1\nshutdown")
    guest.hypervisor.pause(guest.domain)
    guest.start()
    time.sleep(0.01)
    assert guest.word("ready") == 0
    guest.hypervisor.unpause(guest.domain)
    assert guest.finish() == [1]


def test_an_event_does_not_wake_a_paused_domain(guest: Guest) -> None:
    guest.bind_virq(Virq.DEBUG)
    guest.load(
        """
            hypercall set_callbacks, callback, 0, 0
    spin:   hypercall sched_op, 1, 0
            jmp spin
    callback:
            record 1
            shutdown
        """
    )
    guest.start()
    guest.wait_until_blocked()
    guest.hypervisor.pause(guest.domain)
    guest.hypervisor.send_debug(guest.domain)
    time.sleep(0.01)
    assert guest.domain.end is None
    guest.hypervisor.unpause(guest.domain)
    assert guest.finish() == [1]


def test_a_hypercall_without_end_lets_another_domain_work(machine: Hypervisor) -> None:
    with Guest(machine) as busy, Guest(machine) as other:
        busy.load(LONG_LIST)
        busy.start()
        busy.wait_until_ready()
        assert other.records("mov rbx, 20\nagain: hypercall xen_version, 0, 0\ndec rbx\njne again\nshutdown") == []
        assert busy.domain.end is None


def test_a_domain_that_never_ran_leaves_nothing(machine: Hypervisor) -> None:
    free = machine.core.frames.free_frames
    for _ in range(3):
        with Guest(machine, vcpus=2):
            pass
    assert machine.core.frames.free_frames == free
    assert recount(machine.core.tables) == []


def test_fifty_domains_one_after_the_other_leave_nothing(machine: Hypervisor) -> None:
    """No frame, no file, no thread, no port, no name in the store."""
    core = machine.core

    def left() -> tuple[int, ...]:
        return (
            core.frames.free_frames,
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
            len(machine.free_cpus),
            len(core.domains),
            len(core.timers._due),
            len(core.tables.kernel_roots) + len(core.tables.user_roots) + len(core.tables.gdts) + len(core.tables.ldts),
        )

    for number in range(51):
        with Guest(machine) as guest:
            guest.give_user_space()
            guest.bind_ipi()
            result = guest.run(
                f"""
                hypercall vcpu_op, 5, 0, where
                hypercall vcpu_op, 10, 0, info
                hypercall set_timer_op, {1 << 61}
                hypercall vcpu_op, 6, 0, period
                hypercall sched_op, 2, reason
                align 8
        where:  dq spare
        info:   dq {guest.frame("scratch")}
                dq 0
        period: dq {1 << 40}
        reason: dd {(0, 1, 3)[number % 3]}
                """
            )
            assert result.outcome in (Outcome.SHUTDOWN, Outcome.RESET, Outcome.CRASHED)
        if number == 0:
            at_first = left()
    assert left() == at_first
    assert not +core.frames.pages
    assert not +core.frames.held


def test_a_machine_closes_with_domains_still_running() -> None:
    before = set(threading.enumerate())
    with Hypervisor(24 << 20, cpus=2) as machine:
        for source in (SPIN, BLOCKED):
            guest = Guest(machine)
            guest.load(source)
            guest.start()
            guest.wait_until_ready()
    # The VM itself may be on its way to be closed still (minivmm/kvm).
    assert {thread.name for thread in set(threading.enumerate()) - before} <= {"closing"}


def test_a_machine_counts_every_frame_again_and_finds_nothing_wrong() -> None:
    with Hypervisor(24 << 20, cpus=1, audit=1) as machine, Guest(machine) as guest:
        recorded = guest.records(
            f"""
                hypercall update_va_mapping, spare, 0, 0
                record rax
                hypercall update_va_mapping, spare, {guest.frame("spare") << 12 | 0x67}, 0
                record rax
                shutdown
            """
        )
    assert recorded == [0, 0]


def test_a_domain_may_have_memory_beyond_the_device_hole() -> None:
    memory = 3200 << 20  # its last frames are above 4 GiB, and have numbers that the hole's come before
    with XenMachine(guest_os.image("hello", "xen"), memory=memory) as machine:
        assert max(machine.domain.mfns) >= HOLE_END // PAGE_SIZE
        assert machine.run().outcome is Outcome.SHUTDOWN
        hypervisor, frames = machine.hypervisor, machine.hypervisor.core.frames
        for mfn in (min(machine.domain.mfns), max(machine.domain.mfns)):
            shown = translate(hypervisor.memory, machine.domain.start.registers.cr3, M2P_VIRT + 8 * mfn)
            assert shown == frames.m2p_mfns.start * PAGE_SIZE + 8 * mfn
        monitor = hypervisor.monitor
        root = hypervisor.memory.view(monitor.root, PAGE_SIZE).cast("Q")
        assert [slot for slot, entry in enumerate(root) if entry] == [monitor.slot]  # not one table too many
        root.release()
