"""Privileged instructions of a PV kernel, executed at ring 3 on real KVM: carried out, or the domain's own #GP."""

from __future__ import annotations

import struct

import pytest

from minivmm.xen.abi import EMULATE_PREFIX
from tests.minivmm.xen.kernels import SYMBOLS, Guest

pytestmark = pytest.mark.kvm

IF, IOPL = 1 << 9, 3 << 12
PREFIX = f"db {', '.join(map(str, EMULATE_PREFIX))}"
# Either `there` is reached, or the handler has the exception: what is recorded is 0, or the error code and RIP.
TRIED = """
    there:  record 0
            shutdown
    at_user:
            int 0x81
    fault:  record 13
            record_frame 5
            shutdown
    back:   record 0
            shutdown
            align 8
    table:  trap 13, 0, fault
            trap 0x81, 3, back
            end_of_traps
"""


def faults(guest: Guest, instruction: str, *, user: bool = False, before: str = "") -> bool:
    """Whether the instruction is #GP(0) with RIP on it, rather than carried out."""
    guest.give_user_space()
    recorded = guest.records(
        f"""
            hypercall set_trap_table, table
            hypercall stack_switch, flat_ss, trap_stack_top
            {before}
            mov rax, {"user" if user else "at"}
            jmp rax
    user:   to_user at
    at:     {instruction}
            {"int 0x81" if user else "nop"}
        {TRIED}
        """
    )
    if recorded == [0]:
        return False
    which, _, _, code, rip, cs = recorded
    assert (which, code, rip) == (13, 0, guest.address("at"))
    assert cs & 3 == (3 if user else 0)
    return True


# -- cli, sti and ports, as the I/O privilege level has it


SET_IOPL = """
            hypercall physdev_op, 6, iopl
            jmp set
    iopl:   dd {iopl}
    set:    nop
"""
ASSISTED = """
            hypercall vm_assist, 0, 4
            iret_to set, kernel_cs, {rflags}, stack_top, flat_ss, 0
    set:    nop
"""
INSTRUCTIONS = ["cli", "sti", "out 0x80, al", "in al, 0x80"]


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("iopl", range(4))
def test_a_kernel_is_ring_1_for_the_io_privilege_it_has_set(guest: Guest, instruction: str, iopl: int) -> None:
    assert faults(guest, instruction, before=SET_IOPL.format(iopl=iopl)) == (iopl < 1)


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("iopl", range(4))
def test_user_code_has_ports_with_io_privilege_3(guest: Guest, instruction: str, iopl: int) -> None:
    assert faults(guest, instruction, user=True, before=SET_IOPL.format(iopl=iopl)) == (iopl < 3)


@pytest.mark.svm_smoke
@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("iopl", [0, 3])
def test_with_architectural_iopl_a_kernel_is_ring_0_and_user_code_has_what_iret_gave(
    guest: Guest, instruction: str, iopl: int
) -> None:
    assert not faults(guest, instruction, before=ASSISTED.format(rflags=iopl << 12 | 2))


@pytest.mark.parametrize("iopl", [0, 1, 3])
def test_with_architectural_iopl_iret_gives_user_code_its_privilege(guest: Guest, iopl: int) -> None:
    guest.give_user_space()
    recorded = guest.records(
        f"""
            hypercall set_trap_table, table
            hypercall stack_switch, flat_ss, trap_stack_top
            hypercall vm_assist, 0, 4
            iret_to at, user_cs, {iopl << 12 | 0x202}, user_stack_top, flat_ss, 0
    at:     cli
            int 0x81
    there:  nop
    fault:  record 13
            record [rsp + 40]
            shutdown
    back:   record 0
            record [rsp + 32]
            shutdown
    table:  trap 13, 0, fault
            trap 0x81, 3, back
            end_of_traps
        """
    )
    assert recorded[0] == (0 if iopl == 3 else 13)
    assert recorded[1] & IOPL == iopl << 12  # and the frame shows it


def test_cli_leaves_the_event_mask_alone_and_popf_the_interrupt_flag(guest: Guest) -> None:
    recorded = guest.records(
        f"""
            {SET_IOPL.format(iopl=3)}
            mov byte [mask], 0
            cli
            record [mask]
            pushfq
            and qword [rsp], {~IF}
            or qword [rsp], {IOPL}
            popfq
            pushfq
            record [rsp]
            shutdown
        """
    )
    assert recorded[0] & 1 == 0
    assert recorded[1] & (IF | IOPL) == IF


# -- what is a kernel's, and not its users'


KERNELS = {
    "clts": "clts",
    "hlt, with an event": "mov byte [pending], 1\nat: hlt",
    "mov from cr0": "mov rax, cr0",
    "mov from cr3": "mov rax, cr3",
    "mov from cr4": "mov rax, cr4",
    "mov to cr2": "mov cr2, rax",
    "rdmsr": "mov ecx, 0xc0000100\nat: rdmsr",
    "wbinvd": "wbinvd",
    "invlpg": "invlpg [zero]",
    "mov from dr7": "mov rax, dr7",
}


