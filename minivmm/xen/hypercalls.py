"""Every hypercall this hypervisor answers, in one table. What is not in it returns -ENOSYS, and is counted.

A handler gets the domain and the arguments (RDI, RSI, RDX, R10, R8, R9), returns the value for RAX, and raises
HypercallError for -errno. Whatever the guest named is copied once, then checked, then used.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

from minivmm.layout import Layout, Record
from minivmm.outcome import EndOfRun, Outcome
from minivmm.xen import abi, traps
from minivmm.xen.domain import Domain
from minivmm.xen.errors import HypercallError
from minivmm.xen.hypercall_abi import (
    MMU_UPDATE,
    MMUEXT_OP,
    MULTICALL_ENTRY,
    ConsoleIo,
    Hypercall,
    Mmuext,
    MmuextOp,
    MmuUpdate,
    SchedOp,
    Shutdown,
    XenVersion,
)

MAX_BATCH = 4096  # entries of one list: a domain splits longer ones
MAX_CONSOLE_WRITE = 4096  # bytes at once, as Xen cuts them

VERSION = 4 << 16 | 17  # the version whose public headers are followed

Handler = Callable[..., int]
TABLE: dict[int, tuple[str, int, Handler]] = {}
"""Number to name, count of arguments, handler."""


def hypercall(number: int, arguments: int) -> Callable[[Handler], Handler]:
    """Puts a handler of that many arguments into the table."""

    def register(handler: Handler) -> Handler:
        TABLE[number] = (handler.__name__, arguments, handler)
        return handler

    return register


def call(domain: Domain, number: int, arguments: tuple[int, ...]) -> int:
    """Carries out one hypercall; the value for RAX, negative for an error. Raises EndOfRun when it ends the domain."""
    known = TABLE.get(number)
    if known is None:
        domain.unknown_hypercalls.count(f"unknown {number}")
        return -errno.ENOSYS
    name, count, handler = known
    domain.hypercalls[name] += 1
    try:
        return handler(domain, *arguments[:count])
    except HypercallError as error:
        domain.refused.count(f"{name}: {error.message}")
        return -error.errno


@hypercall(Hypercall.XEN_VERSION, 2)
def xen_version(domain: Domain, cmd: int, argument: int) -> int:
    """version.h: who is there, and what it can."""
    match cmd:
        case XenVersion.VERSION:
            return VERSION
        case XenVersion.EXTRAVERSION:
            domain.pages.write(argument, b".vtk".ljust(16, b"\0"))
        case XenVersion.CAPABILITIES:
            domain.pages.write(argument, b"xen-3.0-x86_64".ljust(1024, b"\0"))
        case XenVersion.PLATFORM_PARAMETERS:
            domain.pages.write(argument, struct.pack("<Q", abi.HYPERVISOR_VIRT_START))
        case XenVersion.GET_FEATURES:
            (index,) = struct.unpack("<I", domain.pages.read(argument, 4))
            offered = 1 << abi.Feature.PAE_PGDIR_ABOVE_4GB | 1 << abi.Feature.MMU_PT_UPDATE_PRESERVE_AD
            domain.pages.write(argument + 4, struct.pack("<I", 0 if index else offered))
        case XenVersion.PAGESIZE:
            return 4096
        case _:
            raise HypercallError(errno.ENOSYS, f"xen_version {cmd} is not there")
    return 0


@hypercall(Hypercall.CONSOLE_IO, 3)
def console_io(domain: Domain, cmd: int, count: int, buffer: int) -> int:
    """xen.h: the emergency console. Nobody types on it."""
    match cmd & 0xFFFF_FFFF:
        case ConsoleIo.WRITE:
            count = min(count & 0xFFFF_FFFF, MAX_CONSOLE_WRITE)
            domain.console.write(domain.pages.read(buffer, count))
            return 0
        case ConsoleIo.READ:
            return 0
    raise HypercallError(errno.ENOSYS, f"console_io {cmd} is not there")


@hypercall(Hypercall.SCHED_OP, 2)
def sched_op(domain: Domain, cmd: int, argument: int) -> int:
    """sched.h. Raises EndOfRun for a shutdown."""
    match cmd & 0xFFFF_FFFF:
        case SchedOp.YIELD:
            return 0
        case SchedOp.SHUTDOWN:
            (reason,) = struct.unpack("<I", domain.pages.read(argument, 4))
            raise EndOfRun(_ENDINGS.get(reason, Outcome.CRASHED), f"the domain shut down: reason {reason}", reason)
    raise HypercallError(errno.ENOSYS, f"sched_op {cmd} is not there")


_ENDINGS = {
    Shutdown.POWEROFF: Outcome.SHUTDOWN,
    Shutdown.REBOOT: Outcome.RESET,
    Shutdown.CRASH: Outcome.CRASHED,
}


hypercall(Hypercall.SET_TRAP_TABLE, 1)(traps.set_trap_table)
hypercall(Hypercall.STACK_SWITCH, 2)(traps.stack_switch)


@hypercall(Hypercall.MMU_UPDATE, 4)
def mmu_update(domain: Domain, requests: int, count: int, done: int, target: int) -> int:
    """xen.h: a list of stores to page tables, each checked. `done`, where given, gets how many succeeded."""
    _own(target)

    def store(request: MmuUpdate) -> None:
        domain.tables.mmu_update(domain.domid, request.ptr, request.val)

    return _each(domain, requests, count, MMU_UPDATE, store, done)


@hypercall(Hypercall.UPDATE_VA_MAPPING, 3)
def update_va_mapping(domain: Domain, address: int, entry: int, flags: int) -> int:  # noqa: ARG001  every flush is whole
    """xen.h: the L1 entry that maps `address`, found through the current page tables."""
    domain.tables.update_va_mapping(domain.domid, address, entry)
    return 0


@hypercall(Hypercall.MMUEXT_OP, 4)
def mmuext_op(domain: Domain, operations: int, count: int, done: int, target: int) -> int:
    """xen.h: a list of operations on whole page tables. `done` as for mmu_update."""
    _own(target)
    return _each(domain, operations, count, MMUEXT_OP, lambda operation: _mmuext(domain, operation), done)


def _mmuext(domain: Domain, operation: MmuextOp) -> None:
    tables, domid = domain.tables, domain.domid
    match operation.cmd:
        case Mmuext.PIN_L1_TABLE | Mmuext.PIN_L2_TABLE | Mmuext.PIN_L3_TABLE | Mmuext.PIN_L4_TABLE:
            tables.pin(domid, operation.arg1, operation.cmd - Mmuext.PIN_L1_TABLE + 1)
        case Mmuext.UNPIN_TABLE:
            tables.unpin(domid, operation.arg1)
        case Mmuext.TLB_FLUSH_LOCAL | Mmuext.INVLPG_LOCAL | Mmuext.TLB_FLUSH_ALL | Mmuext.INVLPG_ALL:
            pass  # a changed entry never outlives the call that changed it
        case _:
            raise HypercallError(errno.ENOSYS, f"mmuext_op {operation.cmd} is not there")


@hypercall(Hypercall.MULTICALL, 2)
def multicall(domain: Domain, calls: int, count: int) -> int:
    """xen.h: many calls in one. Each result goes into its own entry; the whole fails only for a list it cannot read."""
    for at in range(calls, calls + _checked(count) * MULTICALL_ENTRY.size, MULTICALL_ENTRY.size):
        entry = domain.pages.read_record(at, MULTICALL_ENTRY)
        nested = entry.op == Hypercall.MULTICALL  # a list within a list could go on for ever
        result = -errno.EINVAL if nested else call(domain, entry.op, tuple(entry[2:]))
        domain.pages.write(at + 8, struct.pack("<q", result))
    return 0


def _checked(count: int) -> int:
    """A count of list entries that may be served. Raises HypercallError(EINVAL)."""
    if not 0 <= count <= MAX_BATCH:
        raise HypercallError(errno.EINVAL, f"a list of {count} entries")
    return count


def _each(
    domain: Domain, address: int, count: int, layout: Layout[Record], carry_out: Callable[[Record], None], done: int
) -> int:
    """A list, copied once and carried out until an entry is refused. `done` gets how many were, where it is given."""
    records = domain.pages.read(address, _checked(count) * layout.size)
    completed = 0
    try:
        for at in range(0, len(records), layout.size):
            carry_out(layout.unpack(records, at))
            completed += 1
    finally:
        if done:
            domain.pages.write(done, struct.pack("<I", completed))
    return 0


def _own(target: int) -> None:
    """An unprivileged domain may change its own page tables only."""
    if target & 0xFFFF_FFFF not in (0, abi.Domid.SELF):
        raise HypercallError(errno.EPERM, f"page tables of domain {target:#x} are not this domain's")
