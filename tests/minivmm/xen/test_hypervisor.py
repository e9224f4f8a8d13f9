"""A domain's whole life on real KVM: built, pinned, run at ring 3, answered, refused, taken back."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from minivmm.boot.xen_image import XenElfNote, read
from minivmm.errors import ConfigError
from minivmm.outcome import Outcome, RunResult
from minivmm.tally import MAX_NAMES
from minivmm.xen.calls import call as hypercall
from minivmm.xen.domain import Domain
from minivmm.xen.hypercall_abi import MULTICALL_ENTRY, TRAP_INFO, Hypercall, MulticallEntry, TrapInfo
from minivmm.xen.hypervisor import Hypervisor
from tests.minivmm.xen import kernels

pytestmark = [pytest.mark.kvm, pytest.mark.svm_smoke]

ENTRY = kernels.VIRT_BASE + kernels.KERNEL
DATA = 0x800  # offset in the code page where a test puts its bytes
DOMAIN_MEMORY = 8 << 20
SYSCALL = b"\x0f\x05"


def immediate(register: str, value: int) -> bytes:
    """mov register, value (64 bit)."""
    number = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16))).index(register)
    return bytes((0x48 | number >> 3, 0xB8 | number & 7)) + struct.pack("<Q", value & (1 << 64) - 1)


def call(number: int, *arguments: int) -> bytes:
    """Code that makes a hypercall by `syscall`."""
    registers = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
    loads = b"".join(immediate(register, value) for register, value in zip(registers, arguments, strict=False))
    return loads + immediate("rax", number) + SYSCALL


def say(address: int, count: int) -> bytes:
    return call(Hypercall.CONSOLE_IO, 0, count, address)


def shut_down(reason_at: int) -> bytes:
    return call(Hypercall.SCHED_OP, 2, reason_at)


def kernel_code(body: bytes, data: bytes = b"", reason: int = 0) -> bytes:
    """`body`, then a shutdown; `data` lies at ENTRY + DATA + 16, the reason at ENTRY + DATA, a result at + 8."""
    code = body + shut_down(ENTRY + DATA)
    assert len(code) <= DATA
    return code.ljust(DATA, b"\xf4") + (struct.pack("<QQ", reason, 0) + data).ljust(kernels.CODE_SIZE - DATA, b"\0")


def report(number: int, *arguments: int) -> bytes:
    """A hypercall whose result goes to the console, 8 bytes."""
    store = immediate("rbx", ENTRY + DATA + 8) + b"\x48\x89\x03"  # mov [rbx], rax
    return call(number, *arguments) + store + say(ENTRY + DATA + 8, 8)


@pytest.fixture
def hypervisor() -> Iterator[Hypervisor]:
    with Hypervisor(32 << 20, cpus=2) as made:
        yield made


def make(hypervisor: Hypervisor, directory: Path, code: bytes, **notes: int) -> Domain:
    extra = {getattr(XenElfNote, name): value for name, value in notes.items()}
    image = read(kernels.write(directory, kernels.kernel_bytes({**kernels.LINUX_LIKE, **extra}, code=code)))
    return hypervisor.create_domain(image, DOMAIN_MEMORY, cmdline=b"quiet")


def run(hypervisor: Hypervisor, directory: Path, code: bytes, **notes: int) -> RunResult:
    domain = make(hypervisor, directory, code, **notes)
    try:
        return hypervisor.run(domain, timeout=60)
    finally:
        hypervisor.destroy(domain)


def run_with(hypervisor: Hypervisor, domain: Domain, code: bytes) -> RunResult:
    """Runs a domain whose code could be written only when its frames were known."""
    hypervisor.memory.write(domain.mfns[kernels.KERNEL >> 12] << 12, code)
    try:
        return hypervisor.run(domain, timeout=60)
    finally:
        hypervisor.destroy(domain)


def results(result: RunResult) -> list[int]:
    return [value for (value,) in struct.iter_unpack("<q", result.console)]


def test_a_domain_says_hello_and_shuts_down(hypervisor: Hypervisor, tmp_path: Path) -> None:
    result = run(hypervisor, tmp_path, kernel_code(say(ENTRY + DATA + 16, 6), b"hello\n"))
    assert result.outcome is Outcome.SHUTDOWN, result
    assert result.console == b"hello\n"
    assert result.exits == {"console_io": 1, "sched_op": 1}


@pytest.mark.parametrize(("reason", "outcome"), [(1, Outcome.RESET), (3, Outcome.CRASHED), (99, Outcome.CRASHED)])
def test_why_a_domain_shut_down_is_its_outcome(
    hypervisor: Hypervisor, tmp_path: Path, reason: int, outcome: Outcome
) -> None:
    assert run(hypervisor, tmp_path, kernel_code(b"", reason=reason)).outcome is outcome


def test_the_hypercall_page_makes_the_calls_of_its_entries(hypervisor: Hypervisor, tmp_path: Path) -> None:
    page = ENTRY + kernels.CODE_SIZE  # in the image's bss
    body = (
        immediate("rdi", 0)
        + immediate("rbx", page + 32 * Hypercall.XEN_VERSION)
        + b"\xff\xd3"  # call rbx
        + immediate("rbx", ENTRY + DATA + 8)
        + b"\x48\x89\x03"
        + say(ENTRY + DATA + 8, 8)
    )
    result = run(hypervisor, tmp_path, kernel_code(body), HYPERCALL_PAGE=page)
    assert results(result) == [4 << 16 | 17], result


def test_what_is_not_there_returns_enosys_and_is_counted(hypervisor: Hypervisor, tmp_path: Path) -> None:
    result = run(hypervisor, tmp_path, kernel_code(report(63) + report(Hypercall.XEN_VERSION, 77)))
    assert results(result) == [-errno.ENOSYS, -errno.ENOSYS]
    assert result.exits["unknown 63"] == 1


def test_names_a_domain_makes_up_cost_no_memory(hypervisor: Hypervisor, tmp_path: Path) -> None:
    domain = make(hypervisor, tmp_path, kernel_code(b""))
    for number in range(1000):
        assert hypercall(domain.vcpus[0], 1000 + number, (0,) * 6) == -errno.ENOSYS
        assert hypercall(domain.vcpus[0], Hypercall.CONSOLE_IO, (0, 1, 0x1000 * number, 0, 0, 0)) in (0, -errno.EFAULT)
        assert hypercall(domain.vcpus[0], Hypercall.SCHED_OP, (1000 + number, 0, 0, 0, 0, 0)) == -errno.ENOSYS
    assert len(domain.unknown_hypercalls) == len(domain.refused) == MAX_NAMES
    assert domain.hypercalls["console_io"] == 1000
    hypervisor.destroy(domain)


@pytest.mark.parametrize("address", [0, 0x1000, 0xFFFF828000000000, 0x8000000000000000, (1 << 64) - 1])
def test_a_pointer_the_domain_may_not_use_returns_efault(hypervisor: Hypervisor, tmp_path: Path, address: int) -> None:
    result = run(
        hypervisor,
        tmp_path,
        kernel_code(report(Hypercall.CONSOLE_IO, 0, 16, address) + report(Hypercall.XEN_VERSION, 1, address)),
    )
    assert results(result) == [-errno.EFAULT, -errno.EFAULT]


def test_a_page_table_cannot_be_made_writable(hypervisor: Hypervisor, tmp_path: Path) -> None:
    domain = make(hypervisor, tmp_path, kernel_code(b""))
    address = kernels.VIRT_BASE + (domain.start.plan.tables << 12)
    entry = domain.start.page_tables[0].mfn << 12 | 0x67
    result = run_with(hypervisor, domain, kernel_code(report(Hypercall.UPDATE_VA_MAPPING, address, entry)))
    assert results(result)[0] < 0, result


def test_a_store_to_a_page_table_faults(hypervisor: Hypervisor, tmp_path: Path) -> None:
    domain = make(hypervisor, tmp_path, kernel_code(b""))
    address = kernels.VIRT_BASE + (domain.start.plan.tables << 12)
    result = run_with(hypervisor, domain, kernel_code(immediate("rbx", address) + b"\x48\x89\x03"))  # mov [rbx], rax
    assert result.outcome is Outcome.CRASHED
    assert f"address={address:#x}" in result.detail


def test_another_domains_frame_cannot_be_mapped(hypervisor: Hypervisor, tmp_path: Path) -> None:
    other = make(hypervisor, tmp_path, kernel_code(b""))
    domain = make(hypervisor, tmp_path, kernel_code(b""))
    stack = kernels.VIRT_BASE + (domain.start.plan.stack << 12)
    body = report(Hypercall.UPDATE_VA_MAPPING, stack, other.mfns[0] << 12 | 0x25)
    assert results(run_with(hypervisor, domain, kernel_code(body)))[0] < 0
    hypervisor.destroy(other)


def test_a_domain_may_change_how_its_own_pages_are_mapped(hypervisor: Hypervisor, tmp_path: Path) -> None:
    domain = make(hypervisor, tmp_path, kernel_code(b""))
    stack = kernels.VIRT_BASE + (domain.start.plan.stack << 12)
    code = domain.mfns[kernels.KERNEL >> 12]
    # The stack's page now shows the code's frame: its data is read through it.
    body = report(Hypercall.UPDATE_VA_MAPPING, stack, code << 12 | 0x25) + say(stack + DATA + 16, 5)
    result = run_with(hypervisor, domain, kernel_code(body, b"alias"))
    assert result.console == bytes(8) + b"alias", result


HANDLER = 0x400  # offset in the code page
UD2 = b"\x0f\x0b"
# The handler's way back: the frame's RCX and R11 popped, RIP moved over ud2, an iret_context built, hypercall 23.
SKIP_AND_IRET = b"\x59\x41\x5b\x48\x83\x04\x24\x02\x6a\x00\x51\x41\x53\x50" + b"\xb8\x17\0\0\0" + SYSCALL


def with_handler(body: bytes, handler: bytes, vector: int, flags: int = 0) -> bytes:
    """`body` with `handler` registered for an exception."""
    table = TRAP_INFO.pack(TrapInfo(vector, flags, 0xE033, ENTRY + HANDLER)) + bytes(TRAP_INFO.size)
    code = report(Hypercall.SET_TRAP_TABLE, ENTRY + DATA + 16) + body + shut_down(ENTRY + DATA)
    assert len(code) <= HANDLER
    code = code.ljust(HANDLER, b"\xf4") + handler
    return code.ljust(DATA, b"\xf4") + (bytes(16) + table + b"trap!").ljust(kernels.CODE_SIZE - DATA, b"\0")


def test_an_exception_goes_to_the_domains_handler_and_back(hypervisor: Hypervisor, tmp_path: Path) -> None:
    text = ENTRY + DATA + 16 + 2 * TRAP_INFO.size
    handler = b"\x57\x56\x52" + say(text, 5) + b"\x5a\x5e\x5f" + SKIP_AND_IRET  # push and pop what say() uses
    result = run(hypervisor, tmp_path, with_handler(UD2 + UD2 + say(text, 4), handler, 6))
    assert result.outcome is Outcome.SHUTDOWN, result
    assert result.console == bytes(8) + b"trap!trap!trap"
    assert result.exits["iret"] == 2


def test_a_page_fault_carries_its_address_through_vcpu_info(hypervisor: Hypervisor, tmp_path: Path) -> None:
    domain = make(hypervisor, tmp_path, kernel_code(b""))
    tables = kernels.VIRT_BASE + (domain.start.plan.tables << 12)
    # The handler shows the frame's error code and ends: it lies above RCX and R11.
    handler = b"\x48\x8b\x44\x24\x10" + immediate("rbx", ENTRY + DATA + 8) + b"\x48\x89\x03" + say(ENTRY + DATA + 8, 8)
    body = immediate("rbx", tables + 0x18) + b"\x48\x89\x03"
    code = with_handler(body, handler + shut_down(ENTRY + DATA), 14)
    hypervisor.memory.write(domain.mfns[kernels.KERNEL >> 12] << 12, code)
    result = hypervisor.run(domain, timeout=60)
    assert result.outcome is Outcome.SHUTDOWN, result
    assert results(result) == [0, 3]  # present, a write; the user bit is gone: the kernel is a supervisor to itself
    assert domain.vcpus[0].fault_address == tables + 0x18
    hypervisor.destroy(domain)


def test_a_handler_may_mask_events_and_iret_unmasks_them(hypervisor: Hypervisor, tmp_path: Path) -> None:
    domain = make(hypervisor, tmp_path, kernel_code(b""))
    domain.vcpus[0].events_masked = False
    hypervisor.memory.write(
        domain.mfns[kernels.KERNEL >> 12] << 12, with_handler(UD2, shut_down(ENTRY + DATA), 6, flags=4)
    )
    assert hypervisor.run(domain, timeout=60).outcome is Outcome.SHUTDOWN
    assert domain.vcpus[0].events_masked
    hypervisor.destroy(domain)


@pytest.mark.parametrize("stack", [0, 0x1000, 0xFFFF828000001000])
def test_a_trap_without_a_stack_ends_the_domain_and_nothing_else(
    hypervisor: Hypervisor, tmp_path: Path, stack: int
) -> None:
    code = with_handler(immediate("rsp", stack) + UD2, b"\xf4", 6)
    result = run(hypervisor, tmp_path, code)
    assert result.outcome is Outcome.CRASHED
    assert "no stack" in result.detail


def test_an_iret_to_nowhere_is_the_domains_own_crash(hypervisor: Hypervisor, tmp_path: Path) -> None:
    nowhere = run(hypervisor, tmp_path, kernel_code(immediate("rsp", 0x1000) + call(Hypercall.IRET)))
    assert (nowhere.outcome, "iret without a context" in nowhere.detail) == (Outcome.CRASHED, True)
    to_user = b"\x6a\x2b\x6a\x00\x6a\x00\x6a\x33\x6a\x00\x6a\x00\x6a\x00\x6a\x00\x6a\x00"  # nine pushes: cs 0x33
    refused = run(hypervisor, tmp_path, kernel_code(to_user + call(Hypercall.IRET)))
    assert "user page table" in refused.detail


def test_multicall_answers_each_entry_in_its_place(hypervisor: Hypervisor, tmp_path: Path) -> None:
    calls = ENTRY + DATA + 16
    entries = [
        MulticallEntry(Hypercall.XEN_VERSION, 7, 0, 0, 0, 0, 0, 0),
        MulticallEntry(63, 7, 0, 0, 0, 0, 0, 0),
        MulticallEntry(Hypercall.MULTICALL, 7, calls, 2, 0, 0, 0, 0),
    ]
    body = report(Hypercall.MULTICALL, calls, 3) + b"".join(
        say(calls + index * MULTICALL_ENTRY.size + 8, 8) for index in range(3)
    )
    result = run(hypervisor, tmp_path, kernel_code(body, MULTICALL_ENTRY.pack_all(entries)))
    assert results(result) == [0, 4 << 16 | 17, -errno.ENOSYS, -errno.EINVAL], result


def test_a_list_longer_than_any_kernel_sends_is_refused(hypervisor: Hypervisor, tmp_path: Path) -> None:
    body = report(Hypercall.MULTICALL, ENTRY, 1 << 31) + report(Hypercall.MMU_UPDATE, ENTRY, 1 << 31, 0, 0x7FF0)
    assert results(run(hypervisor, tmp_path, kernel_code(body))) == [-errno.EINVAL, -errno.EINVAL]


def test_another_domains_page_tables_are_not_this_ones_to_change(hypervisor: Hypervisor, tmp_path: Path) -> None:
    body = report(Hypercall.MMU_UPDATE, ENTRY, 0, 0, 5) + report(Hypercall.MMUEXT_OP, ENTRY, 0, 0, 5)
    assert results(run(hypervisor, tmp_path, kernel_code(body))) == [-errno.EPERM, -errno.EPERM]


def test_a_domain_that_never_ends_meets_its_deadline(hypervisor: Hypervisor, tmp_path: Path) -> None:
    domain = make(hypervisor, tmp_path, b"\xeb\xfe".ljust(kernels.CODE_SIZE, b"\xf4"))
    assert hypervisor.run(domain, timeout=0.3).outcome is Outcome.DEADLINE
    hypervisor.destroy(domain)


def test_a_destroyed_domain_leaves_every_frame_free(hypervisor: Hypervisor, tmp_path: Path) -> None:
    free = hypervisor.core.frames.free_frames
    for _ in range(3):
        run(hypervisor, tmp_path, kernel_code(say(ENTRY + DATA + 16, 6), b"hello\n"))
    assert hypervisor.core.frames.free_frames == free


def test_a_domain_larger_than_the_machine_is_refused_and_leaves_nothing(hypervisor: Hypervisor, tmp_path: Path) -> None:
    free = hypervisor.core.frames.free_frames
    image = read(kernels.write(tmp_path, kernels.kernel_bytes()))
    with pytest.raises(ConfigError, match="cannot be made"):
        hypervisor.create_domain(image, 64 << 20)
    with pytest.raises(ConfigError):
        hypervisor.create_domain(image, 1 << 20)
    assert hypervisor.core.frames.free_frames == free
