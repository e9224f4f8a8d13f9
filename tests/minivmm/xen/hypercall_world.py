"""A machine of two small domains without KVM: the real core, builder and hypercalls over processors that run nothing.

Each processor keeps the translations it may have cached. What a call changes must reach them as the hypervisor would
have it, or a later check finds a translation that allows too much.
"""

from __future__ import annotations

import contextlib
import tempfile
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from minivmm.boot.xen_image import XenElfNote, XenImage
from minivmm.deprivileged.cpu import DeprivilegedCpu
from minivmm.errors import ConfigError
from minivmm.kvm.abi import kvm_regs
from minivmm.memory import PAGE_SIZE, GuestMemory
from minivmm.xen import builder
from minivmm.xen.clock import Clock
from minivmm.xen.core import Core
from minivmm.xen.domain import Domain
from minivmm.xen.frame_words import ENTRIES, HYPERVISOR_SLOTS
from minivmm.xen.hypervisor import M2P_SLOT, M2P_VIRT, Hypervisor
from minivmm.xen.vcpu import VirtualCpu
from tests.minivmm.xen.frame_model import WRITABLE, P, W
from tests.minivmm.xen.kernels import LINUX_LIKE, VIRT_BASE, kernel

MEMORY = 1 << 20
FRAMES = range(16, 118)  # of domains, and the machine-to-physical table in the last
M2P = FRAMES.stop - 1
M2P_TABLES = 250  # three frames that map it
CPUS = 4
VCPUS = 2  # of each domain
PAGES = 30  # a domain starts with
MORE = 2  # it may have
SPARE = 8  # pages its kernel finds after its boot stack
U = 4


@cache
def tiny_kernel() -> XenImage:
    """A page of nothing at VIRT_BASE."""
    notes = {**LINUX_LIKE, XenElfNote.ENTRY: VIRT_BASE}
    with tempfile.TemporaryDirectory() as directory:
        return kernel(Path(directory), notes, paddr=0, bss=0, code=b"\0" * PAGE_SIZE)  # type: ignore[arg-type]


@lru_cache(8192)
def present(raw: bytes) -> tuple[tuple[int, int], ...]:
    """A table's present entries: slot and word."""
    words = memoryview(raw).cast("Q")
    return tuple((slot, word) for slot, word in enumerate(words) if word & P)


class StillClock(Clock):
    """Time stands still."""

    def __init__(self) -> None:
        super().__init__(1_000_000)
        self.time = 1_000_000_000

    def now(self) -> int:
        return self.time


class CountingMemory(GuestMemory):
    """Counts accesses: a call's length without a clock."""

    accesses = 0

    def _offset(self, address: int, length: int) -> int:
        self.accesses += 1
        return super()._offset(address, length)

    def look(self, mfn: int) -> bytes:
        """A frame, uncounted."""
        return self._map[mfn * PAGE_SIZE : (mfn + 1) * PAGE_SIZE]