@pytest.mark.parametrize("user", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_may_and_its_users_may_not(guest: Guest, name: str, user: bool) -> None:
    code = KERNELS[name].removeprefix("at: ")
    setup, _, instruction = code.rpartition("\nat: ")
    if not setup:
        assert faults(guest, code, user=user) == user
    else:
        assert faults(guest, instruction, user=user, before=setup) == user


FORBIDDEN = {
    "lgdt": "db 0x0f, 0x01, 0x10",
    "lidt": "db 0x0f, 0x01, 0x18",
    "ltr": "db 0x0f, 0x00, 0xd8",
    "swapgs": "swapgs",
    "mov to cr8": "mov cr8, rax",
    "rdmsr of one that is not there": "rdmsr",
    "mov to cr0 of more than TS": "mov cr0, rbx",
}


@pytest.mark.parametrize("name", FORBIDDEN)
@pytest.mark.parametrize("user", [False, True])
def test_what_no_domain_may_is_its_own_general_protection_fault(guest: Guest, name: str, user: bool) -> None:
    assert faults(guest, FORBIDDEN[name], user=user, before="mov rcx, 0x12345678\nmov rbx, 0")  # CR0 0: no paging


def test_cr3_names_the_root_and_loading_it_is_a_new_base(guest: Guest) -> None:
    other = guest.give_user_space()
    recorded = guest.records(
        f"""
            mov rax, cr3
            record rax
            mov rbx, {other << 12}
            mov cr3, rbx
            mov rax, cr3
            record rax
            shutdown
        """
    )
    assert recorded == [guest.domain.start.registers.cr3, other << 12]


def test_a_root_that_is_none_is_a_general_protection_fault(guest: Guest) -> None:
    assert faults(guest, "mov cr3, rbx", before="mov rbx, 0x7ffff000000")


@pytest.mark.svm_smoke
def test_the_bases_of_fs_and_gs_are_read_and_written_as_msrs(guest: Guest) -> None:
    recorded = guest.records(
        """
            mov qword [spare], 0x1111
            mov qword [spare + 8], 0x2222
            mov rbx, spare
            mov rax, spare
            mov rdx, spare
            shr rdx, 32
            mov ecx, 0xc0000100
            wrmsr
            mov rax, spare + 8
            mov ecx, 0xc0000101
            wrmsr
            record fs:[0]
            record gs:[0]
            mov ecx, 0xc0000101
            rdmsr
            record rax
            record rdx
            shutdown
        """
    )
    assert recorded[:2] == [0x1111, 0x2222]
    assert recorded[3] << 32 | recorded[2] == SYMBOLS["spare"] + 8


@pytest.mark.parametrize("user", [False, True])
def test_cpuid_with_the_prefix_is_the_domains_own_view(guest: Guest, user: bool) -> None:
    guest.give_user_space()
    recorded = guest.records(
        f"""
            hypercall set_trap_table, table
            hypercall stack_switch, flat_ss, trap_stack_top
            mov rax, {"user" if user else "at"}
            jmp rax
    user:   to_user at
    at:     mov eax, 0x40000000
            mov ecx, 0
            {PREFIX}
            cpuid
    after:  record rbx
            record rcx
            record rdx
            mov eax, 1
            {PREFIX}
            cpuid
            record rdx
            int 0x81
    done:   shutdown
    table:  trap 0x81, 3, done
            end_of_traps
        """
    )
    signature = struct.pack("<III", *recorded[:3])
    assert signature == b"XenVMMXenVMM"
    assert recorded[3] >> 3 & 1 == 0  # PSE: there are no 2 MiB pages


def test_the_prefix_before_anything_else_is_an_invalid_opcode(guest: Guest) -> None:
    recorded = guest.records(
        f"""
            hypercall set_trap_table, table
    at:     {PREFIX}
            nop
    fault:  record [rsp + 16]
            shutdown
    table:  trap 6, 0, fault
            end_of_traps
        """
    )
    assert recorded == [guest.address("at")]


def test_the_time_stamp_counter_only_counts_up(guest: Guest) -> None:
    recorded = guest.records(
        """
            mov rbx, 100
            mov rdi, 0
    again:  rdtsc
            shl rdx, 32
            or rax, rdx
            cmp rax, rdi
            jb wrong
            mov rdi, rax
            dec rbx
            jne again
            record 1
    wrong:  shutdown
        """
    )
    assert recorded == [1]


def test_an_unknown_port_reads_as_ones_and_the_timers_counter_counts(guest: Guest) -> None:
    recorded = guest.records(
        f"""
            {SET_IOPL.format(iopl=1)}
            mov rax, 0
            in al, 0x80
            record rax
            mov eax, 0xb0               ; channel 2, mode 0
            out 0x43, al
            mov eax, 0xff
            out 0x42, al
            out 0x42, al
            mov eax, 1
            out 0x61, al                ; its gate opens
    again:  mov eax, 0x80               ; latch channel 2
            out 0x43, al
            mov rax, 0
            in al, 0x42
            mov rbx, rax
            in al, 0x42
            cmp rax, 0xff
            je again
            shutdown
        """
    )
    assert recorded[0] == 0xFF
