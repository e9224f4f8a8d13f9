"""What ring 3 costs to leave and to enter, and a page-table entry to change, each against the bare exit loop.

The bare loop is ring-3 code, `out; jmp`, and an ioctl a turn with nothing read or set: the least that an exit can cost
after native code. Rounds of all alternate, so that whatever else the machine does hits all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from fcntl import ioctl

from benchmarks import Effort, Figure
from benchmarks.statistics import Summary, summarize
from minivmm.deprivileged.cpu import DeprivilegedCpu
from minivmm.deprivileged.monitor import Monitor, Selector
from minivmm.deprivileged.stub import CALL_PORT
from minivmm.kvm import abi
from minivmm.kvm.system import Kvm
from minivmm.memory import PAGE_SIZE, GuestMemory
from minivmm.x86.paging import Pte

MONITOR, TABLES, FRAMES = 8 << 20, 0x10000, 1 << 20  # machine addresses
CODE = 0x40_0000  # linear: page i is frame i
PAGES = 400
DATA = CODE + 16 * PAGE_SIZE
USER = Pte.PRESENT | Pte.WRITABLE | Pte.USER

TURNS = 500
SPIN_TURNS = 20_000
BATCH = 200

OUT_LOOP = b"\xe6\x42\xeb\xfc"  # again: out 0x42, al; jmp again
GP = b"\xfa"  # cli
SYSCALL = b"\x0f\x05"
CALL = b"\x48\x8d\x0d\x02\0\0\0" + bytes((0xE6, CALL_PORT))  # lea rcx, [rip + 2]; out CALL_PORT, al
TOUCH = b"\x48\x8b\x07\x0f\x05"  # mov rax, [rdi]; syscall
# again: inc rcx; mov [rdi], rcx; wait: cmp [rdi + 64], rcx; jne wait; cmp rcx, rsi; jne again; syscall
CALLS = b"\x48\xff\xc1\x48\x89\x0f\x48\x39\x4f\x40\x75\xfa\x48\x39\xf1\x75\xef\x0f\x05"


class Ring3:
    """A machine with one address space of PAGES pages."""

    def __init__(self) -> None:
        self.memory = GuestMemory(16 << 20)
        with Kvm() as kvm:
            self.vm = kvm.create_vm()
            self.vm.set_memory_regions(self.memory.regions)
            self.vcpu = self.vm.create_vcpu(0)
            self.vcpu.set_cpuid(kvm.supported_cpuid())
        self.monitor = Monitor(self.memory, MONITOR, call_port=True)
        self.cpu = DeprivilegedCpu(self.vcpu, self.monitor)
        root, pdpt, directory, self.table = (TABLES + PAGE_SIZE * level for level in range(4))
        self.memory.write_u64(root, pdpt | USER)
        self.memory.write_u64(pdpt, directory | USER)
        self.memory.write_u64(directory + 8 * (CODE >> 21), self.table | USER)
        for page in range(PAGES):
            self.memory.write_u64(self.table + 8 * page, self.frame(page))
        self.monitor.install(root)
        self.cpu.root, self.cpu.cs, self.cpu.ss = root, Selector.USER64, Selector.USER_DATA

    @staticmethod
    def frame(page: int) -> int:
        """The entry that maps a page to its frame."""
        return FRAMES + PAGE_SIZE * page | USER

    def load(self, code: bytes) -> None:
        """Makes ring 3 begin at `code`, having run it once."""
        self.memory.write(FRAMES, code)
        self.cpu.regs.rip, self.cpu.regs.rdi = CODE, DATA
        self.cpu.run()

    def close(self) -> None:
        """Gives everything back."""
        self.cpu.close()
        self.vcpu.close()
        self.vm.close()
        self.memory.close()


def run(effort: Effort) -> list[Figure]:
    """Microseconds of each, against the bare exit."""
    measures: dict[str, Callable[[Ring3], float]] = {
        "system call": lambda machine: _round_trip(machine, SYSCALL),
        "system call by a port": lambda machine: _round_trip(machine, CALL),
        "#GP": lambda machine: _round_trip(machine, GP),
        "entry, not present to present": lambda machine: _entry(machine, 0, None),
        "entry, present to not present": lambda machine: _entry(machine, None, 0),
        "entry, writable to read-only": lambda machine: _entry(machine, None, ~Pte.WRITABLE),
        "entry, frame A to frame B": lambda machine: _entry(machine, None, PAGE_SIZE),
        f"entry, one of {BATCH} changed together": _batch,
        "page table forgotten, built anew": _forget,
        "every page table forgotten, built anew": _forget_all,
        "vCPU reset": _reset,
        "exitless call, answered by a thread": _exitless,
    }
    samples: dict[str, list[float]] = {name: [] for name in ("bare", *measures)}
    machine = Ring3()
    try:
        for _ in range(effort.rounds):
            samples["bare"].append(_bare(machine))
            for name, measure in measures.items():
                samples[name].append(measure(machine))
    finally:
        machine.close()
    bare: Summary = summarize(samples["bare"])
    return [
        Figure(f"ring 3: {name}", "us", *summarize(samples[name]), "the bare exit: out; jmp at ring 3", *bare)
        for name in measures
    ]


def timed(turn: Callable[[], object], turns: int = TURNS) -> float:
    """Microseconds a turn."""
    start = time.perf_counter_ns()
    for _ in range(turns):
        turn()
    return (time.perf_counter_ns() - start) / turns / 1e3


def _bare(machine: Ring3) -> float:
    machine.load(OUT_LOOP)
    fd, run = machine.vcpu.fd, abi.KVM_RUN
    return timed(lambda: ioctl(fd, run))


def _round_trip(machine: Ring3, code: bytes) -> float:
    """To the event and back to the same instruction."""
    machine.load(code)
    cpu, regs = machine.cpu, machine.cpu.regs

    def turn() -> None:
        regs.rip = CODE
        cpu.run()

    return timed(turn)


def _entry(machine: Ring3, first: int | None, change: int | None) -> float:
    """From one value of DATA's entry to another until ring 3 has used it: the event that ends a turn is part of it.

    The way back is not timed. `first` and `change`: None the frame's own entry, 0 none, else what is done to it.
    """
    machine.load(TOUCH)
    cpu, memory = machine.cpu, machine.memory
    entry, own = machine.table + 8 * ((DATA - CODE) >> 12), machine.frame((DATA - CODE) >> 12)
    old = own if first is None else 0
    new = own if change is None else 0 if change == 0 else own + change if change > 0 else own & change
    total = 0
    for _ in range(TURNS):
        cpu.store_entry(entry, memory.read_u64(entry), old)
        cpu.regs.rip = CODE
        cpu.run()  # caches what there is to cache
        start = time.perf_counter_ns()
        cpu.store_entry(entry, old, new)
        cpu.regs.rip = CODE
        cpu.run()
        total += time.perf_counter_ns() - start
    cpu.store_entry(entry, new, own)
    return total / TURNS / 1e3


def _batch(machine: Ring3) -> float:
    """BATCH entries exchanged between two frames each."""
    machine.load(SYSCALL)
    cpu = machine.cpu
    pages = range(PAGES - BATCH, PAGES)
    values = [[machine.frame(page) ^ (turn and Pte.WRITABLE) for page in pages] for turn in (0, 1)]
    entries = [machine.table + 8 * page for page in pages]
    shown = 0

    def turn() -> None:
        nonlocal shown
        for entry, old, new in zip(entries, values[shown], values[1 - shown], strict=True):
            cpu.store_entry(entry, old, new)
        cpu.regs.rip = CODE
        cpu.run()
        shown = 1 - shown

    cost = timed(turn, 2 * (TURNS // BATCH + 1)) / BATCH
    assert shown == 0
    return cost


def _forget(machine: Ring3) -> float:
    """A table the VMM may have rewritten; ring 3 uses a page of it and leaves."""
    machine.load(TOUCH)
    cpu = machine.cpu

    def turn() -> None:
        cpu.forget_page(machine.table)
        cpu.regs.rip = CODE
        cpu.run()

    return timed(turn, TURNS // 5)


def _forget_all(machine: Ring3) -> float:
    """The same through a memory slot that comes and goes: for when no vCPU is at hand."""
    machine.load(TOUCH)

    def turn() -> None:
        machine.vm.forget_translations()
        machine.cpu.regs.rip = CODE
        machine.cpu.run()

    return timed(turn, TURNS // 5)


def _reset(machine: Ring3) -> float:
    """For another guest; without a run."""
    root = machine.cpu.root
    cost = timed(machine.cpu.reset, TURNS // 5)
    machine.cpu.root = root
    return cost


def _exitless(machine: Ring3) -> float:
    """Ring 3 posts a number in shared memory and spins; a thread that polls answers with the same number."""
    page = machine.memory.view(FRAMES + DATA - CODE, PAGE_SIZE).cast("Q")
    page[0] = page[8] = 0

    def answer() -> None:
        answered = 0
        while answered != SPIN_TURNS:
            posted = page[0]
            if posted != answered:
                page[8] = answered = posted

    machine.memory.write(FRAMES, CALLS)
    regs = machine.cpu.regs
    regs.rip, regs.rdi, regs.rcx, regs.rsi = CODE, DATA, 0, SPIN_TURNS
    thread = threading.Thread(target=answer, name="answering")
    thread.start()
    start = time.perf_counter_ns()
    while regs.rcx != CODE + len(CALLS):  # a system call leaves its return address there
        machine.cpu.run()
    cost = (time.perf_counter_ns() - start) / SPIN_TURNS / 1e3
    thread.join()
    page.release()
    return cost
