"""Time as a domain computes it (xen.h, vcpu_time_info; wall clock), and where its vCPUs spend theirs (vcpu.h)."""

from __future__ import annotations

import errno
import struct
import time

import pytest

from minivmm.xen import vcpu as vcpu_module
from minivmm.xen.abi import RUNSTATE_UPDATE, VCPU_RUNSTATE_INFO, Runstate, SharedInfo
from minivmm.xen.clock import Clock, Moment, tsc_scale
from minivmm.xen.event_abi import Virq
from minivmm.xen.hypervisor import Hypervisor
from tests.minivmm.xen.kernels import Guest, error

pytestmark = pytest.mark.kvm

NANOSECONDS = 10**9


def read_time(guest: Guest) -> str:
    """RAX becomes system time: RBX, RCX, RDX and RSI are lost."""
    shift = guest.core.clock.shift
    scaled = f"shl rax, {shift}" if shift >= 0 else f"shr rax, {-shift}"
    return f"""
            mov rsi, [time]             ; the version: nobody writes while the vCPU runs
            rdtsc
            shl rdx, 32
            or rax, rdx
            sub rax, [time + 8]
            {scaled}
            mov ebx, dword [time + 24]
            mul rbx
            shl rdx, 32
            shr rax, 32
            or rax, rdx
            add rax, [time + 16]
    """


def test_a_domains_time_is_system_time(guest: Guest) -> None:
    before, first = guest.core.clock.now(), guest.vcpu.cpu.tsc()
    guest.vcpu.update_time(force=True)
    recorded = guest.records(f"{read_time(guest)}\nrecord rax\n{read_time(guest)}\nrecord rax\nshutdown")
    last, after = guest.vcpu.cpu.tsc(), guest.core.clock.now()
    if guest.core.clock.at(Moment(first, before), last) > after:
        pytest.skip("the TSC does not count as often as KVM says: QEMU's emulated processor")
    assert before <= recorded[0] <= recorded[1] <= after


def test_a_domains_time_never_goes_back_while_it_is_compared_anew(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vcpu_module, "TIME_UPDATE_NS", 0)
    port = guest.bind_ipi()
    guest.vcpu.update_time(force=True)
    recorded = guest.records(
        f"""
            hypercall set_callbacks, callback, 0, 0
            mov byte [mask], 0
            mov rbp, 1000
            mov rdi, 0
    again:  {read_time(guest)}
            cmp rax, rdi
            jb wrong
            mov rdi, rax
            mov rax, rbp
            test al, 7
            jne on
            mov r12, rdi
            hypercall event_channel_op, SEND, port
            mov rdi, r12
    on:     dec rbp
            jne again
            record [time]
            shutdown
    wrong:  record 0
            shutdown
    callback:
            mov byte [pending], 0
            mov qword [selector], 0
            mov qword [port_pending], 0
            return
            align 8
    port:   dd {port}
        """
    )
    assert recorded[0] & 0xFFFF_FFFF > 200  # it was written that often, and the version is even
    assert recorded[0] & 1 == 0


