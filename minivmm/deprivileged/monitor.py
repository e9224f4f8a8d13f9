"""What ring 0 of the machine consists of: descriptor tables, stub and gate, mapped at one place in every address space.

                        base of the monitor's PML4 slot
    + 0                 IDT, stub                                    supervisor, read-only
    + GATE_OFFSET       the page LSTAR points to                     ring 3 may execute it, nobody writes it
    + CPU_OFFSET * n    vCPU n: GDT, LDT, TSS, stack, list of stores supervisor
    + DIRECT_OFFSET     all machine memory, in 2 MiB pages           supervisor: for the stub to store entries

Ring 3 can reach none of it but the gate. The machine pages below are the caller's to keep from its guests.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import NamedTuple

from minivmm.deprivileged import stub
from minivmm.deprivileged.events import Vector
from minivmm.errors import ConfigError
from minivmm.kvm.abi import kvm_segment
from minivmm.layout import Layout
from minivmm.memory import HOLE_END, PAGE_SIZE, GuestMemory
from minivmm.x86 import descriptors
from minivmm.x86.paging import LARGE_PAGE, Pte

GIB = 1 << 30
DEFAULT_SLOT = 261  # 0xffff828000000000: Xen's own (xen/include/asm-x86/config.h), so that no guest of Xen's uses it

GATE_OFFSET = 0x10_0000
CPU_OFFSET = 0x20_0000  # times n + 1
DIRECT_OFFSET = 256 * GIB
MAX_CPUS = 64

GDT_PAGES = LDT_PAGES = 16  # 64 KiB, the largest
GDT_SIZE = 14 * PAGE_SIZE  # of which a policy has these
LDT_SIZE = LDT_PAGES * PAGE_SIZE
TSS_PAGES = 3
CPU_PAGES = GDT_PAGES + TSS_PAGES + LDT_PAGES + 2  # and the trap stack, and the list of stores
SHARED_PAGES = 7  # PML4, PDPT, page directory, page table, IDT, stub, gate

STORES_OFFSET = stub.VECTORS * stub.ENTRY_SIZE  # of the stub page


class Selector:
    """Ring 3's: Linux's in page 0 of the GDT, Xen's in page 14, which Xen reserves. Ring 0's after those."""

    USER32, USER_DATA, USER64 = 0x23, 0x2B, 0x33
    XEN_USER32, XEN_USER_DATA, XEN_USER64 = 0xE023, 0xE02B, 0xE033
    MONITOR_CODE, MONITOR_DATA, TSS, LDT = 0xE040, 0xE048, 0xE050, 0xE060


SEGMENTS: dict[int, kvm_segment] = {
    **{selector: descriptors.code32(selector, 3) for selector in (Selector.USER32, Selector.XEN_USER32)},
    **{selector: descriptors.data(selector, 3) for selector in (Selector.USER_DATA, Selector.XEN_USER_DATA)},
    **{selector: descriptors.code64(selector, 3) for selector in (Selector.USER64, Selector.XEN_USER64)},
    Selector.MONITOR_CODE: descriptors.code64(Selector.MONITOR_CODE),
    Selector.MONITOR_DATA: descriptors.data(Selector.MONITOR_DATA),
}
"""Every flat segment of a GDT that no policy has loaded."""


class Gate(NamedTuple):
    """A 64-bit IDT gate (SDM 3A figure 6-8)."""

    offset_low: int
    selector: int
    ist: int
    type_attributes: int
    offset_middle: int
    offset_high: int


GATE = Layout("<HHBBHIxxxx", Gate)
INTERRUPT_GATE = 0x8E  # present, DPL 0: `int n` at ring 3 is refused, and known by how
INTERRUPT_GATE_RING3 = 0xEE


class Tss(NamedTuple):
    """The 64-bit task-state segment (SDM 3A figure 7-11)."""

    rsp0: int
    ist1: int
    io_map_base: int


TSS = Layout("<4xQ16x8xQ48x8x2xH", Tss)
PORTS = 0x1_0000
IO_BITMAP_SIZE = PORTS // 8  # a bit a port, zero: open
TSS_LIMIT = TSS.size + IO_BITMAP_SIZE  # and the byte of ones that ends the bitmap


@cache
def tss_type() -> int:
    """The type of the TSS in TR. VMX wants it busy (SDM 3C 27.3.1.2). SVM takes it either way, and saves it not busy
    (KVM mends what it reports); QEMU's emulation opens the I/O bitmap of one that is not busy only."""
    return descriptors.TSS_AVAILABLE if Path("/sys/module/kvm_amd").exists() else descriptors.TSS_BUSY


