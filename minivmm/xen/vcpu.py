"""One vCPU of a domain: what Xen keeps in struct vcpu, and the CPU of the machine that it has for itself."""

from __future__ import annotations

import threading
from collections import deque
from errno import EINVAL
from typing import TYPE_CHECKING, NamedTuple

from minivmm.deprivileged.cpu import DeprivilegedCpu
from minivmm.kvm.abi import kvm_regs
from minivmm.memory import PAGE_SIZE
from minivmm.x86.registers import Cr0, Cr4, Xcr0
from minivmm.xen import abi
from minivmm.xen.errors import HypercallError
from minivmm.xen.guest_pointer import GuestPointers, canonical
from minivmm.xen.hypercall_abi import VmAssistType
from minivmm.xen.mailbox import MAILBOX_SLOT, Mailbox

if TYPE_CHECKING:
    from minivmm.xen.clock import Moment
    from minivmm.xen.core import Core
    from minivmm.xen.cpuid import CpuidPolicy
    from minivmm.xen.domain import Domain
    from minivmm.xen.pit import Ports

RECENT_HYPERCALLS = 16  # kept for a crash dump

CR0_AT_START = Cr0.PG | Cr0.AM | Cr0.WP | Cr0.NE | Cr0.ET | Cr0.MP | Cr0.PE
CR4_AT_START = Cr4.PAE | Cr4.OSFXSR | Cr4.OSXMMEXCPT
DR6_AT_START, DR7_AT_START = 0xFFFF_0FF0, 0x400  # SDM 3B 17.2

TIME_UPDATE_NS = 100_000_000


class TrapHandler(NamedTuple):
    """Where an exception of the domain goes."""

    address: int
    masks_events: bool
    dpl: int  # the ring that `int` may be used from; a guest's kernel counts as ring 1


class Callback(NamedTuple):
    """An entry point the kernel registered (callback.h)."""

    address: int
    masks_events: bool


