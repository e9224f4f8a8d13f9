"""What ring 3 of one vCPU has between two runs: registers, segments, bases, floating point, debug registers.

General-purpose registers, segments and control registers are views of the page shared with the kernel, which takes them
in at every entry. The rest costs a call each.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from minivmm.deprivileged.monitor import SEGMENTS, TSS_LIMIT, Monitor, Selector, software_back_end
from minivmm.deprivileged.segments import Segments
from minivmm.errors import KvmError
from minivmm.kvm import abi
from minivmm.kvm.abi import Run
from minivmm.kvm.vcpu import Vcpu
from minivmm.memory import PAGE_SIZE
from minivmm.x86 import descriptors
from minivmm.x86.registers import RFLAGS_IF, RFLAGS_RESERVED, Cr0, Cr4, Efer

MSR_TSC = 0x10
MSR_STAR, MSR_LSTAR, MSR_SFMASK = 0xC0000081, 0xC0000082, 0xC0000084

RFLAGS_RING3 = 0x24_4DD5  # what ring 3 may have as it likes: CF PF AF ZF SF TF DF OF NT AC ID
_SYSCALL_CLEARS = 0x4_7700  # TF, IF, DF, IOPL, NT, AC: as Linux has it

DR6_RESET, DR7_RESET = 0xFFFF_0FF0, 0x400  # SDM 3A table 10-1
DR6_SETTABLE, DR7_SETTABLE = 0xE00F, 0xFFFF_03FF  # not GD, which is for whoever writes them, and nothing reserved

# Words of an XSAVE area (SDM 1 13.4.2): which states are not their initial ones. Linux takes MXCSR in only with SSE.
XSTATE_BV, X87_AND_SSE = 512 // 4, 3

REGS = slice(Run.SYNC_REGS, Run.SYNC_SREGS)  # of kvm_run
SREGS = slice(Run.SYNC_SREGS, Run.SYNC_SREGS + ctypes.sizeof(abi.kvm_sregs))
_FS_BASE, _GS_BASE = ((Run.SYNC_SREGS + getattr(abi.kvm_sregs, name).offset) // 8 for name in ("fs", "gs"))


class Ring3State:
    """Ring 3 of `vcpu`, whose CPUID must have been set. `index` is its number in the monitor.

    regs  general-purpose registers, RIP and RFLAGS     cs, ss  selectors, of what `segments` has
    root  machine address of the PML4, where the monitor is installed
    """

    def __init__(self, vcpu: Vcpu, monitor: Monitor, index: int = 0) -> None:
        self.vcpu = vcpu
        self.monitor = monitor
        self._area = monitor.cpus[index]
        self._stack = monitor.memory.view(self._area.stack, PAGE_SIZE).cast("Q")
        self.segments = Segments(monitor.memory, self._area)
        self._set_up()
        self.regs = abi.kvm_regs.from_buffer(vcpu.run_bytes, Run.SYNC_REGS)
        self._sregs = abi.kvm_sregs.from_buffer(vcpu.run_bytes, Run.SYNC_SREGS)
        self._first_sregs = bytes(self._sregs)
        self._first_xsave = vcpu.get_xsave()
        self._first_xsave.region[XSTATE_BV] |= X87_AND_SSE
        self.xcr0 = self._first_xcr0 = vcpu.get_xcr0()
        """XCR0: the extended states that count, once CR4.OSXSAVE is set (`set_xcr0`)."""
        self._begin()

    def _set_up(self) -> None:
        vcpu, monitor, area = self.vcpu, self.monitor, self._area
        sregs = vcpu.get_sregs()
        for name in ("ds", "es", "fs", "gs"):
            setattr(sregs, name, descriptors.data(Selector.USER_DATA, 3))
        sregs.cs, sregs.ss = SEGMENTS[Selector.USER64], SEGMENTS[Selector.USER_DATA]
        sregs.tr = descriptors.tss(Selector.TSS, area.tss_va, TSS_LIMIT)
        sregs.ldt = abi.kvm_segment(unusable=1)
        sregs.gdt = abi.kvm_dtable(area.gdt_va, 0xFFFF)
        sregs.idt = abi.kvm_dtable(monitor.idt_va, 0xFFF)
        sregs.cr0 = Cr0.PG | Cr0.AM | Cr0.WP | Cr0.NE | Cr0.ET | Cr0.MP | Cr0.PE
        sregs.cr4 = Cr4.OSXMMEXCPT | Cr4.OSFXSR | Cr4.PAE  # not PGE: a CR3 reload must leave nothing in the TLB
        sregs.cr3 = monitor.root
        sregs.efer = Efer.NXE | Efer.LMA | Efer.LME | Efer.SCE
        vcpu.set_sregs(sregs)
        vcpu.set_msr(MSR_STAR, Selector.MONITOR_CODE << 32)
        vcpu.set_msr(MSR_LSTAR, monitor.gate_va)
        vcpu.set_msr(MSR_SFMASK, _SYSCALL_CLEARS)
        vcpu.share_registers()
        vcpu.run_bytes[SREGS] = bytes(sregs)

    def _begin(self) -> None:
        """Registers and segments as they are at first."""
        run_bytes = self.vcpu.run_bytes
        run_bytes[REGS] = bytes(REGS.stop - REGS.start)
        run_bytes[SREGS] = self._first_sregs
        self.regs.rflags = RFLAGS_RESERVED | RFLAGS_IF
        self.root = self.monitor.root
        self.cs, self.ss = Selector.USER64, Selector.USER_DATA

    def reset(self) -> None:
        """As new, for another guest on this vCPU: nothing of the one before is left in a register or a table."""
        vcpu = self.vcpu
        vcpu.clear_events()
        vcpu.set_xsave(self._first_xsave)
        vcpu.set_xcr0(self._first_xcr0)
        self.xcr0 = self._first_xcr0
        self.set_debug_registers((0, 0, 0, 0, DR6_RESET, DR7_RESET))
        self.segments.load_gdt(b"")
        self.segments.load_ldt(b"")
        self._begin()

    # -- segments

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

    def _set_selector(self, name: str, selector: int) -> None:
        setattr(self._sregs, name, self.segments.data(selector) or self.segments.data(0))

    @property
    def ds_selector(self) -> int:
        """What is in DS. One set that names nothing DS may have becomes 0."""
        return int(self._sregs.ds.selector)

    @ds_selector.setter
    def ds_selector(self, selector: int) -> None:
        self._set_selector("ds", selector)

    @property
    def es_selector(self) -> int:
        """As `ds_selector`."""
        return int(self._sregs.es.selector)

    @es_selector.setter
    def es_selector(self, selector: int) -> None:
        self._set_selector("es", selector)

    @property
    def fs_selector(self) -> int:
        """As `ds_selector`. To set it leaves `fs_base` alone."""
        return int(self._sregs.fs.selector)

    @fs_selector.setter
    def fs_selector(self, selector: int) -> None:
        base = self.fs_base
        self._set_selector("fs", selector)
        self.fs_base = base

    @property
    def gs_selector(self) -> int:
        """As `ds_selector`. To set it leaves `gs_base` alone."""
        return int(self._sregs.gs.selector)

    @gs_selector.setter
    def gs_selector(self, selector: int) -> None:
        base = self.gs_base
        self._set_selector("gs", selector)
        self.gs_base = base

    def load_fs(self, selector: int) -> int | None:
        """FS as `mov fs` loads it, base and all. Returns the base; None, and nothing changed, where it may not be."""
        segment = self.segments.data(selector)
        if segment is None:
            return None
        self._sregs.fs = segment
        return int(segment.base)

    def load_gs(self, selector: int) -> int | None:
        """GS as `mov gs` loads it, base and all. Returns the base; None, and nothing changed, where it may not be."""
        segment = self.segments.data(selector)
        if segment is None:
            return None
        self._sregs.gs = segment
        return int(segment.base)

    def load_gdt(self, table: bytes) -> None:
        """Pages 0 to 13 of the GDT become `table`, checked by the policy, and zeros after it. An empty one brings back
        what was there at first: Linux's selectors. Raises ValueError for more than that, or half a descriptor."""
        self.segments.load_gdt(table)

    def load_ldt(self, table: bytes) -> None:
        """The LDT becomes `table`, of at most 16 pages; an empty one is none. Raises ValueError as `load_gdt` does."""
        self.segments.load_ldt(table)
        self._sregs.ldt = self.segments.ldt

    def store_descriptor(self, index: int, descriptor: int) -> None:
        """Entry `index` of the GDT becomes `descriptor`, checked by the policy. Raises ValueError from page 14 on."""
        self.segments.store_descriptor(index, descriptor)

    # -- control and debug registers, time

    @property
    def task_switched(self) -> bool:
        """CR0.TS: while it is set x87, SSE and AVX instructions are #NM. Not on a software back end, where ring 3 uses
        them whatever it is."""
        return bool(self._sregs.cr0 & Cr0.TS)

    @task_switched.setter
    def task_switched(self, value: bool) -> None:
        self._sregs.cr0 = self._sregs.cr0 & ~Cr0.TS | (Cr0.TS if value else 0)

    def set_xcr0(self, value: int) -> bool:
        """Gives ring 3 XSAVE (CR4.OSXSAVE) and the states in `value` (SDM 1 13.3). At first it has x87 and SSE without.

        False, and nothing changed, where the vCPU's CPUID has not got them. On a software back end ring 3 has what the
        host's programs have, whatever is set.
        """
        before = bytes(self._sregs)
        self._sregs.cr4 |= Cr4.OSXSAVE
        try:
            self.vcpu.set_sregs(self._sregs)
            self.vcpu.set_xcr0(value)
        except KvmError:
            self.vcpu.run_bytes[SREGS] = before
            self.vcpu.set_sregs(self._sregs)
            return False
        self.xcr0 = value
        return True

    def set_debug_registers(self, values: Sequence[int]) -> bool:
        """DR0 to DR3, DR6 and DR7, for breakpoints of ring 3, at addresses that the policy has checked are not the
        monitor's. False, and nothing done, on a software back end, where ring 3 never meets one; QEMU's emulation of
        SVM takes them, and its ring 3 meets none either."""
        if software_back_end():
            return False
        *addresses, status, control = values
        registers = abi.kvm_debugregs(dr6=status & DR6_SETTABLE | DR6_RESET, dr7=control & DR7_SETTABLE | DR7_RESET)
        registers.db[:] = addresses
        self.vcpu.set_debug_registers(registers)
        return True

    @property
    def debug_status(self) -> int:
        """DR6: which breakpoints were met."""
        return int(self.vcpu.get_debug_registers().dr6)

    def tsc(self) -> int:
        """The TSC as ring 3 would read it now. Not while it runs."""
        return self.vcpu.get_msr(MSR_TSC)

    def close(self) -> None:
        """Lets go of the shared page, before the vCPU is closed. Nobody may keep `regs`."""
        del self.regs, self._sregs
        self._stack.release()