@cache
def software_back_end() -> bool:
    """Whether ring 3 runs on the processor as it is, without VMX or SVM between them: then CR0.TS, debug registers and
    XCR0 of a vCPU mean nothing to it (docs/deprivileged.md)."""
    return Path("/sys/module/kvm_pvm").exists()


# May come at ring 0 too: they get a stack of their own.
ON_IST1 = frozenset({Vector.DB, Vector.NMI, Vector.DF, Vector.MC})


class CpuArea(NamedTuple):
    """What one vCPU needs, linear (`*_va`) and machine addresses."""

    gdt_va: int
    gdt: int
    ldt_va: int
    ldt: int
    tss_va: int
    stack_va: int
    stack: int
    stores_va: int
    stores: int


STACK_TOP = PAGE_SIZE  # in the trap stack's page: RSP0
IST1_TOP = PAGE_SIZE // 2


class Monitor:
    """Lays the monitor out in machine pages from `base` on, `pages(memory, cpus)` of them.

    `open_ports` are what ring 3 may use, all of them when it is None; with `call_port` stub.CALL_PORT makes a system
    call. Raises ConfigError when `base`, `cpus`, `slot` or a port cannot be.
    """

    def __init__(
        self,
        memory: GuestMemory,
        base: int,
        *,
        cpus: int = 1,
        slot: int = DEFAULT_SLOT,
        open_ports: Collection[int] | None = None,
        call_port: bool = False,
    ) -> None:
        if base % PAGE_SIZE or not 1 <= cpus <= MAX_CPUS or not 256 < slot < 512:
            raise ConfigError(f"no monitor at {base:#x} for {cpus} vCPUs in slot {slot}")
        if open_ports is not None and not all(0 <= port < PORTS for port in open_ports):
            raise ConfigError("a port to open is out of range: there are 65536")
        self.open_ports = open_ports if open_ports is None else frozenset(open_ports)
        self.call_port = stub.CALL_PORT if call_port else -1
        """The port that makes a system call at ring 3; -1: none."""
        self.memory = memory
        self.base = base
        self.size = self.pages(memory, cpus) * PAGE_SIZE
        self.slot = slot
        self.linear = -1 << 48 & (1 << 64) - 1 | slot << 39
        self._next = base
        memory.write(base, bytes(self.size))  # GuestMemoryError, should it not fit
        self.root = self._page()
        """A PML4 with nothing but the monitor."""
        self._pdpt, self._directory, self._table = self._page(), self._page(), self._page()
        self._entry = self._pdpt | Pte.PRESENT | Pte.WRITABLE | Pte.USER | Pte.ACCESSED
        self.install(self.root)
        link = Pte.PRESENT | Pte.WRITABLE | Pte.USER | Pte.ACCESSED
        memory.write_u64(self._pdpt, self._directory | link)
        self._tables = {0: self._table}
        memory.write_u64(self._directory, self._table | link)
        self.idt_va = self._map(0, self._idt())
        self.stub_va = self._map(PAGE_SIZE, self._stub())
        self.stores_va = self.stub_va + STORES_OFFSET
        self.stores_and_enter_va = self.stores_va + len(stub.assemble(stub.STORES))
        self.gate_va = self._map(GATE_OFFSET, self._filled(stub.assemble(stub.SYSCALL_GATE)), Pte.USER)
        self.cpus = [self._cpu(index) for index in range(cpus)]
        self._direct()

    @staticmethod
    def pages(memory: GuestMemory, cpus: int = 1) -> int:
        """How many machine pages it takes."""
        return SHARED_PAGES + cpus * (CPU_PAGES + 1) + len(_gibibytes(memory))

    def install(self, root: int) -> None:
        """Puts the monitor into the address space whose PML4 is at machine address `root`: before it is run."""
        self.memory.write_u64(root + 8 * self.slot, self._entry)

    def direct(self, address: int) -> int:
        """Where ring 0 finds machine address `address`."""
        return self.linear + DIRECT_OFFSET + address

    def _page(self) -> int:
        page, self._next = self._next, self._next + PAGE_SIZE
        return page

    def _filled(self, code: bytes) -> int:
        page = self._page()
        self.memory.write(page, code.ljust(PAGE_SIZE, stub.HLT))
        return page

    def _map(self, offset: int, page: int, bits: int = 0) -> int:
        """Maps a machine page at `offset` of the slot, below 1 GiB. Returns where that is."""
        index = offset >> 21
        if index not in self._tables:
            self._tables[index] = self._page()
            link = Pte.PRESENT | Pte.WRITABLE | Pte.USER | Pte.ACCESSED
            self.memory.write_u64(self._directory + 8 * index, self._tables[index] | link)
        entry = page | Pte.PRESENT | Pte.ACCESSED | Pte.DIRTY | bits
        self.memory.write_u64(self._tables[index] + 8 * (offset >> 12 & 0x1FF), entry)
        return self.linear + offset

    def _stub(self) -> int:
        entries = b"".join(
            stub.assemble(stub.trap_entry(vector)).ljust(stub.ENTRY_SIZE, stub.HLT) for vector in range(stub.VECTORS)
        )
        return self._filled(entries + stub.assemble(stub.STORES) + stub.assemble(stub.STORES_AND_ENTER))

    def _idt(self) -> int:
        page = self._page()
        for vector in range(stub.VECTORS):
            to = self.linear + PAGE_SIZE + vector * stub.ENTRY_SIZE
            kind = INTERRUPT_GATE_RING3 if vector == Vector.BP else INTERRUPT_GATE
            gate = Gate(to & 0xFFFF, Selector.MONITOR_CODE, int(vector in ON_IST1), kind, to >> 16 & 0xFFFF, to >> 32)
            GATE.pack_into(self.memory.view(page, PAGE_SIZE), vector * GATE.size, gate)
        return page

    def _cpu(self, index: int) -> CpuArea:
        pages = [self._page() for _ in range(CPU_PAGES)]
        places = [
            self._map(CPU_OFFSET * (index + 1) + PAGE_SIZE * number, page, Pte.WRITABLE)
            for number, page in enumerate(pages)
        ]
        gdt, tss, ldt, stack, stores = 0, GDT_PAGES, GDT_PAGES + TSS_PAGES, CPU_PAGES - 2, CPU_PAGES - 1
        for selector, segment in SEGMENTS.items():
            self.memory.write_u64(pages[gdt] + (selector & ~7), descriptors.gdt_entry(segment))
        tss_va = places[tss]
        low = descriptors.gdt_entry(descriptors.tss(Selector.TSS, tss_va & 0xFFFF_FFFF, TSS_LIMIT))
        self.memory.write(pages[gdt] + Selector.TSS, struct.pack("<QQ", low, tss_va >> 32))
        record = Tss(rsp0=places[stack] + STACK_TOP, ist1=places[stack] + IST1_TOP, io_map_base=TSS.size)
        self.memory.write(pages[tss], TSS.pack(record) + self._io_bitmap() + b"\xff")
        return CpuArea(
            *(places[gdt], pages[gdt], places[ldt], pages[ldt], tss_va),
            *(places[stack], pages[stack], places[stores], pages[stores]),
        )

    def _io_bitmap(self) -> bytes:
        if self.open_ports is None:
            return bytes(IO_BITMAP_SIZE)
        bitmap = bytearray(b"\xff" * IO_BITMAP_SIZE)
        ours = {stub.SYSCALL_PORT, self.call_port} - {-1}
        for port in self.open_ports | ours:
            bitmap[port >> 3] &= ~(1 << (port & 7))
        return bytes(bitmap)

    def _direct(self) -> None:
        leaf = Pte.PRESENT | Pte.WRITABLE | Pte.ACCESSED | Pte.DIRTY | Pte.LARGE
        for gibibyte in _gibibytes(self.memory):
            directory = self._page()
            first = gibibyte * GIB
            entries = (first + index * LARGE_PAGE | leaf for index in range(512))
            self.memory.write(directory, struct.pack("<512Q", *entries))
            link = directory | Pte.PRESENT | Pte.WRITABLE | Pte.ACCESSED
            self.memory.write_u64(self._pdpt + 8 * ((DIRECT_OFFSET >> 30) + gibibyte), link)


def _gibibytes(memory: GuestMemory) -> list[int]:
    """The GiB of machine address space that hold memory."""
    high = HOLE_END // GIB
    return [*range(-(-memory.low_size // GIB)), *range(high, high + -(-memory.high_size // GIB))]
