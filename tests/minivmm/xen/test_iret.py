"""Into user code by iret and back by syscall; and where a domain cannot be gone back to: its failsafe callback.

In xen/include/public/arch-x86/xen-x86_64.h: struct iret_context, and the bounce frame.
"""

from __future__ import annotations

import pytest

from minivmm.outcome import Outcome
from tests.minivmm.xen.kernels import SYMBOLS, Guest

pytestmark = pytest.mark.kvm

TF, IF, DF, IOPL, RF, AC, ID = 1 << 8, 1 << 9, 1 << 10, 3 << 12, 1 << 16, 1 << 18, 1 << 21
ARITHMETIC = 0x8D5  # CF, PF, AF, ZF, SF, OF
NOT_CANONICAL = 0x8000_0000_0000


# -- syscall of user code


def system_call(guest: Guest, register: str, flags: int = 0x202) -> list[int]:
    guest.give_user_space()
    return guest.records(
        f"""
            hypercall set_trap_table, table
            hypercall stack_switch, flat_ss, trap_stack_top
            {register}
            iret_to user, user_cs, {flags}, user_stack_top, flat_ss, 0
    user:   mov rax, 0x4444
    at:     syscall
    after:  nop
    entry:  record 1
            record_frame 7
            record rax
            record [mask]
            pushfq
            record [rsp]
            shutdown
    undefined:
            record 2
            record_frame 7
            shutdown
    callback:
            dw 2, 1
            dd 0
            dq entry
    table:  trap 6, 0, undefined
            end_of_traps
        """
    )


@pytest.mark.svm_smoke
def test_a_system_call_of_user_code_reaches_the_kernels_entry(guest: Guest) -> None:
    which, rcx, r11, rip, cs, rflags, rsp, ss, rax, mask, _ = system_call(guest, "hypercall set_callbacks, 0, 0, entry")
    assert which == 1
    assert rip == rcx == guest.address("after")
    assert (cs, ss, rsp) == (0xE033, 0xE02B, SYMBOLS["user_stack_top"])
    assert rflags & ~ARITHMETIC == 2 | IF
    assert r11 & ~ARITHMETIC == 2 | IF
    assert rax == 0x4444
    assert mask & 1 == 0


def test_a_syscall_callback_may_mask_events(guest: Guest) -> None:
    recorded = system_call(guest, "hypercall callback_op, 0, callback")
    assert recorded[0] == 1
    assert recorded[9] & 1 == 1
    assert recorded[5] & IF  # as it was in user mode


def test_the_entry_of_a_system_call_finds_the_direction_flag_clear(guest: Guest) -> None:
    recorded = system_call(guest, "hypercall set_callbacks, 0, 0, entry", flags=0x202 | DF)
    assert recorded[5] & DF
    assert not recorded[10] & DF


def test_a_system_call_without_an_entry_is_an_invalid_opcode(guest: Guest) -> None:
    which, _, _, rip, *_ = system_call(guest, "nop")
    assert which == 2
    assert rip == guest.address("at")


# -- iret


def test_iret_restores_every_register_of_its_context(guest: Guest) -> None:
    guest.give_user_space()
    recorded = guest.records(
        f"""
            hypercall set_trap_table, table
            hypercall stack_switch, flat_ss, trap_stack_top
            mov rax, 0x1010
            mov rcx, 0x2020
            mov r11, 0x3030
            iret_to user, user_cs, {0x202 | AC | ID}, user_stack_top - 8, flat_ss, 0
    user:   int 0x81
    handler:
            record_frame 7
            record rax
            shutdown
    table:  trap 0x81, 3, handler
            end_of_traps
        """
    )
    rcx, r11, _, cs, rflags, rsp, ss, rax = recorded
    assert (rax, rcx, r11) == (0x1010, 0x2020, 0x3030)
    assert (cs, ss, rsp) == (0xE033, 0xE02B, SYMBOLS["user_stack_top"] - 8)
    assert rflags & ~(ARITHMETIC | RF) == 2 | IF | AC | ID


def test_iret_out_of_a_system_call_leaves_rcx_and_r11_as_sysret_does(guest: Guest) -> None:
    guest.give_user_space()
    recorded = guest.records(
        f"""
            hypercall set_trap_table, table
            hypercall stack_switch, flat_ss, trap_stack_top
            mov rcx, 0x2020
            mov r11, 0x3030
            iret_to user, user_cs, {0x002 | IOPL}, user_stack_top, flat_ss, 0x100
    user:   int 0x81
    handler:
            record_frame 7
            shutdown
    table:  trap 0x81, 3, handler
            end_of_traps
        """
    )
    rcx, r11, _, _, rflags, *_ = recorded
    assert rcx == guest.address("user")
    assert r11 == 2 | IF  # what user code runs with, not what the kernel asked for
    assert rflags & (IF | IOPL) == 0


