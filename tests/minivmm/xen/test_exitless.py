"""Hypercalls without an exit: the same results, whoever answers and whenever, and no trust in what a mailbox holds."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import guest_os
from minivmm.boot import xen_image
from minivmm.outcome import Outcome
from minivmm.xen import hypervisor as hypervisor_module
from minivmm.xen.domain import Domain
from minivmm.xen.event_abi import BIND_VIRQ, BindVirq, EventOp, Virq
from minivmm.xen.exitless import _carry_out
from minivmm.xen.hypercall_abi import Hypercall, SchedOp, VcpuOp, XenVersion
from minivmm.xen.hypervisor import Hypervisor
from minivmm.xen.machine import XenMachine
from minivmm.xen.mailbox import MAILBOX_SLOT, Field, Mailbox, State
from minivmm.xen.vcpu import VirtualCpu

pytestmark = pytest.mark.kvm

VERSION = 4 << 16 | 17
WORDS = st.one_of(st.integers(0, 64), st.integers(0, (1 << 64) - 1))


@pytest.fixture
def domain() -> Iterator[Domain]:
    """Made, never started: its mailbox is the test's."""
    with Hypervisor(48 << 20, exitless=True) as hypervisor:
        kernel = xen_image.read(guest_os.image("hypercalls", "xen"))
        domain = hypervisor.create_domain(kernel, 24 << 20)
        with hypervisor.core.lock:
            yield domain


def box(vcpu: VirtualCpu) -> Mailbox:
    assert vcpu.mailbox is not None
    return vcpu.mailbox


def post(vcpu: VirtualCpu, number: int, *arguments: int) -> int:
    """Posts a call and has it looked at. Returns the state it is in then."""
    words = box(vcpu).words
    words[Field.SEQUENCE] += 1
    words[Field.NUMBER] = number
    for index, argument in enumerate(arguments, Field.ARGUMENTS):
        words[index] = argument
    words[Field.STATE] = State.POSTED
    _carry_out(vcpu, box(vcpu))
    return words[Field.STATE]


def test_a_posted_call_is_answered_in_its_place(domain: Domain) -> None:
    vcpu = domain.vcpus[0]
    assert post(vcpu, Hypercall.XEN_VERSION, XenVersion.VERSION, 0) == State.DONE
    assert box(vcpu).words[Field.RESULT] == VERSION
    assert domain.hypercalls["xen_version"] == 1


@pytest.mark.parametrize(
    "call",
    [
        (Hypercall.SCHED_OP, SchedOp.BLOCK),
        (Hypercall.MMU_UPDATE, 0, 0, 0, 0x7FF0),
        (Hypercall.VCPU_OP, VcpuOp.DOWN, 0, 0),
        (Hypercall.IRET,),
        (63,),
    ],
)
def test_a_call_that_needs_the_vcpu_leaves_and_is_not_carried_out(domain: Domain, call: tuple[int, ...]) -> None:
    vcpu = domain.vcpus[0]
    assert post(vcpu, *call) == State.LEAVE
    assert not domain.hypercalls
    box(vcpu).words[Field.LEAVING] = box(vcpu).words[Field.SEQUENCE]
    assert box(vcpu).exit(call[0]) is None  # to be carried out now
    assert not box(vcpu).busy


def test_a_call_answered_while_its_kernel_left_is_not_carried_out_twice(domain: Domain) -> None:
    vcpu = domain.vcpus[0]
    post(vcpu, Hypercall.XEN_VERSION, XenVersion.VERSION, 0)
    words = box(vcpu).words
    words[Field.LEAVING] = words[Field.SEQUENCE]  # the kernel had given up waiting
    assert box(vcpu).exit(Hypercall.XEN_VERSION) == VERSION
    assert not box(vcpu).busy
    assert box(vcpu).exit(Hypercall.XEN_VERSION) is None  # a call of its own


def test_a_kernel_with_an_event_waiting_is_told_to_leave(domain: Domain) -> None:
    vcpu = domain.vcpus[0]
    events = vcpu.core.events
    bound = events.event_channel_op(domain.domid, EventOp.BIND_VIRQ, BIND_VIRQ.pack(BindVirq(Virq.DEBUG, 0, 0)))
    port = BIND_VIRQ.unpack(bound).port
    vcpu.core.memory.write_u64(domain.shared_info + 2560, ~(1 << port) & (1 << 64) - 1)  # evtchn_mask
    vcpu.events_masked = False
    events.raise_virq(domain.domid, Virq.DEBUG)
    assert post(vcpu, Hypercall.XEN_VERSION, XenVersion.VERSION, 0) == State.LEAVE
    box(vcpu).words[Field.LEAVING] = box(vcpu).words[Field.SEQUENCE]
    assert box(vcpu).exit(Hypercall.XEN_VERSION) == VERSION


