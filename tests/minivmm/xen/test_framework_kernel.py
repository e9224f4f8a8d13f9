"""A kernel that starts as test frameworks for Xen do: it knows nothing but what start_info tells it.

Linked at 0, as such kernels are: hypercall page by its note, traps and callbacks, user code on the kernel's own page
tables, shared_info by update_va_mapping, console and store by their rings through the machine-to-physical table, a
grant table, and services that may be missing.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from minivmm.boot.xen_image import XenElfNote, read
from minivmm.memory import PAGE_SIZE
from minivmm.outcome import Outcome, RunResult
from minivmm.xen.abi import EMULATE_PREFIX, MACH2PHYS_VIRT_START, XenconsInterface, XenstoreDomainInterface
from minivmm.xen.domain import Domain
from minivmm.xen.grant_abi import GrantOp
from minivmm.xen.hypercall_abi import Hypercall, Mmuext
from minivmm.xen.hypervisor import Hypervisor
from tests.minivmm.xen import kernels
from tests.minivmm.xen.assemble import assemble

pytestmark = pytest.mark.kvm

ENTRY = kernels.KERNEL  # virtual and physical
CODE_SIZE = 2 * PAGE_SIZE
PAGES = ("records", "stack", "trap_stack", "shared", "grants", "hypercall_page")
PLACES = {name: ENTRY + CODE_SIZE + index * PAGE_SIZE for index, name in enumerate(PAGES)}
STARTS = {  # fields of start_info
    "SHARED_INFO": 40,
    "STORE_MFN": 56,
    "STORE_EVTCHN": 64,
    "CONSOLE_MFN": 72,
    "CONSOLE_EVTCHN": 80,
    "PT_BASE": 88,
}


def _page_call(arguments: list[str] | tuple[str, ...]) -> list[str]:
    """`hypercall NAME, ...` through the hypercall page."""
    name, *values = arguments
    loads = [f"mov {register}, {value}" for register, value in zip(kernels.ARGUMENTS, values, strict=False)]
    return [*loads, f"call hypercall_page + {32 * kernels.HYPERCALLS[name]}"]


MACROS = {**kernels.MACROS, "hypercall": lambda arguments: _page_call(list(arguments))}
START = """
            mov r15, records
            mov rsp, stack + 4096
            mov rbp, rsi                    ; start_info, from here on
            mov [start_info], rsi
            hypercall set_trap_table, traps
            record rax
            hypercall stack_switch, flat_ss, trap_stack + 4096
            record rax
            hypercall callback_op, 0, event
            record rax
            mov eax, 0
            mov ds, eax
            mov es, eax
            mov fs, eax
            mov gs, eax
            hypercall update_va_mapping, 0, 0, 2    ; no page at NULL: it finds mistakes
            record rax
            mov rax, cr3
            shr rax, 12
            mov [ext + 8], rax
            hypercall mmuext_op, ext, 1, 0, 0x7ff0  ; user code on the kernel's own tables
            record rax
"""
END = """
            shutdown
            align 8
    zero:   dq 0
    start_info:
            dq 0
    event:  dw 0, 0
            dd 0
            dq callback
    ext:    dq NEW_USER_BASEPTR, 0, 0
    callback:
            mov byte [shared], 0
            return
    fault:  record 14
            record [rsp + 24]
            shutdown
    back:   mov rsp, [kernel_rsp]
            ret
    kernel_rsp:
            dq 0
            align 8
    traps:  trap 14, 4, fault
            trap 13, 4, fault
            trap 0x20, 7, back
            end_of_traps
