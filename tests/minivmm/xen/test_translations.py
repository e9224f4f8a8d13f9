"""No vCPU uses a translation that another has taken away: the security of direct paging with several vCPUs."""

from __future__ import annotations

import pytest

from minivmm.memory import PAGE_SIZE
from minivmm.outcome import Outcome
from minivmm.xen.hypercall_abi import Hypercall, Mmuext
from tests.minivmm.xen.kernels import READ_ONLY, READ_WRITE, SYMBOLS, VIRT_BASE, Guest

pytestmark = pytest.mark.kvm


@pytest.fixture
def guest(two_vcpus: Guest) -> Guest:
    return two_vcpus


# -- translations. The second vCPU stores into the page at `spare` for ever; the first takes the page away from it.


def contend(guest: Guest, take_away: str, **symbols: int) -> list[int]:
    """Recorded by the first vCPU: what it recorded itself, then the frame's first word as it is when the page is taken
    away, and after many more turns of the other. `alias` is a read-only mapping of the frame."""
    guest.map("user_stack", guest.frame("spare"), READ_ONLY)
    guest.load(
        f"""
            up
    moving: cmp qword [alias], 1000
            jb moving
            {take_away}
            record [alias]
            mov rbx, 200000
    on:     dec rbx
            jne on
            record [alias]
    wait:   cmp qword [ready], 1
            jne wait
            shutdown

    second: hypercall set_trap_table, table
    store:  add qword [spare], 2
            mov rax, [spare]
            jmp store
    stopped:
            record [rsp + 16]
            record [fault_address + 64]
            mov qword [ready], 1
    after:  jmp after
            align 8
    table:  trap 14, 0, stopped
            end_of_traps
        """,
        alias=SYMBOLS["user_stack"],
        frame=guest.frame("spare"),
        entry=_entry_address(guest, "spare"),
        read_only=guest.frame("spare") << 12 | READ_ONLY,
        **symbols,
    )
    guest.prepare_vcpu("second")
    guest.start()
    return guest.finish()


def test_user_code_of_another_vcpu_writes_no_page_that_was_taken_away(guest: Guest) -> None:
    root = guest.give_user_space()  # its own L4, over the kernel's other tables
    guest.map("user_stack", guest.frame("spare"), READ_ONLY)
    guest.load(
        """
            up
    moving: cmp qword [user_stack], 1000
            jb moving
            hypercall update_va_mapping, spare, 0, 0
            record rax
            record [user_stack]
            mov rbx, 200000
    on:     dec rbx
            jne on
            record [user_stack]
    wait:   cmp qword [ready], 1
            jne wait
            shutdown
    second: add qword [spare], 2
            jmp second
    stopped:
            record [rsp + 16]
            mov qword [ready], 1
    after:  jmp after
        """
    )
    guest.prepare_vcpu("second", handlers={14: "stopped"}, flags=0, cr1=root << 12)
    guest.start()
    done, before, after = guest.finish()
    assert done == 0
    assert before == after
    assert guest.recorded(1)[0] & ~2 == 4  # of user code; QEMU's emulation reads before it writes


def _entry_address(guest: Guest, name: str) -> int:
    """The machine address of the L1 entry of a page."""
    return guest.core.tables.entry_address(guest.domid, SYMBOLS[name])


MMU_UPDATE = """
            mov rax, entry
            mov [scratch + 2048], rax
            mov rax, {value}
            mov [scratch + 2056], rax
            hypercall mmu_update, scratch + 2048, 1, 0, 0x7ff0
            record rax
"""
WAYS = {
    "update_va_mapping": "hypercall update_va_mapping, spare, {value}, 0\nrecord rax",
    "mmu_update": MMU_UPDATE,
    "multicall": f"""
            hypercall multicall, calls, 1
            record [calls + 8]
            jmp made
    calls:  dq {Hypercall.UPDATE_VA_MAPPING}, 0, spare, {{value}}, 0, 0, 0, 0
    made:   nop
    """,
    "a store to the page table": "mov rax, {value}\nmov [table_page], rax\nrecord 0",
}


@pytest.mark.svm_smoke
@pytest.mark.parametrize("way", WAYS)
def test_a_page_made_read_only_is_written_by_no_vcpu_any_more(guest: Guest, way: str) -> None:
    done, before, after = contend(guest, WAYS[way].format(value="read_only"), table_page=_table_virtual(guest))
    assert done == 0
    assert before == after
    assert guest.recorded(1) == [3, SYMBOLS["spare"]]  # its store faults: present, a write


def _table_virtual(guest: Guest) -> int:
    """Where the kernel sees the L1 entry of `spare`."""
    address = _entry_address(guest, "spare")
    return VIRT_BASE + (guest.domain.mfns.index(address >> 12) << 12) + (address & 0xFFF)


@pytest.mark.parametrize("way", WAYS)
def test_a_page_taken_away_is_reached_by_no_vcpu_any_more(guest: Guest, way: str) -> None:
    done, before, after = contend(guest, WAYS[way].format(value="0"), table_page=_table_virtual(guest))
    assert done == 0
    assert before == after
    assert guest.recorded(1)[0] & 1 == 0  # not present


