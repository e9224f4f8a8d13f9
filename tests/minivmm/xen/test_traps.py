"""Exceptions of a domain on real KVM: the frame its handler finds, from kernel and from user mode, and the way back.

What is expected is written in xen/include/public/arch-x86/xen-x86_64.h and in the SDM 3A, chapter 6.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from minivmm.deprivileged.events import Vector
from minivmm.deprivileged.monitor import software_back_end
from minivmm.outcome import Outcome
from tests.minivmm.xen.kernels import SYMBOLS, Guest

pytestmark = pytest.mark.kvm

TF, IF, DF, IOPL, NT, RF, AC, ID = 1 << 8, 1 << 9, 1 << 10, 3 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 21
ARITHMETIC = 0x8D5  # CF, PF, AF, ZF, SF, OF
NOWHERE = 0x7FFF_0000_0000  # canonical, and never mapped
NOT_CANONICAL = 0x8000_0000_0000


class Raised(NamedTuple):
    """How an exception is raised, and what it is."""

    vector: int
    code: str  # `at:` is where RIP must be
    error_code: int | None = None
    before: str = ""


DIVIDE_BY_ZERO = """
    db 0xdb, 0xe3                   ; fninit
    mov qword [rsp - 8], 0x37b
    db 0xd9, 0x6c, 0x24, 0xf8       ; fldcw [rsp - 8]: divisions by zero are not masked
    db 0xd9, 0xe8                   ; fld1
    db 0xd9, 0xee                   ; fldz
    db 0xde, 0xf9                   ; fdivp
"""
EXCEPTIONS = {
    "divide error": Raised(Vector.DE, "at: div rbx", None, "mov rbx, 0"),
    "breakpoint": Raised(Vector.BP, "int3\nat: nop"),
    "invalid opcode": Raised(Vector.UD, "at: ud2"),
    "stack fault": Raised(Vector.SS, "at: mov rax, [rbp]", 0, f"mov rbp, {NOT_CANONICAL}"),
    "general protection": Raised(Vector.GP, "at: mov rax, [rbx]", 0, f"mov rbx, {NOT_CANONICAL}"),
    "general protection, a selector": Raised(Vector.GP, "at: mov ds, ebx", 0xE040, "mov ebx, 0xe043"),
    "page fault, not present": Raised(Vector.PF, "at: mov rax, [rbx]", 0, f"mov rbx, {NOWHERE}"),
    "page fault, write": Raised(Vector.PF, "at: mov [rbx], rax", 2, f"mov rbx, {NOWHERE}"),
    "page fault, fetch": Raised(Vector.PF, f"mov rbx, {NOWHERE}\njmp rbx\nat: nop", 0x10),
    "x87 error": Raised(Vector.MF, "at: db 0x9b", None, DIVIDE_BY_ZERO),  # fwait
    "alignment check": Raised(
        Vector.AC, "at: mov rax, [rbx]", 0, f"mov rbx, zero + 1\npushfq\nor qword [rsp], {AC}\npopfq"
    ),
}


def frame_of(guest: Guest, raised: Raised, *, user: bool, flags: int = 0) -> list[int]:
    """The frame's words without the error code, which is checked, and after them RSP in the handler."""
    if user:
        guest.give_user_space()
    has_code = raised.error_code is not None
    result = guest.run(
        f"""
            hypercall set_trap_table, table
            hypercall stack_switch, flat_ss, trap_stack_top
            mov rax, {"user" if user else "kernel"}
            jmp rax
    user:   to_user kernel
    kernel: {raised.before}
            mov rcx, 0x1111
            mov r11, 0x2222
            {raised.code}
            ud2
    handler:
            record_frame {8 if has_code else 7}
            record rsp
            record [mask]
            shutdown
    table:  trap {raised.vector}, {flags}, handler
            end_of_traps
        """
    )
    if raised.vector in (Vector.SS, Vector.AC) and result.outcome is Outcome.CRASHED:
        pytest.skip("this processor raises another exception, or none: QEMU's emulated SVM")
    recorded = guest.finish()
    if has_code:
        user_bit = 4 if user and raised.vector == Vector.PF else 0
        assert recorded.pop(2) == (raised.error_code or 0) | user_bit
    return recorded


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_an_exception_of_the_kernel_is_pushed_on_its_stack(guest: Guest, name: str) -> None:
    raised = EXCEPTIONS[name]
    rcx, r11, rip, cs, rflags, rsp, ss, top, mask = frame_of(guest, raised, user=False)
    at = NOWHERE if "fetch" in name else guest.address("at")
    assert (rcx, r11, rip) == (0x1111, 0x2222, at)
    assert cs == 0xE030 | 1 << 32  # RPL 0: the kernel; its events were masked
    assert ss == 0xE02B
    assert rsp == SYMBOLS["stack_top"]
    assert rflags & ~(ARITHMETIC | RF | AC) == 2  # IF is the inverse of the mask, IOPL is not shown
    size = 8 * (8 if raised.error_code is not None else 7)
    assert top == (rsp & ~15) - size
    assert mask & 1 == 1