"""


@pytest.fixture(scope="module", params=[False, True], ids=["by exits", "exitless"])
def machine(request: pytest.FixtureRequest) -> Iterator[Hypervisor]:
    with Hypervisor(16 << 20, exitless=request.param) as made:
        yield made


@pytest.fixture
def domain(machine: Hypervisor, tmp_path: Path) -> Iterator[Domain]:
    notes = {
        **kernels.LINUX_LIKE,
        XenElfNote.VIRT_BASE: 0,
        XenElfNote.ENTRY: ENTRY,
        XenElfNote.HYPERCALL_PAGE: PLACES["hypercall_page"],
        XenElfNote.GUEST_OS: b"framework\0",
    }
    image = kernels.kernel_bytes(notes, code=bytes(CODE_SIZE), bss=len(PAGES) * PAGE_SIZE)
    made = machine.create_domain(read(kernels.write(tmp_path, image)), kernels.MEMORY)
    yield made
    machine.destroy(made)


def run(machine: Hypervisor, domain: Domain, body: str) -> tuple[RunResult, list[int]]:
    """Runs START, `body` and END. Returns what `body` has recorded, all of START having succeeded."""
    symbols = {**kernels.SYMBOLS, **PLACES, **STARTS, "NEW_USER_BASEPTR": Mmuext.NEW_USER_BASEPTR, "M2P": M2P}
    del symbols["zero"]
    code = assemble(START + body + END, ENTRY, symbols, MACROS).code
    assert len(code) <= CODE_SIZE
    for at in range(0, len(code), PAGE_SIZE):
        machine.memory.write(domain.mfns[(ENTRY + at) >> 12] << 12, code[at : at + PAGE_SIZE])
    result = machine.run(domain, timeout=30)
    assert result.outcome is Outcome.SHUTDOWN, f"{result.detail}\n{result.dump}"
    count = (domain.vcpus[0].regs.r15 - PLACES["records"]) // 8
    data = machine.memory.read(domain.mfns[PLACES["records"] >> 12] << 12, 8 * count)
    recorded = list(struct.unpack(f"<{count}Q", data))
    assert recorded[:5] == [0] * 5
    return result, recorded[5:]


M2P = MACH2PHYS_VIRT_START
# RBX: the page of the machine frame in RAX.
TO_VIRTUAL = """
            mov rcx, M2P
            shl rax, 3
            add rcx, rax
            mov rbx, [rcx]
            shl rbx, 12
