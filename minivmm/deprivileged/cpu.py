"""A vCPU that runs ring-3 code and comes back with an event.

    cpu.regs.rip, cpu.cs, cpu.root = entry, Selector.USER64, pml4
    while True:
        match cpu.run():
            case Trap(Vector.GP, rip=rip): cpu.regs.rip = emulate(rip)
            ...

Between two runs `regs` is ring 3's state, whichever way the vCPU left it: a mutable view of the page shared with the
kernel. Ring 3 is entered by setting segments and registers there, never by code of ours, so the stub has no way back.
"""

from __future__ import annotations

import errno
import signal
import struct
import threading
from fcntl import ioctl
from itertools import islice

from minivmm.deprivileged import stub, walk
from minivmm.deprivileged.decode import LONGEST_INSTRUCTION, int_n
from minivmm.deprivileged.events import (
    WITH_ERROR_CODE,
    Event,
    Interrupted,
    MmioAccess,
    PortAccess,
    SoftwareInterrupt,
    Stopped,
    SystemCall,
    Trap,
    Vector,
)
from minivmm.deprivileged.monitor import IST1_TOP, ON_IST1, SEGMENTS, STACK_TOP, TSS_LIMIT, Monitor, Selector, tss_type
from minivmm.deprivileged.stopped import why_stopped
from minivmm.kvm import abi
from minivmm.kvm.abi import Exit, Run
from minivmm.kvm.ioctl import explain
from minivmm.kvm.kick import KICK, accept_kicks
from minivmm.kvm.vcpu import Vcpu
from minivmm.memory import PAGE_SIZE
from minivmm.x86 import descriptors
from minivmm.x86.paging import Pte
from minivmm.x86.registers import RFLAGS_IF, RFLAGS_RESERVED, Cr0, Cr4, Efer

MSR_STAR, MSR_LSTAR, MSR_SFMASK = 0xC0000081, 0xC0000082, 0xC0000084

RFLAGS_RING3 = 0x24_4DD5  # what ring 3 may have as it likes: CF PF AF ZF SF TF DF OF NT AC ID
_SYSCALL_CLEARS = 0x4_7700  # TF, IF, DF, IOPL, NT, AC: as Linux has it

_SYNC_ALL = abi.KVM_SYNC_X86_REGS | abi.KVM_SYNC_X86_SREGS
# Words of the kvm_run page.
_REASON = Run.EXIT_REASON // 4
_DIRTY = Run.DIRTY_REGS // 8
_RIP, _RSP, _RFLAGS, _RCX, _R11 = (
    (Run.SYNC_REGS + getattr(abi.kvm_regs, name).offset) // 8 for name in ("rip", "rsp", "rflags", "rcx", "r11")
)
_CR2, _CR3, _FS_BASE, _GS_BASE = (
    (Run.SYNC_SREGS + getattr(abi.kvm_sregs, name).offset) // 8 for name in ("cr2", "cr3", "fs", "gs")
)
# Bytes of it.
_CS, _SS = (Run.SYNC_SREGS + getattr(abi.kvm_sregs, name).offset for name in ("cs", "ss"))
_TR_TYPE = Run.SYNC_SREGS + abi.kvm_sregs.tr.offset + abi.kvm_segment.type.offset
_SELECTOR = abi.kvm_segment.selector.offset
_SEGMENT_SIZE = 24
_REGS = slice(Run.SYNC_REGS, Run.SYNC_SREGS)

_MONITOR_CODE, _MONITOR_DATA = (
    bytes(SEGMENTS[selector]) for selector in (Selector.MONITOR_CODE, Selector.MONITOR_DATA)
)
_KVM_RUN = abi.KVM_RUN
_IO = Run.IO // 8
_EXIT_IO, _EXIT_MMIO = int(Exit.IO), int(Exit.MMIO)
_IDT = 2  # in an error code: the rest of it is a vector, of a software interrupt

STORES_MAX = PAGE_SIZE // 16  # pairs of address and value in the list's page