@pytest.mark.svm_smoke
@pytest.mark.parametrize("name", EXCEPTIONS)
def test_an_exception_of_user_code_is_pushed_on_the_stack_the_kernel_named(guest: Guest, name: str) -> None:
    raised = EXCEPTIONS[name]
    rcx, r11, rip, cs, rflags, rsp, ss, top, mask = frame_of(guest, raised, user=True)
    at = NOWHERE if "fetch" in name else guest.address("at")
    assert (rcx, r11, rip) == (0x1111, 0x2222, at)
    assert (cs, ss) == (0xE033, 0xE02B)
    assert rsp == SYMBOLS["user_stack_top"]
    assert rflags & ~(ARITHMETIC | RF | AC) == 2 | IF
    assert top == SYMBOLS["trap_stack_top"] - 8 * (8 if raised.error_code is not None else 7)
    assert mask & 1 == 0
    assert guest.vcpu.in_kernel


@pytest.mark.parametrize("low_bits", range(0, 16, 5))
def test_the_frame_ends_at_a_16_byte_boundary(guest: Guest, low_bits: int) -> None:
    raised = Raised(Vector.UD, "at: ud2", None, f"mov rsp, stack_top - {low_bits + 16}")
    *_, rsp, _, top, _ = frame_of(guest, raised, user=False)
    assert rsp == SYMBOLS["stack_top"] - low_bits - 16
    assert top == (rsp & ~15) - 56


@pytest.mark.parametrize("user", [False, True])
def test_a_handler_that_masks_events_finds_them_masked_and_the_frame_says_how_they_were(
    guest: Guest, user: bool
) -> None:
    *_, cs, rflags, _, _, _, mask = frame_of(guest, EXCEPTIONS["invalid opcode"], user=user, flags=4)
    assert mask & 1 == 1
    assert cs == (0xE033 if user else 0xE030 | 1 << 32)
    assert bool(rflags & IF) == user


def test_a_page_fault_leaves_its_address_in_vcpu_info(guest: Guest) -> None:
    recorded = guest.records(
        f"""
            hypercall set_trap_table, table
            mov rbx, {NOWHERE + 0x123}
            mov rax, [rbx]
    handler:
            record [fault_address]
            mov rax, cr2
            record rax
            shutdown
    table:  trap 14, 0, handler
            end_of_traps
        """
    )
    assert recorded == [NOWHERE + 0x123] * 2


def test_a_write_to_what_the_kernel_mapped_read_only_is_its_own_page_fault(guest: Guest) -> None:
    guest.map("spare", guest.frame("spare"), bits=0x65)
    recorded = guest.records(
        """
            hypercall set_trap_table, table
            mov byte [spare], 1
    handler:
            record [rsp + 16]
            record [fault_address]
            shutdown
    table:  trap 14, 0, handler
            end_of_traps
        """
    )
    assert recorded == [3, SYMBOLS["spare"]]