"""


def test_it_finds_its_hypercall_page_filled_and_the_hypervisors_version(machine: Hypervisor, domain: Domain) -> None:
    _, recorded = run(
        machine,
        domain,
        """
            record [hypercall_page]
            hypercall xen_version, 0, 0
            record rax
            hypercall xen_version, 6, features
            record rax
            record [features]
            jmp on
            align 8
    features:
            dd 0, 0
    on:     nop
        """,
    )
    assert recorded[0] & 0xFF == 0xB8  # mov eax, imm32
    assert recorded[1] == 4 << 16 | 17
    assert recorded[2] == 0
    assert recorded[3] >> 32 & 1 << 5  # mmu_pt_update_preserve_ad


def test_it_maps_shared_info(machine: Hypervisor, domain: Domain) -> None:
    _, recorded = run(
        machine,
        domain,
        """
            mov rsi, [rbp + SHARED_INFO]
            or rsi, 7
            hypercall update_va_mapping, shared, rsi, 2
            record rax
            record [shared]
            record [shared + 32 + 24]
            mov byte [shared + 1], 0
            hypercall xen_version, 0, 0
            record rax
        """,
    )
    assert recorded[0] == 0
    assert recorded[1] & 0xFF00 == 0x100  # events begin masked
    assert recorded[2] & 0xFFFF_FFFF == machine.core.clock.mul
    assert recorded[3] == 4 << 16 | 17


def test_it_writes_to_its_console(machine: Hypervisor, domain: Domain) -> None:
    out, produced = XenconsInterface.OUT, XenconsInterface.OUT_PROD
    result, recorded = run(
        machine,
        domain,
        f"""
            mov rax, [rbp + CONSOLE_MFN]
            {TO_VIRTUAL}
            mov rax, [text]
            mov [rbx + {out}], rax
            add dword [rbx + {produced}], 6
            mov eax, dword [rbp + CONSOLE_EVTCHN]
            mov dword [port], eax
            hypercall event_channel_op, SEND, port
            record rax
            jmp on
            align 8
    text:   ascii hello
            db 0x0a, 0, 0
    port:   dd 0, 0
    on:     nop
        """,
    )
    assert recorded == [0]
    assert result.console == b"hello\n"


@pytest.mark.svm_smoke
def test_it_reads_the_store(machine: Hypervisor, domain: Domain) -> None:
    ring = XenstoreDomainInterface
    _, recorded = run(
        machine,
        domain,
        f"""
            mov rax, [rbp + STORE_MFN]
            {TO_VIRTUAL}
            mov r12, rbx
            mov rax, [request]
            mov [rbx], rax
            mov rax, [request + 8]
            mov [rbx + 8], rax
            mov rax, [request + 16]
            mov [rbx + 16], rax
            mov dword [rbx + {ring.REQ_PROD}], 22
            mov eax, dword [rbp + STORE_EVTCHN]
            mov dword [port], eax
            hypercall event_channel_op, SEND, port
            record rax
    wait:   cmp dword [r12 + {ring.RSP_PROD}], 17
            jae came
            hypercall sched_op, 3, poll
            jmp wait
    came:   record [r12 + {ring.RSP}]           ; type and request id
            record [r12 + {ring.RSP + 8}]       ; transaction and length
            record [r12 + {ring.RSP + 16}]
            jmp on
            align 8
    request:
            dd 2, 77, 0, 6                      ; XS_READ
            ascii domid
            db 0, 0, 0
    poll:   dq port
            dd 1, 0
            dq 0
    port:   dd 0, 0
    on:     nop
        """,
    )
    assert recorded[0] == 0
    assert recorded[1] == 77 << 32 | 2
    assert recorded[2] >> 32 == len(str(domain.domid))
    assert recorded[3].to_bytes(8, "little").startswith(str(domain.domid).encode())


def test_it_sets_up_a_grant_table(machine: Hypervisor, domain: Domain) -> None:
    _, recorded = run(
        machine,
        domain,
        f"""
            hypercall grant_table_op, {GrantOp.SET_VERSION.value}, version, 1
            record rax
            hypercall grant_table_op, {GrantOp.SETUP_TABLE.value}, setup, 1
            record rax
            record [setup + 8]
            mov rsi, [frame]
            shl rsi, 12
            or rsi, 7
            hypercall update_va_mapping, grants, rsi, 2
            record rax
            mov rax, 0x1234
            mov [grants + 64], rax
            hypercall grant_table_op, {GrantOp.QUERY_SIZE.value}, query, 1
            record rax
            jmp on
            align 8
    version:
            dd 1, 0
    setup:  dw 0x7ff0, 0
            dd 1, 0, 0
            dq frame
    query:  dw 0x7ff0, 0
            dd 0, 0, 0
    frame:  dq 0
    on:     nop
        """,
    )
    assert [recorded[0], recorded[1], recorded[2] & 0xFFFF, recorded[3], recorded[4]] == [0] * 5
    with machine.core.lock:
        assert machine.memory.read_u64(machine.core.grants.entry(domain.domid, 8)) == 0x1234


@pytest.mark.svm_smoke
def test_it_runs_user_code_and_comes_back_by_an_interrupt(machine: Hypervisor, domain: Domain) -> None:
    _, recorded = run(
        machine,
        domain,
        """
            call in_user_mode
            record 2
            jmp on
    in_user_mode:
            mov [kernel_rsp], rsp
            iret_to user, user_cs, 0x202, stack + 2048, flat_ss, 0
    user:   record 1
            int 0x20
    on:     nop
        """,
    )
    assert recorded == [1, 2]


def test_its_user_code_may_be_32_bit_code(machine: Hypervisor, domain: Domain) -> None:
    _, recorded = run(
        machine,
        domain,
        """
            call in_user_mode
            record rax
            jmp on
    in_user_mode:
            mov [kernel_rsp], rsp
            mov rax, -1
            iret_to user, 0xe023, 0x202, stack + 2048, flat_ss, 0
    user:   db 0x40                         ; inc eax: a prefix to 64-bit code
            db 0x83, 0xc0, 0x07             ; add eax, 7
            db 0xcd, 0x20                   ; int 0x20
    on:     nop
        """,
    )
    assert recorded == [7]


def test_it_asks_the_processor_through_the_prefix(machine: Hypervisor, domain: Domain) -> None:
    prefix = f"db {', '.join(map(str, EMULATE_PREFIX))}"
    _, recorded = run(
        machine,
        domain,
        f"""
            mov eax, 0x40000000
            mov ecx, 0
            {prefix}
            cpuid
            record rbx
            record rax
        """,
    )
    assert recorded[0].to_bytes(8, "little")[:4] == b"XenV"
    assert recorded[1] >= 0x40000002


@pytest.mark.parametrize("name", ["platform_op", "hvm_op", "sysctl", "domctl", "kexec_op", "argo_op", "xenpmu_op"])
def test_a_service_that_is_missing_says_so(machine: Hypervisor, domain: Domain, name: str) -> None:
    _, (result,) = run(machine, domain, f"hypercall {name}, 0, 0\nrecord rax")
    assert result == kernels.error(errno.ENOSYS)
    assert domain.unknown_hypercalls[f"unknown {getattr(Hypercall, name.upper())}"] == 1


def test_a_pointer_to_null_is_its_own_page_fault(machine: Hypervisor, domain: Domain) -> None:
    _, recorded = run(machine, domain, "mov rbx, 0\nat: mov rax, [rbx]")
    assert recorded[0] == 14
