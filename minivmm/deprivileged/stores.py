"""Page tables that change under a vCPU: entries stored, and pages that become something else.

A software back end makes tables of its own of the guest's, and misses what the VMM writes into those. So the stub
stores once more, before ring 3's next instruction, what the VMM has written, as it is: a store by the guest's own ring
0 is seen by every KVM, at every level of the tables. A store to a byte at which no entry begins has KVM forget all it
made of the page. Then the stub reloads CR3, which is what hardware needs.
"""

from __future__ import annotations

import errno
import struct
from itertools import islice

from minivmm.deprivileged import stub
from minivmm.deprivileged.monitor import SEGMENTS, STACK_TOP, Monitor, Selector, tss_type
from minivmm.deprivileged.state import REGS, Ring3State
from minivmm.kvm import abi
from minivmm.kvm.abi import Exit, Run
from minivmm.kvm.ioctl import explain
from minivmm.kvm.vcpu import Vcpu
from minivmm.memory import PAGE_SIZE
from minivmm.x86.paging import Pte
from minivmm.x86.registers import RFLAGS_RESERVED

STORES_MAX = PAGE_SIZE // 8  # addresses in the list's page

_SYNC_ALL = abi.KVM_SYNC_X86_REGS | abi.KVM_SYNC_X86_SREGS
_IO = Run.IO // 8
_DIRTY = Run.DIRTY_REGS // 8
_CR3 = (Run.SYNC_SREGS + abi.kvm_sregs.cr3.offset) // 8
CS, SS = (Run.SYNC_SREGS + getattr(abi.kvm_sregs, name).offset for name in ("cs", "ss"))  # bytes of kvm_run
_TR_TYPE = Run.SYNC_SREGS + abi.kvm_sregs.tr.offset + abi.kvm_segment.type.offset
_CODE, _STACK = (slice(at, at + 24) for at in (CS, SS))

_MONITOR_CODE, _MONITOR_DATA = (
    bytes(SEGMENTS[selector]) for selector in (Selector.MONITOR_CODE, Selector.MONITOR_DATA)
)