def test_flags_a_gate_clears_are_clear_in_the_handler_and_kept_in_the_frame(guest: Guest) -> None:
    kept = NT | AC | DF
    recorded = guest.records(
        f"""
            hypercall set_trap_table, table
            pushfq
            or qword [rsp], {kept}
            popfq
            ud2
    handler:
            pushfq
            record [rsp]
            record [rsp + 8 + 32]
            shutdown
    table:  trap 6, 0, handler
            end_of_traps
        """
    )
    handler, frame = recorded
    assert frame & kept == kept
    assert handler & (TF | NT | AC | RF) == 0  # alignment checks do not trigger in kernel mode
    assert handler & DF  # a gate leaves it


# -- debug exceptions


STEP = f"""
            hypercall set_trap_table, table
            pushfq
            or qword [rsp], {TF}
            popfq
    first:  nop
    second: nop
    handler:
            record [rsp + 16]
            record [rsp + 32]
            pushfq
            record [rsp]
            hypercall get_debugreg, 6
            record rax
            mov rax, dr6
            record rax
            shutdown
    table:  trap 1, 0, handler
            end_of_traps
"""


@pytest.mark.svm_smoke
def test_a_single_step_is_a_debug_trap_after_the_instruction(guest: Guest) -> None:
    rip, frame, handler, status, dr6 = guest.records(STEP)
    assert rip == guest.address("second")
    assert frame & TF
    assert not handler & TF
    assert status == dr6
    assert status & 1 << 14  # BS (SDM 3B 17.2.3)


# -- int n


def interrupt(guest: Guest, vector: int, dpl: int, *, user: bool) -> list[int]:
    """Which handler ran: 1 the vector's, 2 that of #GP; and its frame, with an error code when it is #GP's."""
    if user:
        guest.give_user_space()
    return guest.records(
        f"""
            hypercall set_trap_table, table
            hypercall stack_switch, flat_ss, trap_stack_top
            mov rax, {"user" if user else "kernel"}
            jmp rax
    user:   to_user kernel
    kernel: int {vector}
    after:  nop
    chosen: record 1
            record_frame 7
            shutdown
    refused:
            record 2
            record_frame 8
            shutdown
    table:  trap {vector}, {dpl}, chosen
            trap 13, 0, refused
            end_of_traps
        """
    )


@pytest.mark.svm_smoke
@pytest.mark.parametrize("vector", [0x20, 0x80, 0x81, 0xFF, 14])
@pytest.mark.parametrize(("user", "dpl"), [(False, 1), (False, 3), (True, 3)])
def test_int_n_goes_to_its_handler_where_the_dpl_allows(guest: Guest, vector: int, user: bool, dpl: int) -> None:
    which, _, _, rip, cs, *_ = interrupt(guest, vector, dpl, user=user)
    assert which == 1
    assert rip == guest.address("after")  # a trap, and without an error code whatever the vector
    assert cs & 0xFFFF == (0xE033 if user else 0xE030)


@pytest.mark.parametrize("vector", [0x20, 0x80, 14])
@pytest.mark.parametrize(("user", "dpl"), [(False, 0), (True, 0), (True, 1), (True, 2)])
def test_int_n_is_a_general_protection_fault_where_the_dpl_does_not(
    guest: Guest, vector: int, user: bool, dpl: int
) -> None:
    which, _, _, code, rip, *_ = interrupt(guest, vector, dpl, user=user)
    assert which == 2
    assert rip == guest.address("kernel")
    assert code == vector << 3 | 2


def test_int_of_a_vector_without_a_handler_is_a_general_protection_fault(guest: Guest) -> None:
    recorded = guest.records(
        """
            hypercall set_trap_table, table
    at:     int 0x90
    refused:
            record_frame 8
            shutdown
    table:  trap 13, 0, refused
            end_of_traps
        """
    )
    assert recorded[2:4] == [0x90 << 3 | 2, guest.address("at")]


