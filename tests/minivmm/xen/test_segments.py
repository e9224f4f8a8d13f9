"""Segments of a domain: its own descriptors in GDT and LDT, bases of FS and GS, and what must not be a descriptor."""

from __future__ import annotations

import errno

import pytest

from minivmm.deprivileged.monitor import software_back_end
from minivmm.memory import PAGE_SIZE
from minivmm.xen.hypercall_abi import Mmuext
from tests.minivmm.xen.kernels import READ_ONLY, Guest, error

pytestmark = pytest.mark.kvm

CODE64 = 0x00AF_FA00_0000_FFFF  # present, DPL 3, execute and read, L (SDM 3A 3.4.5)
DATA = 0x00CF_F200_0000_FFFF  # present, DPL 3, read and write
KERNEL_CODE64 = 0x00AF_9A00_0000_FFFF  # the same with DPL 0
CALL_GATE = 0x0000_EC00_E033_0000
TSS = 0x0000_8900_0000_0067
LDT_DESCRIPTOR = 0x0000_8200_0000_0067
NOT_PRESENT = 0x0000_7200_0000_0000
CODE_INDEX, DATA_INDEX = 0x40, 0x41
CODE_SELECTOR, DATA_SELECTOR = CODE_INDEX << 3 | 3, DATA_INDEX << 3 | 3
native = pytest.mark.skipif(
    software_back_end(), reason="ring 3 loads selectors from the host's GDT, on a software back end"
)


def table(guest: Guest, *descriptors: int, first: int = CODE_INDEX, page: str = "spare") -> int:
    """Descriptors in the frame of a page, which is mapped read-only from now on. Returns the frame."""
    frame = guest.frame(page)
    for index, descriptor in enumerate(descriptors, first):
        guest.core.memory.write_u64(frame * PAGE_SIZE + 8 * index, descriptor)
    guest.map(page, frame, READ_ONLY)
    return frame


SET_GDT = """
            hypercall set_gdt, frames, 512
            record rax
            jmp loaded
            align 8
    frames: dq {frame}
    loaded: nop
"""


@pytest.mark.svm_smoke
def test_a_kernel_runs_on_code_and_stack_segments_of_its_own(guest: Guest) -> None:
    frame = table(guest, CODE64, DATA)
    recorded = guest.records(
        f"""
            {SET_GDT.format(frame=frame)}
            hypercall set_trap_table, table
            iret_to there, {CODE_SELECTOR & ~3}, 0x202, stack_top, {DATA_SELECTOR}, 0
    there:  int 0x81
    frame:  record [rsp + 24]
            record [rsp + 48]
            shutdown
            align 8
    table:  trap 0x81, 1, frame
            end_of_traps
        """
    )
    if software_back_end():  # native code has the host's CS and SS, whichever it was entered with
        assert recorded[0] == 0
    else:
        assert recorded == [0, CODE_SELECTOR & ~3, DATA_SELECTOR]


@pytest.mark.svm_smoke
@native
def test_a_data_segment_has_the_base_of_its_descriptor(guest: Guest) -> None:
    frame = table(guest, CODE64, DATA | 0x1000 << 16)  # base 0x1000
    recorded = guest.records(
        f"""
            {SET_GDT.format(frame=frame)}
            hypercall set_trap_table, table
            mov eax, {DATA_SELECTOR}
            mov fs, eax
            mov rbx, fs:[0x123]
    fault:  record [fault_address]
            shutdown
            align 8
    table:  trap 14, 0, fault
            end_of_traps
        """
    )
    assert recorded == [0, 0x1123]


@native
@pytest.mark.parametrize("selector", [CODE_SELECTOR, DATA_SELECTOR])
def test_a_table_that_is_taken_away_has_no_selectors_any_more(guest: Guest, selector: int) -> None:
    frame = table(guest, CODE64, DATA)
    recorded = guest.records(
        f"""
            {SET_GDT.format(frame=frame)}
            hypercall set_trap_table, table
            hypercall set_gdt, 0, 0
            record rax
            mov eax, {selector}
    at:     mov es, eax
    fault:  record [rsp + 16]
            record [rsp + 24]
            shutdown
            align 8
    table:  trap 13, 0, fault
            end_of_traps
        """
    )
    assert recorded == [0, 0, selector & ~3, guest.address("at")]


