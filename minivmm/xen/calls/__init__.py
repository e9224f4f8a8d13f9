"""Every hypercall this hypervisor answers, in one table. What is not in it returns -ENOSYS, and is counted.

A handler gets the vCPU and as many arguments (RDI, RSI, RDX, R10, R8, R9) as the table says, returns the value for RAX,
and raises HypercallError for -errno. Whatever the guest named is copied once, then checked, then used.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import NamedTuple

from minivmm.xen.calls import control, events, grants, memory, paging, schedule, segments, version
from minivmm.xen.calls.lists import each
from minivmm.xen.errors import HypercallError
from minivmm.xen.hypercall_abi import MULTICALL_ENTRY, Hypercall, MulticallEntry
from minivmm.xen.vcpu import VirtualCpu

CALLS_AT_A_TIME = 16  # of a multicall


class Entry(NamedTuple):
    """One hypercall."""

    name: str
    arguments: int
    handler: Callable[..., int]


def multicall(vcpu: VirtualCpu, calls: int, count: int) -> int:
    """xen.h: many calls in one. Each result goes into its own entry; the whole fails only for a list it cannot read."""
    at = calls

    def carry_out(entry: MulticallEntry) -> None:
        nonlocal at
        nested = entry.op in (Hypercall.MULTICALL, Hypercall.IRET)  # a list within a list could go on for ever
        result = -errno.EINVAL if nested else call(vcpu, entry.op, entry[2:])
        vcpu.pages.write(at + 8, struct.pack("<Q", result & (1 << 64) - 1))
        at += MULTICALL_ENTRY.size

    return each(vcpu, calls, count, MULTICALL_ENTRY, carry_out, 0, CALLS_AT_A_TIME)


# `iret`, the remaining call, returns no value: traps.iret answers it.
TABLE: dict[int, Entry] = {
    Hypercall.SET_TRAP_TABLE: Entry("set_trap_table", 1, control.set_trap_table),
    Hypercall.MMU_UPDATE: Entry("mmu_update", 4, paging.mmu_update),
    Hypercall.SET_GDT: Entry("set_gdt", 2, segments.set_gdt),
    Hypercall.STACK_SWITCH: Entry("stack_switch", 2, control.stack_switch),
    Hypercall.SET_CALLBACKS: Entry("set_callbacks", 3, control.set_callbacks),
    Hypercall.FPU_TASKSWITCH: Entry("fpu_taskswitch", 1, control.fpu_taskswitch),
    Hypercall.SET_DEBUGREG: Entry("set_debugreg", 2, control.set_debugreg),
    Hypercall.GET_DEBUGREG: Entry("get_debugreg", 1, control.get_debugreg),
    Hypercall.UPDATE_DESCRIPTOR: Entry("update_descriptor", 2, segments.update_descriptor),
    Hypercall.MEMORY_OP: Entry("memory_op", 2, memory.memory_op),
    Hypercall.MULTICALL: Entry("multicall", 2, multicall),
    Hypercall.UPDATE_VA_MAPPING: Entry("update_va_mapping", 3, paging.update_va_mapping),
    Hypercall.SET_TIMER_OP: Entry("set_timer_op", 1, schedule.set_timer_op),
    Hypercall.XEN_VERSION: Entry("xen_version", 2, version.xen_version),
    Hypercall.CONSOLE_IO: Entry("console_io", 3, version.console_io),
    Hypercall.GRANT_TABLE_OP: Entry("grant_table_op", 3, grants.grant_table_op),
    Hypercall.VM_ASSIST: Entry("vm_assist", 2, control.vm_assist),
    Hypercall.UPDATE_VA_MAPPING_OTHERDOMAIN: Entry(
        "update_va_mapping_otherdomain", 4, paging.update_va_mapping_otherdomain
    ),
    Hypercall.VCPU_OP: Entry("vcpu_op", 3, schedule.vcpu_op),
    Hypercall.SET_SEGMENT_BASE: Entry("set_segment_base", 2, segments.set_segment_base),
    Hypercall.MMUEXT_OP: Entry("mmuext_op", 4, paging.mmuext_op),
    Hypercall.NMI_OP: Entry("nmi_op", 2, control.nmi_op),
    Hypercall.SCHED_OP: Entry("sched_op", 2, schedule.sched_op),
    Hypercall.CALLBACK_OP: Entry("callback_op", 2, control.callback_op),
    Hypercall.EVENT_CHANNEL_OP: Entry("event_channel_op", 2, events.event_channel_op),
    Hypercall.PHYSDEV_OP: Entry("physdev_op", 2, control.physdev_op),
}


def call(vcpu: VirtualCpu, number: int, arguments: tuple[int, ...]) -> int:
    """Carries out one hypercall; the value for RAX, negative for an error. Raises EndOfRun when it ends the domain."""
    domain = vcpu.domain
    entry = TABLE.get(number)
    if entry is None:
        domain.unknown_hypercalls.count(f"unknown {number}")
        return -errno.ENOSYS
    domain.hypercalls[entry.name] += 1
    try:
        result = entry.handler(vcpu, *arguments[: entry.arguments])
    except HypercallError as error:
        domain.refused.count(f"{entry.name}: {error.message}")
        result = -error.errno
    vcpu.recent.append((number, arguments, result))
    return result
