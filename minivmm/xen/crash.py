"""What a person wants to see of a domain that crashed: registers, last hypercalls, the walk of a faulting address."""

from __future__ import annotations

from minivmm.x86.paging import Pte
from minivmm.xen.calls import TABLE
from minivmm.xen.frame_words import ADDRESS, HYPERVISOR_SLOTS, PAGE_SHIFT, PageType
from minivmm.xen.hypercall_abi import Hypercall
from minivmm.xen.vcpu import VirtualCpu

GENERAL = (
    *("rip", "rsp", "rflags", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)
LEVELS = ((4, 39), (3, 30), (2, 21), (1, 12))
CODE_BYTES = 16
STACK_WORDS = 16


def registers(vcpu: VirtualCpu) -> dict[str, int]:
    """Of the mode that was on the CPU, and the address of its last page fault as `cr2`."""
    values = {name: getattr(vcpu.regs, name) for name in GENERAL}
    return values | {"cs": vcpu.cpu.cs, "ss": vcpu.cpu.ss, "cr3": vcpu.pages.root, "cr2": vcpu.fault_address}


def dump(vcpu: VirtualCpu) -> str:
    """A few lines of text: code and stack, hypercalls, the page-table walks of RIP and of the last page fault."""
    mode = "kernel" if vcpu.in_kernel else "user"
    lines = [f"vCPU {vcpu.index} of {vcpu.domain.name}, in {mode} mode, events {'off' if vcpu.events_masked else 'on'}"]
    lines.append(f"code:  {vcpu.pages.read_some(vcpu.regs.rip, CODE_BYTES).hex(' ')}")
    stack = vcpu.pages.read_some(vcpu.regs.rsp, 8 * STACK_WORDS)
    for at in range(0, len(stack), 32):
        words = (stack[start : start + 8][::-1].hex() for start in range(at, min(at + 32, len(stack)), 8))
        lines.append(f"stack: {' '.join(words)}")
    lines.append("last hypercalls, the latest first:")
    lines += [f"  {_describe(*made)}" for made in reversed(vcpu.recent)] or ["  none"]
    for what, address in (("RIP", vcpu.regs.rip), ("the last page fault", vcpu.fault_address)):
        lines.append(f"{what}, {address:#x}:")
        lines += [f"  {line}" for line in walk(vcpu, address)]
    return "\n".join(lines)


def _describe(number: int, arguments: tuple[int, ...], result: int) -> str:
    entry = TABLE.get(number)
    name = entry.name if entry else "iret" if number == Hypercall.IRET else f"hypercall {number}"
    shown = arguments[: entry.arguments] if entry else arguments
    return f"{name}({', '.join(f'{argument:#x}' for argument in shown)}) = {result}"


def walk(vcpu: VirtualCpu, address: int) -> list[str]:
    """The entries on the way to `address` in the tables in use, and what the frames behind them are."""
    tables, memory = vcpu.core.tables, vcpu.core.memory
    table = vcpu.pages.root
    lines = []
    for level, shift in LEVELS:
        slot = address >> shift & 0x1FF
        entry = memory.read_u64(table + 8 * slot)
        frame = (entry & ADDRESS) >> PAGE_SHIFT
        if not entry & Pte.PRESENT:
            lines.append(f"L{level}[{slot}] = {entry:#018x}  not present")
            break
        lines.append(f"L{level}[{slot}] = {entry:#018x}  {tables.describe(frame)}")
        if level == PageType.L4 and slot in HYPERVISOR_SLOTS:
            break
        table = frame << PAGE_SHIFT
    return lines
