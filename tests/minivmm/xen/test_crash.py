"""What is kept of a domain that crashed: for a person to read, whatever the domain has done to itself."""

from __future__ import annotations

import pytest

from minivmm.outcome import Outcome
from tests.minivmm.xen.kernels import SYMBOLS, Guest

pytestmark = pytest.mark.kvm

NOWHERE = 0x7FFF_0000_0000
NOT_CANONICAL = 0x8000_0000_0000


@pytest.mark.svm_smoke
def test_a_crash_shows_registers_code_stack_hypercalls_and_the_walk_of_the_address(guest: Guest) -> None:
    result = guest.run(
        f"""
            hypercall xen_version, 0, 0
            hypercall stack_switch, flat_ss, trap_stack_top
            hypercall sched_op, 77, 0
            mov rcx, 0xabcdef
            push rcx
            mov rbx, {NOWHERE}
    at:     mov [rbx], rcx
        """
    )
    assert result.outcome is Outcome.CRASHED
    assert f"{NOWHERE:#x}" in result.detail
    assert result.registers["rip"] == guest.address("at")
    assert result.registers["rcx"] == 0xABCDEF
    assert result.registers["cr2"] == NOWHERE
    assert result.registers["rsp"] == SYMBOLS["stack_top"] - 8
    assert result.registers["cr3"] == guest.domain.start.registers.cr3
    lines = result.dump.splitlines()
    assert "kernel mode" in lines[0]
    assert lines[1].startswith("code:  48 89 8b")
    assert lines[2].startswith("stack: 0000000000abcdef")
    calls = lines.index("last hypercalls, the latest first:")
    assert [line.split("(")[0].strip() for line in lines[calls + 1 : calls + 4]] == [
        "sched_op",
        "stack_switch",
        "xen_version",
    ]
    assert lines[calls + 1].endswith("= -38")
    assert any(line.startswith("RIP, ") for line in lines)
    walk = next(index for index, line in enumerate(lines) if line.startswith("the last page fault"))
    assert f"L4[{NOWHERE >> 39 & 511}]" in lines[walk + 1]


def test_a_crash_of_user_code_says_so_and_walks_its_tables(guest: Guest) -> None:
    root = guest.give_user_space()
    result = guest.run("hypercall stack_switch, flat_ss, trap_stack_top\nto_user at\nat: ud2")
    assert result.outcome is Outcome.CRASHED
    assert "user mode" in result.dump
    assert result.registers["cr3"] == root << 12
    assert result.registers["rip"] == guest.address("at")


@pytest.mark.parametrize("reason", [0, 1, 0x100])
def test_a_domain_that_ends_as_it_wished_leaves_no_dump(guest: Guest, reason: int) -> None:
    result = guest.run(f"hypercall sched_op, 2, reason\nreason: dd {reason}")
    assert result.dump == ""
    assert result.registers == {}


WRECKS = {
    "no stack": f"mov rsp, {NOWHERE}\nud2",
    "a stack that is no address": f"mov rsp, {NOT_CANONICAL}\nud2",
    "a stack in Xen's part": "mov rsp, 0xffff828000001000\nud2",
    "a stack at the end": "mov rsp, -4\nud2",
    "a jump to nowhere": f"mov rbx, {NOWHERE}\njmp rbx",
    "a jump to what is no address": f"mov rbx, {NOT_CANONICAL}\njmp rbx",
    "a jump into Xen's part": "mov rbx, 0xffff828000001000\njmp rbx",
    "a jump to the gate": "mov rbx, 0xffff828000100000\njmp rbx",
    "a jump to the last byte": "mov rbx, -1\njmp rbx",
    "iret without a context": f"mov rsp, {NOWHERE}\nhypercall iret",
    "iret with a context at the end": "mov rsp, -8\nhypercall iret",
    "iret into nothing": "iret_to 0, 0, 0, 0, 0, 0",
    "iret to user code that has no tables": "to_user code",
    "a store into the code that runs": "mov rbx, at\nmov qword [rbx], -1\nat: nop",
    "its own page unmapped": "hypercall update_va_mapping, code, 0, 0\nnop",
    "its own stack unmapped": "hypercall update_va_mapping, stack, 0, 0\nud2",
    "a breakpoint on everything": "hypercall set_debugreg, 0, at\nhypercall set_debugreg, 7, 1\nat: nop\nud2",
    "single steps into nothing": "pushfq\nor qword [rsp], 0x100\npopfq\nnop\nnop",
    "a write to the mailbox": "mov rbx, 0xffff810000000000\nmov qword [rbx], -1\nmov qword [rbx + 120], -1\nud2",
    "no root": "mov rbx, 0\nmov cr3, rbx",
}


@pytest.mark.parametrize("name", WRECKS)
def test_a_domain_that_wrecks_itself_has_crashed_and_is_shown(guest: Guest, name: str) -> None:
    result = guest.run(WRECKS[name])
    assert result.outcome in (Outcome.CRASHED, Outcome.SHUTDOWN), result
    if result.outcome is Outcome.CRASHED and result.dump:
        assert "vCPU 0" in result.dump
        assert "code:" in result.dump


def test_a_page_table_that_maps_itself_is_walked_once(guest: Guest) -> None:
    root = guest.domain.start.page_tables[0].mfn
    entry = (root << 12) + 8 * 300
    result = guest.run(
        f"""
            hypercall mmu_update, request, 1, 0, 0x7ff0
            record rax
            mov rbx, {-1 << 48 & (1 << 64) - 1 | 300 << 39 | 300 << 30 | 300 << 21 | 300 << 12}
            mov [rbx], rax
            align 8
    request:
            dq {entry}, {root << 12 | 0x65}
        """
    )
    assert result.outcome is Outcome.CRASHED
    assert "the last page fault" in result.dump