def test_iret_to_the_kernel_stays_there_and_masks_as_if_says(guest: Guest) -> None:
    recorded = guest.records(
        """
            record [mask]
            iret_to open, kernel_cs, 0x202, stack_top - 64, flat_ss, 0
    open:   record rsp
            record [mask]
            iret_to closed, kernel_cs, 0x002, stack_top, flat_ss, 0
    closed: record [mask]
            hypercall xen_version, 0, 0
            record rax
            shutdown
        """
    )
    assert [recorded[0] & 1, recorded[1], recorded[2] & 1, recorded[3] & 1, recorded[4]] == [
        *(1, SYMBOLS["stack_top"] - 64, 0, 1, 4 << 16 | 17)
    ]


def test_iret_cannot_raise_the_io_privilege_or_disable_interrupts(guest: Guest) -> None:
    recorded = guest.records(
        f"""
            iret_to there, kernel_cs, {IOPL | 0x2}, stack_top, flat_ss, 0
    there:  pushfq
            record [rsp]
            shutdown
        """
    )
    assert recorded[0] & (IF | IOPL) == IF


def test_iret_may_begin_a_single_step(guest: Guest) -> None:
    guest.give_user_space()
    recorded = guest.records(
        f"""
            hypercall set_trap_table, table
            hypercall stack_switch, flat_ss, trap_stack_top
            iret_to user, user_cs, {0x202 | TF}, user_stack_top, flat_ss, 0
    user:   nop
    next:   nop
    handler:
            record [rsp + 16]
            record [rsp + 24]
            shutdown
    table:  trap 1, 0, handler
            end_of_traps
        """
    )
    assert recorded == [guest.address("next"), 0xE033]


# -- failsafe: the domain cannot be gone back to as it wished


BAD_RETURNS = {
    "a code selector that is none": ("there", 0xE043, 0xE02B),
    "a data segment as code": ("there", 0xE02B, 0xE02B),
    "a stack selector that is none": ("there", 0xE033, 0x1003),
    "a code segment as stack": ("there", 0xE033, 0xE033),
    "no stack selector": ("there", 0xE033, 0),
    "an address that is none": (str(NOT_CANONICAL), 0xE033, 0xE02B),
}


@pytest.mark.svm_smoke
@pytest.mark.parametrize("name", BAD_RETURNS)
@pytest.mark.parametrize("user", [False, True])
def test_a_return_that_cannot_be_goes_to_the_failsafe_callback(guest: Guest, name: str, user: bool) -> None:
    rip, cs, ss = BAD_RETURNS[name]
    guest.give_user_space()
    recorded = guest.records(
        f"""
            hypercall set_callbacks, 0, failsafe, 0
            hypercall stack_switch, flat_ss, trap_stack_top
            mov eax, 0xe02b
            mov ds, eax
            mov eax, 0x2b
            mov es, eax
            mov rcx, 0x1111
            mov r11, 0x2222
            mov rbx, user_stack_top
            iret_to {rip}, {cs if user else cs & ~3}, 0x202, rbx, {ss}, 0
    there:  record 0
            shutdown
    failsafe:
            record_frame 11
            record rsp
            shutdown
        """
    )
    rcx, r11, ds, es, fs, gs, where, frame_cs, rflags, rsp, frame_ss, top = recorded
    assert (rcx, r11) == (0x1111, 0x2222)
    assert (ds, es) == (0xE02B, 0x2B)
    assert (fs, gs) == (guest.vcpu.cpu.fs_selector, guest.vcpu.cpu.gs_selector)
    assert where == (guest.address("there") if rip == "there" else NOT_CANONICAL)
    assert frame_cs == (cs | 3 if user else cs & ~3)
    assert frame_ss == ss | 3
    assert rsp == SYMBOLS["user_stack_top"]
    assert rflags & IF
    assert top == SYMBOLS["trap_stack_top" if user else "user_stack_top"] - 88


def test_a_return_that_cannot_be_ends_a_domain_without_failsafe_callback(guest: Guest) -> None:
    result = guest.run("iret_to start, 0xe040, 0x202, stack_top, flat_ss, 0\nstart: shutdown")
    assert result.outcome is Outcome.CRASHED
    assert "failsafe" in result.detail


def test_a_jump_to_an_address_that_is_none_is_a_general_protection_fault(guest: Guest) -> None:
    recorded = guest.records(
        f"""
            hypercall set_trap_table, table
            mov rbx, {NOT_CANONICAL}
    at:     jmp rbx
    handler:
            record [rsp + 16]
            shutdown
    table:  trap 13, 0, handler
            end_of_traps
        """
    )
    assert recorded == [0]