def test_update_descriptor_changes_a_table_in_use(guest: Guest) -> None:
    frame = table(guest)
    at = frame * PAGE_SIZE + 8 * CODE_INDEX
    recorded = guest.records(
        f"""
            {SET_GDT.format(frame=frame)}
            hypercall set_callbacks, 0, failsafe, 0
            hypercall update_descriptor, {at}, {CODE64}
            record rax
            iret_to there, {CODE_SELECTOR & ~3}, 0x202, stack_top, flat_ss, 0
    there:  record 1
            hypercall update_descriptor, {at}, 0
            record rax
            iret_to wrong, {CODE_SELECTOR & ~3}, 0x202, stack_top, flat_ss, 0
    wrong:  record 2
            shutdown
    failsafe:
            record 3
            shutdown
        """
    )
    assert recorded == [0, 0, 1, 0, 3]


def test_a_kernels_descriptor_becomes_one_of_ring_3(guest: Guest) -> None:
    frame = table(guest, KERNEL_CODE64)
    assert guest.records(f"{SET_GDT.format(frame=frame)}\nshutdown") == [0]
    assert guest.core.memory.read_u64(frame * PAGE_SIZE + 8 * CODE_INDEX) == KERNEL_CODE64 | 3 << 45


@pytest.mark.parametrize("descriptor", [CALL_GATE, TSS, LDT_DESCRIPTOR])
def test_what_leads_into_ring_0_is_no_descriptor(guest: Guest, descriptor: int) -> None:
    frame, good = table(guest, descriptor), table(guest, page="user_stack")
    recorded = guest.records(
        f"""
            hypercall set_gdt, frames, 512
            record rax
            hypercall set_gdt, good, 512
            record rax
            hypercall update_descriptor, {good * PAGE_SIZE}, {descriptor}
            record rax
            hypercall update_descriptor, {good * PAGE_SIZE}, {NOT_PRESENT}
            record rax
            shutdown
            align 8
    frames: dq {frame}
    good:   dq {good}
        """
    )
    assert recorded == [error(errno.EINVAL), 0, error(errno.EINVAL), 0]
    assert guest.core.tables.gdts[guest.domid, 0] == (good,)


def test_a_descriptor_table_is_written_by_hypercall_only(guest: Guest) -> None:
    frame = table(guest, CODE64)
    recorded = guest.records(
        f"""
            {SET_GDT.format(frame=frame)}
            hypercall update_va_mapping, spare, {frame << 12 | 0x67}, 0
            record rax
            hypercall set_trap_table, table
            mov byte [spare], 1
    fault:  record [rsp + 16]
            shutdown
            align 8
    table:  trap 14, 0, fault
            end_of_traps
        """
    )
    assert recorded[0] == 0
    assert recorded[1] >> 63  # refused
    assert recorded[2] == 3


def test_a_frame_that_is_mapped_writable_is_no_descriptor_table(guest: Guest) -> None:
    recorded = guest.records(f"{SET_GDT.format(frame=guest.frame('spare'))}\nshutdown")
    assert recorded[0] >> 63
    assert (guest.domid, 0) not in guest.core.tables.gdts


@pytest.mark.parametrize(("entries", "where"), [(14 * 512 + 1, "frames"), (512, "0x1000")])
def test_a_gdt_that_reaches_xens_own_part_or_cannot_be_read_is_refused(guest: Guest, entries: int, where: str) -> None:
    recorded = guest.records(f"hypercall set_gdt, {where}, {entries}\nrecord rax\nshutdown\nalign 8\nframes: dq 0")
    assert recorded == [error(errno.EINVAL if where == "frames" else errno.EFAULT)]


SET_LDT = """
            hypercall mmuext_op, ldt, 1, 0, 0x7ff0
            record rax
            jmp local
            align 8
    ldt:    dq {command}, {address}, {entries}
    local:  nop
"""


