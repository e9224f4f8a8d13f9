"""Several vCPUs of one domain: brought up, taken down, each with state of its own."""

from __future__ import annotations

import errno

import pytest

from minivmm.memory import PAGE_SIZE
from minivmm.outcome import Outcome
from tests.minivmm.xen.kernels import READ_ONLY, SYMBOLS, Guest, error

pytestmark = pytest.mark.kvm


@pytest.fixture
def guest(two_vcpus: Guest) -> Guest:
    return two_vcpus


def test_a_vcpu_is_initialised_once_then_up(guest: Guest) -> None:
    guest.load(
        """
            hypercall vcpu_op, 3, 1, 0      ; is_up
            record rax
            hypercall vcpu_op, 1, 1, 0      ; up, before it is initialised
            record rax
            hypercall vcpu_op, 0, 1, scratch
            record rax
            hypercall vcpu_op, 0, 1, scratch
            record rax
            hypercall vcpu_op, 3, 1, 0
            record rax
            hypercall vcpu_op, 1, 1, 0
            record rax
            hypercall vcpu_op, 1, 1, 0      ; up already
            record rax
            hypercall vcpu_op, 3, 1, 0
            record rax
            hypercall vcpu_op, 3, 0, 0
            record rax
            hypercall vcpu_op, 3, 2, 0      ; there is none
            record rax
            shutdown
    second: jmp second
        """
    )
    guest.prepare_vcpu("second")
    guest.start()
    assert guest.finish() == [
        *(0, error(errno.EINVAL), 0, error(errno.EEXIST), 0, 0, 0, 1, 1, error(errno.ENOENT)),
    ]


def test_the_second_vcpu_begins_with_what_its_context_says(guest: Guest) -> None:
    guest.load(
        """
            mov qword [spare], 0xf5
            mov qword [user_stack], 0x65
            up
    wait:   cmp qword [ready], 1
            jne wait
            shutdown
    second: record rbx
            record rsp
            record fs:[0]
            record gs:[0]
            pushfq
            record [rsp]
            record [mask + 64]
            mov qword [ready], 1
    on:     jmp on
        """
    )
    guest.prepare_vcpu(
        "second", rbx=0x1234, fs_base=SYMBOLS["spare"], gs_base_kernel=SYMBOLS["user_stack"], rflags=0x3202
    )
    guest.start()
    guest.finish()
    rbx, rsp, fs, gs, rflags, mask = guest.recorded(1)
    assert (rbx, rsp, fs, gs) == (0x1234, SYMBOLS["stack1_top"], 0xF5, 0x65)
    assert rflags & 0x3200 == 0x200  # no I/O privilege, and never without interrupts
    assert mask & 1 == 1


def test_a_vcpu_takes_itself_down_and_goes_on_where_it_was_when_it_is_up_again(guest: Guest) -> None:
    guest.load(
        """
            up
    asleep: hypercall vcpu_op, 3, 1, 0
            cmp rax, 0
            jne asleep
            record [ready]
            hypercall vcpu_op, 1, 1, 0
    wait:   cmp qword [ready], 2
            jne wait
            shutdown
    second: mov qword [ready], 1
            hypercall vcpu_op, 2, 1, 0
            record rax
            mov qword [ready], 2
    on:     jmp on
        """
    )
    guest.prepare_vcpu("second")
    guest.start()
    assert guest.finish() == [1]
    assert guest.recorded(1) == [0]


def test_a_vcpu_takes_another_down_wherever_it_is(guest: Guest) -> None:
    guest.load(
        """
            up
    wait:   cmp qword [ready], 1
            jb wait
            hypercall vcpu_op, 2, 1, 0
            record rax
            record [ready]
            mov rbx, 100000
    on:     dec rbx
            jne on
            record [ready]
            shutdown
    second: inc qword [ready]
            jmp second
        """
    )
    guest.prepare_vcpu("second")
    guest.start()
    result, before, after = guest.finish()
    assert result == 0
    assert before == after


