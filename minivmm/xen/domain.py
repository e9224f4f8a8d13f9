"""What the hypervisor knows of one domain."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from minivmm.boot.xen_image import XenImage
from minivmm.deprivileged.cpu import DeprivilegedCpu
from minivmm.memory import PAGE_SIZE, GuestMemory
from minivmm.tail import Tail
from minivmm.tally import Tally
from minivmm.xen import abi
from minivmm.xen.builder import StartOfDay
from minivmm.xen.guest_pointer import GuestPointers
from minivmm.xen.page_tables import PageTables

CONSOLE_LIMIT = 1 << 20  # bytes of console output kept


class TrapHandler(NamedTuple):
    """Where an exception of the domain goes."""

    address: int
    masks_events: bool


class Domain:
    """A domain and its bookkeeping. `pages` reaches its memory by virtual address, `tables` its page tables."""

    def __init__(
        self,
        domid: int,
        kernel: XenImage,
        start: StartOfDay,
        memory: GuestMemory,
        mfns: list[int],
        shared_info_mfn: int,
        tables: PageTables,
    ) -> None:
        self.domid = domid
        self.kernel = kernel
        self.start = start
        self.mfns = mfns
        self.tables = tables
        self._memory = memory
        self._vcpu_info = shared_info_mfn * PAGE_SIZE + abi.SharedInfo.VCPU_INFO
        self.pages = GuestPointers(memory)
        self.pages.root = start.registers.cr3
        self.console = Tail(CONSOLE_LIMIT)
        self.hypercalls: Counter[str] = Counter()
        """Calls made, by name."""
        self.unknown_hypercalls = Tally()
        """Calls that are not there, as "unknown N"."""
        self.refused = Tally()
        """Why calls failed."""
        self.traps_taken: Counter[int] = Counter()
        """Exceptions bounced, by vector."""
        self.traps: dict[int, TrapHandler] = {}
        """Handlers by vector (set_trap_table)."""
        self.kernel_stack = 0
        self.in_kernel = True
        """Whether its kernel or its user code is on the CPU: both run at ring 3."""

    @property
    def events_masked(self) -> bool:
        """evtchn_upcall_mask of its vCPU: what IF is on a bare machine, inverted."""
        return bool(self._memory.read(self._vcpu_info + abi.VcpuInfo.EVTCHN_UPCALL_MASK, 1)[0])

    @events_masked.setter
    def events_masked(self, masked: bool) -> None:
        self._memory.write(self._vcpu_info + abi.VcpuInfo.EVTCHN_UPCALL_MASK, bytes((masked,)))

    @property
    def fault_address(self) -> int:
        """vcpu_info.arch.cr2: the domain cannot read CR2 itself."""
        return self._memory.read_u64(self._vcpu_info + abi.VcpuInfo.ARCH)

    @fault_address.setter
    def fault_address(self, address: int) -> None:
        self._memory.write_u64(self._vcpu_info + abi.VcpuInfo.ARCH, address)

    def enter_kernel(self, cpu: DeprivilegedCpu) -> None:
        """From here on the domain's kernel runs, on its own page tables."""
        self.in_kernel = True
        cpu.root = self.pages.root = self.tables.kernel_roots[self.domid, 0] * PAGE_SIZE

    def enter_user(self, cpu: DeprivilegedCpu) -> bool:
        """From here on its user code runs. False when the kernel has given it no page tables."""
        root = self.tables.user_roots.get((self.domid, 0))
        if root is None:
            return False
        self.in_kernel = False
        cpu.root = self.pages.root = root * PAGE_SIZE
        return True