@pytest.mark.parametrize("way", WAYS)
def test_a_page_shown_elsewhere_is_written_there_by_every_vcpu(guest: Guest, way: str) -> None:
    other = guest.spare(3)
    code = WAYS[way].format(value=f"{other << 12 | READ_WRITE}")
    guest.map("trap_stack", other, READ_ONLY)
    arrived = "there: cmp qword [trap_stack], 1000\njb there\nmov qword [ready], 1"
    done, before, after = contend(guest, f"{code}\n{arrived}", table_page=_table_virtual(guest))
    assert done == 0
    assert before == after


@pytest.mark.svm_smoke
def test_a_frame_that_is_a_page_table_is_written_by_no_vcpu(guest: Guest) -> None:
    done, pinned, before, after = contend(
        guest,
        f"""
            hypercall update_va_mapping, spare, 0, 0
            record rax
            mov qword [scratch + 2048], {Mmuext.PIN_L1_TABLE}
            mov rax, frame
            mov [scratch + 2056], rax
            hypercall mmuext_op, scratch + 2048, 1, 0, 0x7ff0
            record rax
        """,
    )
    assert (done, pinned) == (0, 0)
    assert before == after
    assert guest.core.tables.is_page_table(guest.domid, guest.frame("spare"))


def test_a_frame_given_back_within_one_call_is_empty_and_stays_so(guest: Guest) -> None:
    frame = guest.frame("spare")
    guest.map("user_stack", frame, READ_ONLY)
    guest.load(
        f"""
            up
    moving: cmp qword [user_stack], 1000
            jb moving
            hypercall multicall, calls, 3
            record [calls + 8]
            record [calls + 64 + 8]
            record [calls + 128 + 8]
            mov rbx, 200000
    on:     dec rbx
            jne on
            shutdown
    second: add qword [spare], 2
            jmp second
            align 8
    calls:  dq {Hypercall.UPDATE_VA_MAPPING}, 0, spare, 0, 0, 0, 0, 0
            dq {Hypercall.UPDATE_VA_MAPPING}, 0, user_stack, 0, 0, 0, 0, 0
            dq {Hypercall.MEMORY_OP}, 0, 1, reservation, 0, 0, 0, 0
    reservation:
            dq frame
            dq 1
            dd 0, 0
            dw 0x7ff0, 0, 0, 0
    frame:  dq {frame}
        """
    )
    guest.prepare_vcpu("second", rip=guest.address("second"))
    guest.start()
    result = guest.wait()
    # The second vCPU has no handler for its page fault, which may come before the first is through.
    assert result.outcome in (Outcome.SHUTDOWN, Outcome.CRASHED)
    assert frame not in guest.core.frames.frames_of(guest.domid)
    assert guest.core.memory.read(frame << 12, PAGE_SIZE) == bytes(PAGE_SIZE)


def test_a_whole_table_taken_away_is_used_by_no_vcpu_any_more(guest: Guest) -> None:
    # `far` is in the second 2 MiB of the start-of-day region, which only data of this test uses.
    far = VIRT_BASE + (2 << 20)
    guest.set_word("zero", 0)
    root = guest.core.tables.kernel_roots[guest.domid, 0]
    memory = guest.core.memory
    l3 = memory.read_u64(root * PAGE_SIZE + 8 * 511) & ~0xFFF & ((1 << 52) - 1)
    l2 = memory.read_u64(l3 + 8 * 510) & ~0xFFF & ((1 << 52) - 1)
    frame = guest.domain.mfns[512]
    guest.map("user_stack", frame, READ_ONLY)
    guest.load(
        f"""
            up
    moving: cmp qword [user_stack], 1000
            jb moving
            hypercall mmu_update, request, 1, 0, 0x7ff0
            record rax
            record [user_stack]
            mov rbx, 200000
    on:     dec rbx
            jne on
            record [user_stack]
    wait:   cmp qword [ready], 1
            jne wait
            shutdown
    second: hypercall set_trap_table, table
            mov rbx, {far}
    store:  add qword [rbx], 2
            jmp store
    stopped:
            record [rsp + 16]
            mov qword [ready], 1
    after:  jmp after
            align 8
    request:
            dq {l2 + 8}, 0
    table:  trap 14, 0, stopped
            end_of_traps
        """
    )
    guest.prepare_vcpu("second")
    guest.start()
    done, before, after = guest.finish()
    assert done == 0
    assert before == after
    assert guest.recorded(1)[0] & ~2 == 0


def test_a_flush_of_other_vcpus_is_no_error(guest: Guest) -> None:
    flushes = (Mmuext.TLB_FLUSH_LOCAL, Mmuext.INVLPG_LOCAL, Mmuext.TLB_FLUSH_MULTI, Mmuext.INVLPG_MULTI)
    everywhere = (Mmuext.TLB_FLUSH_ALL, Mmuext.INVLPG_ALL)
    operations = "\n".join(f"dq {operation}, spare, zero" for operation in (*flushes, *everywhere))
    recorded = guest.records(
        f"""
            hypercall mmuext_op, operations, 6, done, 0x7ff0
            record rax
            record [done]
            shutdown
            align 8
    operations:
        {operations}
    done:   dq 0
        """
    )
    assert recorded == [0, 6]