def test_a_domain_whose_last_vcpu_goes_down_has_halted(guest: Guest) -> None:
    assert guest.run("hypercall vcpu_op, 2, 0, 0").outcome is Outcome.HALTED


@pytest.mark.parametrize(
    ("fields", "number"),
    [
        ({"cr3": 0x7FFF_F000_0000}, errno.EINVAL),
        ({"fs_base": 1 << 47}, errno.EINVAL),
        ({"kernel_sp": 1 << 47}, errno.EINVAL),
        ({"event_callback_eip": 1 << 47}, errno.EINVAL),
        ({"gdt_ents": 8192}, errno.EINVAL),
        ({"cr1": 0x7FFF_F000_0000}, errno.EINVAL),
    ],
)
def test_a_context_that_cannot_be_is_refused_and_leaves_the_vcpu_as_it_was(
    guest: Guest, fields: dict[str, int], number: int
) -> None:
    guest.load("hypercall vcpu_op, 0, 1, scratch\nrecord rax\nshutdown\nsecond: jmp second")
    guest.prepare_vcpu("second", handlers={}, **fields)
    guest.start()
    assert guest.finish() == [error(number)]
    assert not guest.domain.vcpus[1].initialised
    assert (guest.domid, 1) not in guest.core.tables.kernel_roots


def test_a_context_at_an_address_that_is_none_is_efault(guest: Guest) -> None:
    assert guest.records("hypercall vcpu_op, 0, 1, 0x1000\nrecord rax\nshutdown") == [error(errno.EFAULT)]


def test_the_trap_table_of_a_context_is_the_vcpus_own(guest: Guest) -> None:
    guest.load(
        """
            hypercall set_trap_table, table
            up
    wait:   cmp qword [ready], 1
            jne wait
            ud2
    first:  record 1
            shutdown
    second: ud2
    other:  record 2
            mov qword [ready], 1
    on:     jmp on
    table:  trap 6, 0, first
            end_of_traps
        """
    )
    guest.prepare_vcpu("second", handlers={6: "other"})
    guest.start()
    assert guest.finish() == [1]
    assert guest.recorded(1) == [2]


def test_the_second_vcpu_begins_on_a_gdt_of_its_own(guest: Guest) -> None:
    frame = guest.frame("spare")
    guest.core.memory.write_u64(frame * PAGE_SIZE + 8 * 0x40, 0x00AF_FA00_0000_FFFF)  # 64-bit code of ring 3
    guest.map("spare", frame, READ_ONLY)
    guest.load("up\nwait: cmp qword [ready], 1\njne wait\nshutdown\nsecond: mov qword [ready], 1\non: jmp on")
    guest.prepare_vcpu("second", cs=0x40 << 3 | 3, gdt_frames=frame, gdt_ents=512)
    guest.start()
    guest.finish()
    assert guest.core.tables.gdts[guest.domid, 1] == (frame,)
    assert (guest.domid, 0) not in guest.core.tables.gdts


def test_the_second_vcpu_may_begin_in_user_code(guest: Guest) -> None:
    root = guest.give_user_space()
    guest.load(
        """
            up
    wait:   cmp qword [ready], 1
            jne wait
            shutdown
    second: ud2
    fault:  record [rsp + 24]
            record rsp
            mov qword [ready], 1
    on:     jmp on
        """
    )
    guest.prepare_vcpu(
        "second", handlers={6: "fault"}, flags=0, cr1=root << 12, kernel_sp=SYMBOLS["trap_stack_top"], rsp=0x1000
    )
    guest.start()
    guest.finish()
    assert guest.recorded(1) == [0xE033 | 1 << 32, SYMBOLS["trap_stack_top"] - 56]  # its events are masked


def test_one_vcpu_ends_the_domain_while_the_other_sleeps_or_spins(guest: Guest) -> None:
    guest.load("up\nspin: jmp spin\nsecond: shutdown")
    guest.prepare_vcpu("second")
    guest.start()
    guest.finish()