class Counter:
    """A TSC that can be set."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.value = 1 << 40

    def read(self) -> int:
        return self.value


@pytest.mark.parametrize("khz", [1_000_000, 2_450_000, 999_999, 4_700_123])
def test_time_compared_late_does_not_go_back_and_early_goes_on(khz: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(khz)
    host = [NANOSECONDS]
    monkeypatch.setattr(clock, "now", lambda: host[0])
    tsc = Counter(clock)
    first = clock.compare(tsc.read, None)
    assert first == Moment(tsc.value, NANOSECONDS)
    tsc.value += khz * 1000  # one second later
    host[0] = 2 * NANOSECONDS - 50_000  # a reader that was interrupted between the two clocks
    second = clock.compare(tsc.read, first)
    assert 2 * NANOSECONDS - 2 <= second.system_time <= 2 * NANOSECONDS
    host[0] = 3 * NANOSECONDS
    assert clock.compare(tsc.read, second).system_time == 3 * NANOSECONDS
    tsc.value += khz * 1000 * 5  # a TSC that runs away is not followed
    assert clock.compare(tsc.read, second) == Moment(tsc.value, 3 * NANOSECONDS)
    tsc.value = 5
    assert clock.compare(tsc.read, second) == Moment(5, 3 * NANOSECONDS)


@pytest.mark.parametrize("khz", [1000, 500_000, 999_999, 1_000_000, 2_450_000, 4_700_123, 10_000_000])
def test_the_scale_of_a_frequency_is_exact_to_a_billionth(khz: int) -> None:
    mul, shift = tsc_scale(khz)
    assert 1 << 31 <= mul < 1 << 32
    ticks = khz * 1000 * 100  # of a hundred seconds
    scaled = ticks << shift if shift >= 0 else ticks >> -shift
    assert scaled * mul >> 32 == pytest.approx(100 * NANOSECONDS, rel=1e-9)


def test_the_wall_clock_is_the_time_of_day_at_system_time_zero(machine: Hypervisor) -> None:
    before = time.time_ns() - machine.core.clock.now()
    with Guest(machine) as guest:
        shared = guest.core.memory.read(guest.domain.shared_info + SharedInfo.WC_VERSION, 16)
    after = time.time_ns() - machine.core.clock.now()
    version, low, nanoseconds, high = struct.unpack("<4I", shared)
    assert version % 2 == 0
    assert nanoseconds < NANOSECONDS
    spread = 50_000_000  # each of the three reads two clocks, one after the other
    assert before - spread <= (high << 32 | low) * NANOSECONDS + nanoseconds <= after + spread


def test_a_copy_of_the_time_is_kept_where_the_kernel_asked_for_it(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vcpu_module, "TIME_UPDATE_NS", 0)
    guest.bind_virq(Virq.TIMER)
    recorded = guest.records(
        """
            hypercall vcpu_op, 13, 0, where
            record rax
            hypercall set_timer_op, 1
            hypercall sched_op, 1, 0        ; the time is compared anew as it wakes
            record [spare + 8]
            record [time + 8]
            record [spare + 16]
            record [time + 16]
            shutdown
            align 8
    where:  dq spare
        """
    )
    assert recorded[0] == 0
    assert recorded[1] == recorded[2] > 0
    assert recorded[3] == recorded[4] > 0


@pytest.mark.parametrize("operation", [5, 13])
@pytest.mark.parametrize("where", ["0x1000", "there"])
def test_an_area_the_kernel_cannot_write_is_refused(guest: Guest, operation: int, where: str) -> None:
    recorded = guest.records(
        f"hypercall vcpu_op, {operation}, 0, {where}\nrecord rax\nshutdown\nalign 8\nthere: dq 0x1000"
    )
    assert recorded == [error(errno.EFAULT)]


# -- runstates


def test_a_vcpus_times_add_up_to_the_time_that_passed(guest: Guest) -> None:
    guest.bind_virq(Virq.DEBUG)
    before = guest.core.clock.now()
    guest.load(
        """
            hypercall vcpu_op, 5, 0, where
            record rax
            record [spare]
            hypercall sched_op, 1, 0
            hypercall vcpu_op, 4, 0, spare + 256
            record rax
            shutdown
            align 8
    where:  dq spare
        """
    )
    guest.start()
    guest.wait_until_blocked()
    guest.hypervisor.send_debug(guest.domain)
    recorded = guest.finish()
    after = guest.core.clock.now()
    assert recorded[0] == recorded[2] == 0
    assert recorded[1] & 0xFFFF_FFFF == Runstate.RUNNING
    page = guest.core.memory.read(guest.frame("spare") << 12, 512)
    told, asked = VCPU_RUNSTATE_INFO.unpack(page), VCPU_RUNSTATE_INFO.unpack(page, 256)
    assert told.state == Runstate.OFFLINE  # as it was left when the domain had ended
    assert asked.state == Runstate.RUNNING
    assert asked.blocked > 0
    assert asked.runnable >= 0
    times = asked.running + asked.runnable + asked.blocked
    assert before <= asked.state_entry_time <= after
    assert times <= after - before
    assert not asked.state_entry_time & RUNSTATE_UPDATE