def test_a_local_table_has_selectors_of_its_own(guest: Guest) -> None:
    table(guest, CODE64, DATA, first=1)
    selector = 1 << 3 | 4 | 3
    recorded = guest.records(
        f"""
            {SET_LDT.format(command=Mmuext.SET_LDT, address="spare", entries=3)}
            iret_to there, {selector & ~3}, 0x202, stack_top, {2 << 3 | 4 | 3}, 0
    there:  record 1
            shutdown
        """
    )
    assert recorded == [0, 1]


def test_a_local_table_that_is_taken_away_has_no_selectors_any_more(guest: Guest) -> None:
    table(guest, CODE64, DATA, first=1)
    recorded = guest.records(
        f"""
            {SET_LDT.format(command=Mmuext.SET_LDT, address="spare", entries=3)}
            hypercall set_callbacks, 0, failsafe, 0
            mov qword [ldt + 16], 0
            hypercall mmuext_op, ldt, 1, 0, 0x7ff0
            record rax
            iret_to there, {1 << 3 | 4}, 0x202, stack_top, flat_ss, 0
    there:  record 1
            shutdown
    failsafe:
            record 2
            shutdown
        """
    )
    assert recorded == [0, 0, 2]
    assert (guest.domid, 0) not in guest.core.tables.ldts


@pytest.mark.parametrize(("address", "entries"), [("spare + 8", 1), ("spare", 8193), ("0x1000", 1), ("stack", 1)])
def test_a_local_table_that_cannot_be_is_refused(guest: Guest, address: str, entries: int) -> None:
    recorded = guest.records(f"{SET_LDT.format(command=Mmuext.SET_LDT, address=address, entries=entries)}\nshutdown")
    assert recorded[0] >> 63
    assert (guest.domid, 0) not in guest.core.tables.ldts


# -- bases


@pytest.mark.svm_smoke
def test_each_mode_has_a_base_of_gs_of_its_own_and_fs_is_shared(guest: Guest) -> None:
    guest.give_user_space()
    recorded = guest.records(
        """
            mov qword [spare], 0x11
            mov qword [spare + 8], 0x22
            mov qword [spare + 16], 0x33
            hypercall set_trap_table, table
            hypercall stack_switch, flat_ss, trap_stack_top
            hypercall set_segment_base, 0, spare        ; FS
            hypercall set_segment_base, 1, spare + 8    ; GS of user code
            hypercall set_segment_base, 2, spare + 16   ; GS of the kernel
            record fs:[0]
            record gs:[0]
            to_user user
    user:   record fs:[0]
            record gs:[0]
            int 0x81
    kernel: record fs:[0]
            record gs:[0]
            shutdown
            align 8
    table:  trap 0x81, 3, kernel
            end_of_traps
        """
    )
    assert recorded == [0x11, 0x33, 0x11, 0x22, 0x11, 0x33]


@pytest.mark.parametrize("which", range(3))
def test_a_base_that_is_no_address_is_refused(guest: Guest, which: int) -> None:
    recorded = guest.records(f"hypercall set_segment_base, {which}, {1 << 47}\nrecord rax\nshutdown")
    assert recorded == [error(errno.EINVAL)]


def test_the_user_selector_of_gs_brings_its_base(guest: Guest) -> None:
    base = 0x12345678
    low, high = base & 0xFFFFFF, base >> 24
    guest.give_user_space()
    frame = table(guest, DATA | low << 16 | high << 56)
    read_base = "mov ecx, 0xc0000102\nrdmsr\nrecord rax"
    recorded = guest.records(
        f"""
            {SET_GDT.format(frame=frame)}
            hypercall set_segment_base, 3, {CODE_SELECTOR}
            record rax
            {read_base}
            hypercall set_segment_base, 3, 0xfff3   ; there is none: a null selector instead
            record rax
            {read_base}
            shutdown
        """
    )
    assert recorded == [0, 0, base, 0, 0]


def test_flat_segments_of_every_domain_are_where_xen_has_them(guest: Guest) -> None:
    assert guest.records(
        """
            iret_to there, 0xe030, 0x202, stack_top, 0xe02b, 0
    there:  mov eax, 0xe02b
            mov ds, eax
            mov es, eax
            mov rbx, 0
            mov ds, ebx
            mov rax, [zero]
            record rax
            shutdown
        """
    ) == [0]