class StillCpu:
    """What the hypervisor asks of a DeprivilegedCpu, but for running.

    `cached` are the translations it may hold: domain, frame, writable. An entry stored is forgotten before the CPU runs
    again, a frame at once when another one does it; it cannot tell single ones apart.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.vcpu: VirtualCpu | None = None
        self.cached: set[tuple[int, int, bool]] = set()
        self.reset()

    def reset(self) -> None:
        self.regs = kvm_regs()
        self.cs = self.ss = self.fs_base = self.gs_base = 0
        self.ds_selector = self.es_selector = self.fs_selector = self.gs_selector = 0
        self.task_switched = False
        self.gdt = self.ldt = b""
        self._root = 0
        self.flush_wanted = False
        self.vcpu = None
        self.cached.clear()

    @property
    def root(self) -> int:
        return self._root

    @root.setter
    def root(self, root: int) -> None:
        if root != self._root:
            self.cached.clear()
        self._root = root

    def store_entry(self, address: int, old: int, new: int) -> None:
        found = self.memory.read_u64(address)
        assert found == old, f"the entry at {address:#x} is {found:#x}, not {old:#x}"
        self.memory.write_u64(address, new)
        if old & P and old != new:
            self.cached.clear()

    def forget_page(self, address: int) -> None:
        assert not address % PAGE_SIZE
        self.cached.clear()

    def settle_page(self, address: int) -> None:
        assert not address % PAGE_SIZE

    def apply_stores(self) -> None:
        pass

    def flush(self) -> None:
        self.flush_wanted = True
        if self.vcpu is None or not self.vcpu.inside:
            self.cached.clear()

    def kick(self) -> None:
        if self.vcpu is not None:
            self.vcpu.inside = False

    def wait_outside(self) -> None:
        self.kick()

    def tsc(self) -> int:
        assert self.vcpu is None or not self.vcpu.inside, "to read the TSC waits until the vCPU is out"
        return 12345

    def load_gdt(self, table: bytes) -> None:
        self.gdt = table

    def load_ldt(self, table: bytes) -> None:
        self.ldt = table

    def store_descriptor(self, index: int, descriptor: int) -> None:
        if 8 * index < len(self.gdt):
            self.gdt = self.gdt[: 8 * index] + descriptor.to_bytes(8, "little") + self.gdt[8 * index + 8 :]

    @property
    def segments(self) -> Any:
        def usable(selector: int) -> bytes | None:
            return b"descriptor" if selector % 5 else None

        return SimpleNamespace(code=usable, stack=usable)

    def load_gs(self, selector: int) -> int | None:
        return None if selector % 3 else selector

    def set_debug_registers(self, values: list[int]) -> bool:
        assert len(values) == 6
        return True


class Machine(Hypervisor):
    """Two seats for domains. The lock is this thread's from beginning to end: no timer fires."""

    def __init__(self) -> None:
        self._release = contextlib.ExitStack()
        self.audit, self.exitless = 0, False
        self.memory: CountingMemory = CountingMemory(MEMORY)
        self._release.callback(self.memory.close)
        self.core = Core(self.memory, FRAMES, StillClock(), M2P_VIRT, cast(Any, None))
        self._release.callback(self.core.close)
        self.core.frames.install_hypervisor_slots = self._fill_slots
        self.cpus = [StillCpu(self.memory) for _ in range(CPUS)]
        self.free_cpus = cast(list[DeprivilegedCpu], list(self.cpus))
        self.vm = cast(Any, SimpleNamespace(forget_translations=lambda: None))
        self._next_domid = 1
        self.at_start = self.core.frames.free_frames
        self.allocated: list[int] = []
        """Frames handed out since somebody looked, in order."""
        self._watch_frames()
        for table in (M2P_TABLES, M2P_TABLES + 1):
            self.memory.write_u64(table << 12, (table + 1) << 12 | P | W | U)
        self.memory.write_u64((M2P_TABLES + 2) << 12, M2P << 12 | P | U)
        for _ in range(2):  # a long call lets go of one
            self.core.lock.acquire()

    def _watch_frames(self) -> None:
        frames = self.core.frames
        allocate, allocate_runs = frames.allocate, frames.allocate_runs

        def one(domid: int) -> int:
            mfn = allocate(domid)
            self.allocated.append(mfn)
            return mfn

        def runs(domid: int, count: int, order: int, end: int) -> list[int]:
            mfns = allocate_runs(domid, count, order, end)
            self.allocated += mfns
            return mfns

        validate = frames._validate

        def watched(domid: int, mfn: int, page_type: int) -> None:
            """Nobody who runs meanwhile can write to what is being checked."""
            for cpu in self.cpus:
                writable = page_type == WRITABLE or (domid, mfn, True) not in cpu.cached
                assert writable or cpu.vcpu is self.core.current
            validate(domid, mfn, page_type)

        frames._validate = watched  # type: ignore[method-assign]
        frames.allocate = one  # type: ignore[method-assign]
        frames.allocate_runs = runs  # type: ignore[method-assign]

    def _fill_slots(self, mfn: int) -> None:
        self.memory.write(mfn << 12 | HYPERVISOR_SLOTS.start << 3, bytes(8 * len(HYPERVISOR_SLOTS)))
        self.memory.write_u64(mfn << 12 | M2P_SLOT << 3, M2P_TABLES << 12 | P | W | U)

    def seat(self) -> Domain | None:
        """A new domain; None when there is no room for it."""
        with pytest.MonkeyPatch.context() as patch:
            # The real builder, with a smaller start-of-day region than the ABI promises.
            patch.setattr(builder, "REGION_ALIGNMENT", PAGE_SIZE)
            patch.setattr(builder, "PADDING", SPARE * PAGE_SIZE)
            try:
                domain = self.create_domain(tiny_kernel(), PAGES * PAGE_SIZE, vcpus=VCPUS)
            except ConfigError:
                return None
        self.core.memory_op.add_domain(domain.domid, PAGES + MORE)
        for vcpu in domain.vcpus:
            cast(StillCpu, vcpu.cpu).vcpu = vcpu
        return domain

    def close(self) -> None:
        for _ in range(2):
            self.core.lock.release()
        super().close()

    # -- what the processors could do

    def reachable(self, domid: int, root: int) -> set[tuple[int, int, bool]]:
        """Every translation under a root. Asserts that no table is missing the ring-3 bit."""
        tables, found = {root}, set()
        for level in (4, 3, 2, 1):
            below: set[int] = set()
            for table in tables:
                for slot, entry in present(self.memory.look(table)):
                    if level == 4 and slot in HYPERVISOR_SLOTS:
                        continue
                    assert entry & U
                    target = entry >> 12 & (1 << 40) - 1
                    below.add(target)
                    if level == 1:
                        found.add((domid, target, bool(entry & W)))
            tables = below
        return found

    def run_processors(self) -> None:
        """Every vCPU that is up runs, and caches all it can."""
        for domain in self.core.domains.values():
            for vcpu in domain.vcpus:
                if vcpu.up:
                    cpu = cast(StillCpu, vcpu.cpu)
                    assert cpu.root == vcpu.pages.root
                    if cpu.flush_wanted:
                        cpu.cached.clear()
                        cpu.flush_wanted = False
                    cpu.cached |= self.reachable(domain.domid, cpu.root >> 12)

    def descriptor_tables(self) -> None:
        """What a vCPU uses is what its frames hold."""
        tables = self.core.tables
        for domain in self.core.domains.values():
            for vcpu in domain.vcpus:
                cpu = cast(StillCpu, vcpu.cpu)
                for used, mfns in ((cpu.gdt, tables.gdts), (cpu.ldt, tables.ldts)):
                    held = mfns.get((domain.domid, vcpu.index), ())
                    assert len(used) <= len(held) * ENTRIES * 8
                    content = b"".join(self.memory.read(mfn << 12, PAGE_SIZE) for mfn in held)
                    assert content.startswith(used)