def test_user_code_posts_nothing(domain: Domain) -> None:
    vcpu = domain.vcpus[0]
    vcpu.in_kernel = False
    assert post(vcpu, Hypercall.XEN_VERSION, XenVersion.VERSION, 0) == State.LEAVE
    box(vcpu).words[Field.STATE] = State.POSTED  # and comes into its kernel by a trap
    vcpu.enter_kernel()
    assert not box(vcpu).busy
    assert not domain.hypercalls


def test_only_the_kernels_page_tables_show_the_mailbox(domain: Domain) -> None:
    vcpu = domain.vcpus[0]
    memory, tables = vcpu.core.memory, vcpu.core.tables
    kernel, spare = tables.kernel_roots[domain.domid, 0], domain.mfns[-1]
    assert memory.read_u64((kernel << 12) + 8 * MAILBOX_SLOT) == vcpu.mailbox_entry
    tables.pin(domain.domid, spare, 4)
    vcpu.load_root(spare)
    assert memory.read_u64((spare << 12) + 8 * MAILBOX_SLOT) == vcpu.mailbox_entry
    vcpu.hide_mailbox(spare)
    assert memory.read_u64((spare << 12) + 8 * MAILBOX_SLOT) == 0
    vcpu.hide_mailbox(kernel)  # a kernel that shares its tables with its user code shares this too
    assert memory.read_u64((kernel << 12) + 8 * MAILBOX_SLOT) == vcpu.mailbox_entry


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(WORDS, min_size=16, max_size=16))
def test_whatever_a_guest_writes_into_its_mailbox_is_a_call_or_nothing(domain: Domain, words: list[int]) -> None:
    vcpu = domain.vcpus[0]
    mailbox = box(vcpu)
    for index, word in enumerate(words):
        mailbox.words[index] = word
    _carry_out(vcpu, mailbox)
    assert mailbox.words[Field.STATE] in (State.DONE, State.LEAVE)
    mailbox.exit(words[0] & 0xFFFF_FFFF)


@pytest.mark.parametrize("guest", ["selftest", "timer", "user"])
@pytest.mark.parametrize("exitless", [False, True])
def test_a_kernel_fares_the_same_with_and_without(guest: str, exitless: bool) -> None:
    with XenMachine(guest_os.image(guest, "xen"), exitless=exitless) as machine:
        result = machine.run()
    assert result.outcome is Outcome.SHUTDOWN, result


def test_a_call_that_nobody_answers_leaves_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_vcpu: VirtualCpu, mailbox: Mailbox) -> None:
        mailbox.words[Field.OPEN] = 1  # says it looks, and does not

    monkeypatch.setattr(hypervisor_module, "attend", absent)
    with Hypervisor(48 << 20, exitless=True) as hypervisor:
        kernel = xen_image.read(guest_os.image("hypercalls", "xen"))
        domain = hypervisor.create_domain(kernel, 24 << 20, cmdline=b"call=null count=200")
        mailbox = box(domain.vcpus[0])
        result = hypervisor.run(domain)
        assert result.outcome is Outcome.SHUTDOWN, result
        assert result.exits["xen_version"] == 200
        assert mailbox.answered == 0
        assert mailbox.missed > 0


def test_the_thread_that_looks_ends_with_its_domain() -> None:
    with XenMachine(guest_os.image("hypercalls", "xen"), exitless=True, cmdline="call=null count=5000") as machine:
        result = machine.run()
        assert result.exits["xen_version"] == 5000
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("mailbox")]


def test_a_domain_of_several_vcpus_has_no_mailbox() -> None:
    with Hypervisor(64 << 20, cpus=2, exitless=True) as hypervisor:
        kernel = xen_image.read(guest_os.image("smp", "xen"))
        domain = hypervisor.create_domain(kernel, 24 << 20, vcpus=2)
        assert [vcpu.mailbox for vcpu in domain.vcpus] == [None, None]
        assert hypervisor.run(domain).outcome is Outcome.SHUTDOWN