class DeprivilegedCpu:
    """Runs ring-3 code on `vcpu`, whose CPUID must have been set. `index` is its number in the monitor.

    regs    general-purpose registers, RIP and RFLAGS        cs, ss  selectors, of those in `segments`
    root    machine address of the PML4, where the monitor is installed       fs_base, gs_base
    """

    def __init__(self, vcpu: Vcpu, monitor: Monitor, index: int = 0) -> None:
        self.vcpu = vcpu
        self.monitor = monitor
        self.root = monitor.root
        self.cs = Selector.USER64
        self.ss = Selector.USER_DATA
        self.segments = {selector: bytes(segment) for selector, segment in SEGMENTS.items() if segment.dpl == 3}
        """What may be in CS and SS: the monitor's flat descriptors, and what a policy adds to its GDT."""
        self._tss_type = tss_type()
        self._area = monitor.cpus[index]
        self._stack = monitor.memory.view(self._area.stack, PAGE_SIZE).cast("Q")
        self.stores = 0
        """How often the stub stored entries, a list of them each time."""
        self._stores: dict[int, None] = {}  # machine addresses of entries, in order
        self._thread = 0
        self._kicked = False
        self._answer_at: tuple[int, int] | None = None  # where in kvm_run a read waits for its data, and how much
        self._exit_waits = False  # an exit came while pending I/O was completed
        self._set_up()
        self.regs = abi.kvm_regs.from_buffer(vcpu.run_bytes, Run.SYNC_REGS)
        self.regs.rflags = RFLAGS_RESERVED | RFLAGS_IF

    def _set_up(self) -> None:
        vcpu, monitor, area = self.vcpu, self.monitor, self._area
        sregs = vcpu.get_sregs()
        for name in ("ds", "es", "fs", "gs"):
            setattr(sregs, name, descriptors.data(Selector.USER_DATA, 3))
        sregs.cs, sregs.ss = SEGMENTS[self.cs], SEGMENTS[self.ss]
        sregs.tr = descriptors.tss(Selector.TSS, area.tss_va, TSS_LIMIT)
        sregs.ldt = abi.kvm_segment(unusable=1)
        sregs.gdt = abi.kvm_dtable(area.gdt_va, 0xFFFF)
        sregs.idt = abi.kvm_dtable(monitor.idt_va, 0xFFF)
        sregs.cr0 = Cr0.PG | Cr0.AM | Cr0.WP | Cr0.NE | Cr0.ET | Cr0.MP | Cr0.PE
        sregs.cr4 = Cr4.OSXMMEXCPT | Cr4.OSFXSR | Cr4.PAE  # not PGE: a CR3 reload must leave nothing in the TLB
        sregs.cr3 = self.root
        sregs.efer = Efer.NXE | Efer.LMA | Efer.LME | Efer.SCE
        vcpu.set_sregs(sregs)
        vcpu.set_msr(MSR_STAR, Selector.MONITOR_CODE << 32)
        vcpu.set_msr(MSR_LSTAR, monitor.gate_va)
        vcpu.set_msr(MSR_SFMASK, _SYSCALL_CLEARS)
        vcpu.share_registers()
        vcpu.run_bytes[Run.SYNC_SREGS : Run.SYNC_SREGS + len(bytes(sregs))] = bytes(sregs)
        accept_kicks()

    @property
    def fs_base(self) -> int:
        """The base of FS, which must be canonical."""
        base: int = self.vcpu.run64[_FS_BASE]
        return base

    @fs_base.setter
    def fs_base(self, value: int) -> None:
        self.vcpu.run64[_FS_BASE] = value

    @property
    def gs_base(self) -> int:
        """The base of GS, which must be canonical."""
        base: int = self.vcpu.run64[_GS_BASE]
        return base

    @gs_base.setter
    def gs_base(self, value: int) -> None:
        self.vcpu.run64[_GS_BASE] = value

    def kick(self) -> None:
        """Has the run under way, or else the next one, return `Interrupted` soon. Thread-safe."""
        self._kicked = True
        self.vcpu.immediate_exit = True
        if self._thread:
            signal.pthread_kill(self._thread, KICK)

    def store_entry(self, address: int, old: int, new: int) -> None:
        """Changes the page-table entry, of any level, at machine `address` from `old` to `new`.

        Memory has it at once, this vCPU before its next instruction. A change of a present entry is stored once more by
        the stub, since a software back end misses the VMM's own stores (docs/deprivileged.md); one that was not present
        is cached nowhere.
        """
        self.monitor.memory.write_u64(address, new)
        if old & Pte.PRESENT and old != new:
            self._stores[address] = None

    def flush(self) -> None:
        """Has the next run begin with no translation cached: another vCPU stored entries it may have."""
        monitor = self.monitor
        self._stores[monitor.root + 8 * monitor.slot] = None  # what is there already, and the stub reloads CR3

    def apply_stores(self) -> None:
        """Makes the entries stored so far count now: needed only when another vCPU is to see them,
        which then needs a `flush` of its own. Raises ValueError while an access of this one is not completed."""
        if self._answer_at is not None or self._exit_waits:
            raise ValueError("an access to a port or a device waits: answer it and run first")
        self._store_down_to(0)

    def _store_down_to(self, left: int) -> None:
        """Has the stub store entries, a list at a time, until at most `left` wait."""
        while len(self._stores) > left:
            for address in self._list_stores():
                del self._stores[address]

    def _list_stores(self) -> list[int]:
        """Has the stub store what fits its list, and comes back to the registers as they were. Returns what it was."""
        vcpu, run_bytes = self.vcpu, self.vcpu.run_bytes
        saved = bytes(run_bytes[_REGS])
        batch = self._prepare_stores(self.monitor.stores_va)
        while (reason := vcpu.run()) is None:
            vcpu.immediate_exit = False  # a kick is remembered in `_kicked`
        if reason is not Exit.IO or vcpu.run64[_IO] >> 16 & 0xFFFF != stub.STORES_PORT:
            raise explain(_KVM_RUN, errno.EFAULT, f"vCPU {vcpu.id}, storing page-table entries, {reason.name}")
        run_bytes[_REGS] = saved
        return batch

    def _prepare_stores(self, entry: int) -> list[int]:
        """Fills the stub's list, and has the next KVM_RUN begin at `entry` of the stub. Returns what is in the list."""
        memory, direct, regs = self.monitor.memory, self.monitor.direct, self.regs
        self.stores += 1
        batch = list(islice(self._stores, STORES_MAX))
        # The entries as they are now, which an entry may have become since it was first stored.
        pairs = (number for address in batch for number in (direct(address), memory.read_u64(address)))
        memory.write(self._area.stores, struct.pack(f"<{2 * len(batch)}Q", *pairs))
        regs.rip, regs.rflags, regs.rsi, regs.rcx = entry, RFLAGS_RESERVED, self._area.stores_va, len(batch)
        self._load(_MONITOR_CODE, _MONITOR_DATA)
        return batch

    def _enter_storing(self) -> bytes:
        """Has the next KVM_RUN store the entries and enter ring 3 after that. Returns ring 3's registers."""
        self._store_down_to(STORES_MAX)
        regs = self.regs
        frame = (regs.rdi, regs.rsi, regs.rcx, regs.rax, regs.rip, self.cs, regs.rflags, regs.rsp, self.ss)
        top = STACK_TOP // 8
        for index, value in enumerate(frame, top - len(frame)):
            self._stack[index] = value
        saved = bytes(self.vcpu.run_bytes[_REGS])
        self._prepare_stores(self.monitor.stores_and_enter_va)
        regs.rsp = self._area.stack_va + STACK_TOP - 8 * len(frame)
        return saved

    def _load(self, code: bytes, stack: bytes) -> None:
        """Has the next KVM_RUN take in the registers, these segments and the root."""
        vcpu = self.vcpu
        vcpu.run_bytes[_CS : _CS + _SEGMENT_SIZE] = code
        vcpu.run_bytes[_SS : _SS + _SEGMENT_SIZE] = stack
        vcpu.run_bytes[_TR_TYPE] = self._tss_type
        vcpu.run64[_CR3] = self.root
        vcpu.run64[_DIRTY] = _SYNC_ALL

    def run(self) -> Event:
        """Runs ring 3 until something happens. Raises KvmError.

        The hot path of every guest in here: benchmark `ring3`.
        """
        self._thread = threading.get_ident()
        vcpu = self.vcpu
        run64 = vcpu.run64
        if self._answer_at is not None:
            self.answer(b"\xff" * self._answer_at[1])
        if self._exit_waits:
            self._exit_waits = False
            return self._event()
        if self._kicked:
            self._kicked = vcpu.immediate_exit = False
            return Interrupted()
        code, stack = self.segments.get(self.cs), self.segments.get(self.ss)
        if code is None or stack is None:  # as iret has it
            return Trap(Vector.GP, (self.ss if code else self.cs) & 0xFFFC, 0, run64[_RIP])
        rip = run64[_RIP]
        if (rip + (1 << 47)) & (1 << 64) - 1 >= 1 << 48:  # not canonical: the fault of the next fetch
            return Trap(Vector.GP, 0, 0, rip)
        run64[_RFLAGS] = run64[_RFLAGS] & RFLAGS_RING3 | RFLAGS_IF | RFLAGS_RESERVED
        # Always all registers, by which the kernel loses less than a microsecond, on a software back end too.
        saved = None
        if self._stores:
            saved = self._enter_storing()
        else:
            self._load(code, stack)
        while True:
            try:
                ioctl(vcpu.fd, _KVM_RUN)
            except OSError as error:
                if error.errno not in (errno.EINTR, errno.EAGAIN):
                    raise explain(_KVM_RUN, error.errno or 0, f"vCPU {vcpu.id}") from error
                vcpu.immediate_exit = False
                if saved is not None and self._on_the_way_in():
                    vcpu.run_bytes[_REGS] = saved  # nothing has happened: the next run stores them all again
                elif self._in_stub():
                    continue  # on its way to an `out`, an instruction or two off: the event comes first
                else:
                    self._stores.clear()
                    self._take_selectors()
                self._kicked = False
                return Interrupted()
            self._stores.clear()
            return self._event()

    def _on_the_way_in(self) -> bool:
        """Whether the vCPU is at STORES_AND_ENTER."""
        rip: int = self.vcpu.run64[_RIP]
        return self.monitor.stores_and_enter_va <= rip < self.monitor.stub_va + PAGE_SIZE

    def _in_stub(self) -> bool:
        """Whether the vCPU is at code of ours. Code of ours never loops, so this never lasts."""
        ring: int = self.vcpu.run_bytes[_CS + _SELECTOR] & 3
        rip: int = self.vcpu.run64[_RIP]
        return ring == 0 or rip & -PAGE_SIZE == self.monitor.gate_va

    def _take_selectors(self) -> None:
        """Ring 3 was left from itself: CS and SS are its own."""
        run_bytes = self.vcpu.run_bytes
        self.cs = int.from_bytes(run_bytes[_CS + _SELECTOR : _CS + _SELECTOR + 2], "little")
        self.ss = int.from_bytes(run_bytes[_SS + _SELECTOR : _SS + _SELECTOR + 2], "little")

    def _event(self) -> Event:
        """What the exit in kvm_run means."""
        vcpu = self.vcpu
        run64 = vcpu.run64
        reason = vcpu.run32[_REASON]
        if reason == _EXIT_IO:
            port = run64[_IO] >> 16 & 0xFFFF
            ring = vcpu.run_bytes[_CS + _SELECTOR] & 3
            if port == stub.SYSCALL_PORT and self._in_stub():
                # On SVM the gate's `out` would be completed by the next KVM_RUN: not any more when RIP has left it.
                rip = run64[_RIP] = run64[_RCX]
                run64[_RFLAGS] = run64[_R11]
                return SystemCall(rip)
            if ring == 0:
                return self._trap(port)
            return self._port_access()
        if reason == _EXIT_MMIO and not self._in_stub():
            return self._mmio_access()
        return Stopped(why_stopped(vcpu, reason, self.root))

    def _trap(self, vector: int) -> Event:
        """The exception, `int` or debug trap whose frame is on the trap stack. Registers become ring 3's."""
        run64, stack = self.vcpu.run64, self._stack
        top = (IST1_TOP if vector in ON_IST1 else STACK_TOP) // 8
        rip, cs, rflags, rsp, ss = stack[top - 5 : top]
        if cs & 3 == 0:
            return Stopped(f"exception {vector} at ring 0, RIP {rip:#x}")
        run64[_RIP], run64[_RFLAGS], run64[_RSP] = rip, rflags, rsp
        self.cs, self.ss = cs & 0xFFFF, ss & 0xFFFF
        error_code = stack[top - 6] & 0xFFFF_FFFF if vector in WITH_ERROR_CODE else 0
        if vector == Vector.PF:
            return Trap(vector, error_code, run64[_CR2], rip)
        # `int n`: on hardware #GP for its gate's DPL (SDM 3A 6.12.1.1), on a software back end #UD.
        refused = vector == Vector.GP and error_code & 7 == _IDT
        if vector == Vector.UD or refused:
            found = self._software_interrupt(rip)
            if found is None and refused:  # emulated SVM (QEMU 7.2) has RIP past `int 14`
                found = self._software_interrupt(rip - 2)
            if found is not None:
                return found
        return Trap(vector, error_code, 0, rip)

    def _software_interrupt(self, rip: int) -> Event | None:
        """The `int n` at `rip`, with RIP moved past it."""
        found = int_n(walk.read(self.monitor.memory, self.root, rip, LONGEST_INSTRUCTION))
        if found is None:
            return None
        end = self.vcpu.run64[_RIP] = rip + found.length
        # Its gate lets ring 3 through on hardware: what arrives there is a #BP like that of `int3`.
        return Trap(Vector.BP, 0, 0, end) if found.vector == Vector.BP else SoftwareInterrupt(found.vector, rip)

    def _port_access(self) -> PortAccess:
        run64 = self.vcpu.run64
        self._take_selectors()
        access, at = run64[_IO], run64[Run.IO_DATA_OFFSET // 8]
        is_write, size = access & 0xFF == abi.KVM_EXIT_IO_OUT, access >> 8 & 0xFF
        data = bytes(self.vcpu.run_bytes[at : at + size * (access >> 32)])
        self._pending(is_write, at, len(data))
        return PortAccess(access >> 16 & 0xFFFF, size, is_write, data)

    def _mmio_access(self) -> MmioAccess:
        vcpu = self.vcpu
        self._take_selectors()
        size, address = vcpu.run32[Run.MMIO_LEN // 4], vcpu.run64[Run.MMIO_PHYS_ADDR // 8]
        is_write = bool(vcpu.run_bytes[Run.MMIO_IS_WRITE])
        data = bytes(vcpu.run_bytes[Run.MMIO_DATA : Run.MMIO_DATA + size])
        self._pending(is_write, Run.MMIO_DATA, size)
        return MmioAccess(address, is_write, data)

    def _pending(self, is_write: bool, at: int, length: int) -> None:
        """A write's instruction is completed now, so that the registers are those after it; a read's by its answer."""
        if is_write:
            self._complete()
        else:
            self._answer_at = at, length

    def answer(self, data: bytes) -> None:
        """Gives the `in` or MMIO read that `run` returned its data, and completes it. Unanswered ones read all ones.

        Raises ValueError when there is none, or it is of another length.
        """
        if self._answer_at is None or len(data) != self._answer_at[1]:
            raise ValueError(f"no read of {len(data)} bytes waits for an answer")
        at, length = self._answer_at
        self._answer_at = None
        self.vcpu.run_bytes[at : at + length] = data
        self._complete()

    def _complete(self) -> None:
        """Completes pending I/O. A long one (`rep outs`) may come back with its next piece, which waits for `run`."""
        self.vcpu.immediate_exit = True
        self._exit_waits = self.vcpu.run() is not None
        self.vcpu.immediate_exit = False  # a kick meanwhile is remembered in `_kicked`

    def close(self) -> None:
        """Lets go of the shared page, before the vCPU is closed. Nobody may keep `regs`."""
        del self.regs
        self._stack.release()