class StoringCpu(Ring3State):
    """A vCPU, the stores that wait for its stub, and how it gets there. All but `flush` is its own thread's."""

    def __init__(self, vcpu: Vcpu, monitor: Monitor, index: int = 0) -> None:
        super().__init__(vcpu, monitor, index)
        self.stores = 0
        """How often the stub stored something, a list of addresses each time."""
        self._tss_type = tss_type()
        self._stores: dict[int, None] = {}  # machine addresses, in order
        self._flush_wanted = False
        self._kicked = False  # since the last run
        self._answer_at: tuple[int, int] | None = None  # where in kvm_run a read waits for its data, and how much
        self._exit_waits = False  # an exit came while pending I/O was completed

    def store_entry(self, address: int, old: int, new: int) -> None:
        """Changes the page-table entry, of any level, at machine `address` from `old` to `new`.

        Memory has it at once, this vCPU before its next instruction. One that was not present is cached nowhere.
        """
        self.monitor.memory.write_u64(address, new)
        if old & Pte.PRESENT and old != new:
            self._stores[address] = None

    def forget_page(self, address: int) -> None:
        """The frame at machine `address` becomes something else. From this vCPU's next instruction on no vCPU uses what
        KVM made of its contents as a page table, and this one no translation to it; `apply_stores` makes that now, and
        a `flush` of another vCPU tells that one. When a frame becomes a page table, the vCPU that makes it one calls
        this, whoever did before: nothing that was written meanwhile is missed then."""
        self._stores[address + 1] = None

    def flush(self) -> None:
        """Has the next run begin with no translation cached: another vCPU stored entries it may have. Thread-safe."""
        self._flush_wanted = True

    def apply_stores(self) -> None:
        """Makes the entries stored so far count now: needed only when another vCPU is to see them,
        which then needs a `flush` of its own. Raises ValueError while an access of this one is not completed."""
        if self._answer_at is not None or self._exit_waits:
            raise ValueError("an access to a port or a device waits: answer it and run first")
        self._store_down_to(0)

    def reset(self) -> None:
        """As new, for another guest on this vCPU: nothing of the one before is left in a register or a table, no access
        waits for its answer, and what was to be stored is."""
        self._answer_at, self._exit_waits = None, False
        self._settle_access()
        super().reset()
        self._store_down_to(0)
        self._begin()

    def _settle_access(self) -> None:
        """Completes an access that is pending in KVM, whatever comes of it."""
        vcpu = self.vcpu
        vcpu.immediate_exit = True
        for _ in range(PAGE_SIZE):  # a long one comes in pieces
            if vcpu.run() is None:
                break
        vcpu.immediate_exit = False

    def _store_down_to(self, left: int) -> None:
        """Has the stub store bytes, a list at a time, until at most `left` wait."""
        while len(self._stores) > left:
            for address in self._list_stores():
                del self._stores[address]

    def _list_stores(self) -> list[int]:
        """Has the stub store what fits its list, and comes back to the registers as they were. Returns what it was."""
        vcpu, run_bytes = self.vcpu, self.vcpu.run_bytes
        saved = bytes(run_bytes[REGS])
        batch = self._prepare_stores(self.monitor.stores_va)
        while (reason := vcpu.run()) is None:
            vcpu.immediate_exit = False
        if self._kicked:
            vcpu.immediate_exit = True  # for the run that this is part of
        if reason is not Exit.IO or vcpu.run64[_IO] >> 16 & 0xFFFF != stub.STORES_PORT:
            raise explain(abi.KVM_RUN, errno.EFAULT, f"vCPU {vcpu.id}, storing page-table entries, {reason.name}")
        run_bytes[REGS] = saved
        return batch

    def _prepare_stores(self, entry: int) -> list[int]:
        """Fills the stub's list, and has the next KVM_RUN begin at `entry` of the stub. Returns what is in the list."""
        memory, direct, regs = self.monitor.memory, self.monitor.direct, self.regs
        self._flush_wanted = False  # before the CR3 reload: one that comes after this is done once more
        batch = list(islice(self._stores, STORES_MAX))
        if batch:
            self.stores += 1
            memory.write(self._area.stores, struct.pack(f"<{len(batch)}Q", *map(direct, batch)))
        regs.rip = entry if batch else entry + stub.FLUSH_OFFSET
        regs.rflags, regs.rsi, regs.rcx = RFLAGS_RESERVED, self._area.stores_va, len(batch)
        self._load(_MONITOR_CODE, _MONITOR_DATA)
        return batch

    def _enter_storing(self) -> bytes:
        """Has the next KVM_RUN store the entries and enter ring 3 after that. Returns ring 3's registers."""
        self._store_down_to(STORES_MAX)
        regs = self.regs
        frame = (regs.rsi, regs.rcx, regs.rax, regs.rip, self.cs, regs.rflags, regs.rsp, self.ss)
        top = STACK_TOP // 8
        for index, value in enumerate(frame, top - len(frame)):
            self._stack[index] = value
        saved = bytes(self.vcpu.run_bytes[REGS])
        self._prepare_stores(self.monitor.stores_and_enter_va)
        regs.rsp = self._area.stack_va + STACK_TOP - 8 * len(frame)
        return saved

    def _load(self, code: bytes, stack: bytes) -> None:
        """Has the next KVM_RUN take in the registers, these segments and the root."""
        vcpu = self.vcpu
        run_bytes, run64 = vcpu.run_bytes, vcpu.run64
        run_bytes[_CODE] = code
        run_bytes[_STACK] = stack
        run_bytes[_TR_TYPE] = self._tss_type
        run64[_CR3] = self.root
        run64[_DIRTY] = _SYNC_ALL