# -- the coprocessor is not there


@pytest.mark.svm_smoke
@pytest.mark.skipif(software_back_end(), reason="ring 3 uses SSE whatever CR0.TS is, on a software back end")
@pytest.mark.parametrize("way", ["hypercall fpu_taskswitch, 1", "mov rax, cr0\nor rax, 8\nmov cr0, rax"])
@pytest.mark.parametrize("user", [False, True])
def test_the_first_use_of_sse_after_a_task_switch_is_nm_and_the_next_is_not(guest: Guest, way: str, user: bool) -> None:
    guest.give_user_space()
    recorded = guest.records(
        f"""
            hypercall set_trap_table, table
            hypercall stack_switch, flat_ss, trap_stack_top
            {way}
            mov rax, cr0
            record rax
            mov rax, {"user" if user else "kernel"}
            jmp rax
    user:   to_user kernel
    kernel: mov rbx, 0x77
    at:     movq xmm0, rbx
    handler:
            record [rsp + 16]
            mov rax, cr0        ; TS is clear: the handler need not ask
            record rax
            movq xmm0, rbx
            movq rax, xmm0
            record rax
            shutdown
    table:  trap 7, 0, handler
            end_of_traps
        """
    )
    assert recorded[0] & 8
    assert recorded[1] == guest.address("at")
    assert not recorded[2] & 8
    assert recorded[3] == 0x77


def test_clts_lets_sse_be_used(guest: Guest) -> None:
    recorded = guest.records(
        """
            hypercall fpu_taskswitch, 1
            clts
            mov rbx, 0x77
            movq xmm0, rbx
            movq rax, xmm0
            record rax
            shutdown
        """
    )
    assert recorded == [0x77]


# -- what cannot be delivered


@pytest.mark.parametrize("stack", [0, NOWHERE, NOT_CANONICAL, 0xFFFF_8280_0000_1000, 0xFFFF_8000_0000_0000])
@pytest.mark.parametrize("user", [False, True])
def test_a_trap_that_finds_no_stack_ends_the_domain(guest: Guest, stack: int, user: bool) -> None:
    guest.give_user_space()
    result = guest.run(
        f"""
            hypercall set_trap_table, table
            hypercall stack_switch, flat_ss, {stack if stack != NOT_CANONICAL else NOWHERE}
            mov rax, {"user" if user else "kernel"}
            jmp rax
    user:   to_user at
    kernel: mov rsp, {stack}
    at:     ud2
    handler: shutdown
    table:  trap 6, 0, handler
            end_of_traps
        """
    )
    assert result.outcome is Outcome.CRASHED
    assert "no stack" in result.detail
    assert "exception 6" in result.detail


def test_a_trap_onto_a_read_only_stack_ends_the_domain_and_stores_nothing(guest: Guest) -> None:
    guest.map("spare", guest.frame("spare"), bits=0x65)
    result = guest.run(
        """
            hypercall set_trap_table, table
            mov rsp, spare + 4096
            ud2
    handler: shutdown
    table:  trap 6, 0, handler
            end_of_traps
        """
    )
    assert result.outcome is Outcome.CRASHED
    frame = guest.frame("spare") << 12
    assert guest.core.memory.read(frame, 4096) == bytes(4096)


def test_an_exception_without_a_handler_ends_the_domain_and_names_it(guest: Guest) -> None:
    result = guest.run(f"mov rbx, {NOWHERE}\nmov rax, [rbx]")
    assert result.outcome is Outcome.CRASHED
    assert "exception 14" in result.detail


def test_a_handler_may_be_taken_away_again(guest: Guest) -> None:
    result = guest.run(
        """
            hypercall set_trap_table, table
            hypercall set_trap_table, 0
            ud2
    handler: shutdown
    table:  trap 6, 0, handler
            end_of_traps
        """
    )
    assert result.outcome is Outcome.CRASHED
    assert "no handler" in result.detail