class VirtualCpu:
    """A vCPU. Its own thread runs it; everything here changes under the hypervisor's lock."""

    def __init__(self, domain: Domain, index: int, cpu: DeprivilegedCpu, core: Core) -> None:
        self.domain = domain
        self.index = index
        self.cpu = cpu
        self.core = core
        self.pages = GuestPointers(core.memory)
        """The domain's memory by virtual address, as this vCPU sees it now."""
        self.wakeup = threading.Condition(core.lock)
        self.inside = False
        """Whether its thread is in the guest, or on its way there without the lock."""
        self.up = False
        self.initialised = False
        self.blocked = False
        self.polled: frozenset[int] = frozenset()
        """Ports it sleeps on (SCHEDOP_poll)."""
        self.in_kernel = True
        """Whether its kernel or its user code is on the CPU: both run at ring 3."""
        self.traps: dict[int, TrapHandler] = {}
        """Handlers by vector (set_trap_table)."""
        self.callbacks: dict[int, Callback] = {}
        """By CallbackType."""
        self.kernel_stack = 0
        self.iopl = 0
        self.nmi_pending = self.nmi_masked = False
        self.cr0, self.cr4, self.xcr0 = CR0_AT_START, CR4_AT_START, Xcr0.X87
        self.debug_registers = [0, 0, 0, 0, 0, 0, DR6_AT_START, DR7_AT_START]
        self.gs_base_user = 0
        """The base of GS in the mode that is not on the CPU now (MSR_KERNEL_GS_BASE)."""
        self.runstate_area = self.time_area = 0  # virtual addresses; 0: none
        self.runstate = abi.Runstate.OFFLINE
        self.runstate_since = core.clock.now()
        self.runstate_times = [0, 0, 0, 0]
        self._time_written = 0
        self._moment: Moment | None = None
        self.recent: deque[tuple[int, tuple[int, ...], int]] = deque(maxlen=RECENT_HYPERCALLS)
        """Number, arguments and result of the last hypercalls."""
        self.mailbox: Mailbox | None = None
        """Where its kernel may post hypercalls."""
        self.mailbox_entry = 0
        """What maps it, in slot MAILBOX_SLOT of the tables the kernel runs on."""
        self.place_info(domain.shared_info + abi.SharedInfo.VCPU_INFO + index * abi.VcpuInfo.SIZE)

    # -- what it shares with its guest

    def place_info(self, address: int) -> None:
        """Its vcpu_info is at machine address `address` from now on."""
        self.info_address = address
        self.info = self.core.memory.view(address, abi.VcpuInfo.SIZE)

    @property
    def events_masked(self) -> bool:
        """evtchn_upcall_mask: what IF is on a bare machine, inverted."""
        return bool(self.info[abi.VcpuInfo.EVTCHN_UPCALL_MASK])

    @events_masked.setter
    def events_masked(self, masked: bool) -> None:
        self.info[abi.VcpuInfo.EVTCHN_UPCALL_MASK] = masked

    @property
    def event_pending(self) -> bool:
        """evtchn_upcall_pending."""
        return bool(self.info[abi.VcpuInfo.EVTCHN_UPCALL_PENDING])

    @property
    def fault_address(self) -> int:
        """vcpu_info.arch.cr2: the domain cannot read CR2 itself."""
        return self.core.memory.read_u64(self.info_address + abi.VcpuInfo.ARCH)

    @fault_address.setter
    def fault_address(self, address: int) -> None:
        self.core.memory.write_u64(self.info_address + abi.VcpuInfo.ARCH, address)

    def update_time(self, *, force: bool = False) -> None:
        """Compares TSC and system time anew, in vcpu_info and where the guest asked for a copy. Not while it runs."""
        now = self.core.clock.now()
        if not force and now - self._time_written < TIME_UPDATE_NS:
            return
        self._time_written = now
        self._moment = self.core.clock.compare(self.cpu.tsc, self._moment)
        self.core.clock.write_time(self.core.memory, self.info_address + abi.VcpuInfo.TIME, self._moment)
        if self.time_area:
            time_info = self.core.memory.read(self.info_address + abi.VcpuInfo.TIME, abi.VCPU_TIME_INFO.size)
            self._write_area(self.time_area, time_info)

    def set_runstate(self, state: int) -> None:
        """Counts the time in the state that ends, and tells the guest where it asked to be told."""
        if state == self.runstate:
            return
        now = self.core.clock.now()
        self.runstate_times[self.runstate] += now - self.runstate_since
        self.runstate, self.runstate_since = state, now
        self.write_runstate()

    def write_runstate(self) -> None:
        """Stores vcpu_runstate_info where the guest asked for it."""
        if self.runstate_area:
            self._write_area(self.runstate_area, self.runstate_info())

    def runstate_info(self) -> bytes:
        """struct vcpu_runstate_info."""
        return abi.VCPU_RUNSTATE_INFO.pack(
            abi.VcpuRunstateInfo(self.runstate, self.runstate_since, *self.runstate_times)
        )

    def _write_area(self, address: int, data: bytes) -> None:
        """At a virtual address of the kernel's, whichever mode is on the CPU. Nothing where it is not mapped."""
        pages = GuestPointers(self.core.memory)
        pages.root = self.core.tables.kernel_roots[self.domain.domid, self.index] * PAGE_SIZE
        try:
            pages.write(address, data)
        except HypercallError as refused:
            self.domain.refused.count(f"area: {refused.message}")

    # -- asleep and awake

    @property
    def runnable(self) -> bool:
        """Whether it may be on a CPU now."""
        return self.up and not self.blocked and not self.domain.paused and self.domain.end is None

    def wake(self) -> None:
        """There is something for it: an event, or its domain's end. It leaves sleep, or the guest."""
        self.blocked = False
        if self.mailbox is not None and self.domain.end is not None:
            self.mailbox.wanted.set()  # so that its thread sees the end
        if self.polled:
            self.polled = frozenset()
            self.domain.polling -= 1
            self.core.timers.cancel((self, "poll"))
        if self.inside:
            self.cpu.kick()
        else:
            self.wakeup.notify()

    def block(self) -> None:
        """SCHEDOP_block and `hlt`: lets events in and sleeps until one comes. One that waits already keeps it awake."""
        self.events_masked = False
        self.blocked = not self.event_pending

    # -- which of the domain's two modes is on the CPU

    def enter_kernel(self) -> None:
        """From here on the domain's kernel runs, on its own page tables. GS changes as by swapgs."""
        if not self.in_kernel:
            self.in_kernel = True
            if self.mailbox is not None:
                self.mailbox.forget_user()
            self.cpu.gs_base, self.gs_base_user = self.gs_base_user, self.cpu.gs_base
        self.load_root(self.core.tables.kernel_roots[self.domain.domid, self.index])

    def enter_user(self) -> bool:
        """From here on its user code runs. False when the kernel has given it no page tables."""
        root = self.core.tables.user_roots.get((self.domain.domid, self.index))
        if root is None:
            return False
        if self.in_kernel:
            self.in_kernel = False
            self.cpu.gs_base, self.gs_base_user = self.gs_base_user, self.cpu.gs_base
        self.load_root(root)
        return True

    def load_root(self, mfn: int) -> None:
        """The page tables in use are those under `mfn`."""
        self.cpu.root = self.pages.root = mfn * PAGE_SIZE
        if self.mailbox_entry and self.in_kernel:
            self.core.memory.write_u64(mfn * PAGE_SIZE + 8 * MAILBOX_SLOT, self.mailbox_entry)

    def hide_mailbox(self, mfn: int) -> None:
        """User code will run on the tables under `mfn`: no mailbox for it, unless it shares them with the kernel."""
        if not self.mailbox_entry or mfn in self.core.tables.kernel_roots.values():
            return
        address = mfn * PAGE_SIZE + 8 * MAILBOX_SLOT
        entry = self.core.memory.read_u64(address)
        if entry:
            self.core.frames.store_entry(address, entry, 0)

    # -- registers the hypervisor keeps for it

    @property
    def regs(self) -> kvm_regs:
        """General-purpose registers, RIP and RFLAGS, of the mode that is on the CPU."""
        return self.cpu.regs

    @property
    def cr3(self) -> int:
        """The kernel's page tables, as a machine address."""
        return self.core.tables.kernel_roots[self.domain.domid, self.index] * PAGE_SIZE

    def load_cr3(self, value: int) -> None:
        """`mov cr3`: MMUEXT_NEW_BASEPTR. Raises HypercallError."""
        self.core.tables.new_baseptr(self.domain.domid, value // PAGE_SIZE, self.index)
        if self.in_kernel:
            self.load_root(value // PAGE_SIZE)

    @property
    def fs_base(self) -> int:
        """The base of FS."""
        return self.cpu.fs_base

    @fs_base.setter
    def fs_base(self, value: int) -> None:
        self.cpu.fs_base = canonical(value)

    @property
    def gs_base(self) -> int:
        """The base of GS in the mode on the CPU."""
        return self.cpu.gs_base

    @gs_base.setter
    def gs_base(self, value: int) -> None:
        self.cpu.gs_base = canonical(value)

    @property
    def kernel_ring(self) -> int:
        """The ring its kernel counts as where an I/O privilege level decides (VMASST_TYPE_architectural_iopl)."""
        return 0 if VmAssistType.ARCHITECTURAL_IOPL in self.domain.vm_assist else 1

    def set_task_switched(self, value: bool) -> None:
        """CR0.TS: the next x87 or SSE instruction is #NM."""
        self.cr0 = self.cr0 | Cr0.TS if value else self.cr0 & ~Cr0.TS
        self.cpu.task_switched = value

    def set_debug_register(self, number: int, value: int) -> None:
        """set_debugreg and `mov dr`. Raises HypercallError(EINVAL) for what a domain may not watch, or is reserved."""
        if number in (4, 5):  # DR6 and DR7 while CR4.DE is clear
            number += 2
        if number < 4:
            if value >= 1 << 47:
                raise HypercallError(EINVAL, f"a breakpoint at {value:#x} is not in the domain's lower half")
        elif number == 6:
            value = value & 0xE00F | 0xFFFF_0FF0
        elif number == 7:
            value &= 0xFFFF_FFFF
            if value & 1 << 13:  # general detect: debug registers are the hypervisor's
                raise HypercallError(EINVAL, "DR7.GD cannot be set by a domain")
            value = value & ~0xD800 | 0x400
        else:
            raise HypercallError(EINVAL, f"there is no debug register {number}")
        self.debug_registers[number] = value
        self.cpu.set_debug_registers([*self.debug_registers[:4], *self.debug_registers[6:]])

    @property
    def ports(self) -> Ports:
        """The I/O ports that a domain sees."""
        return self.domain.ports

    @property
    def cpuid(self) -> CpuidPolicy:
        """What it is told of the processor."""
        return self.core.cpuid

    def clock_ns(self) -> int:
        """System time."""
        return self.core.clock.now()
