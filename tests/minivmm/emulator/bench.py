"""A hart on a bench: RAM, no devices, page tables drawn by the test, instructions stepped one at a time."""

from __future__ import annotations

from minivmm.emulator.assembly import ABI_NAMES, program
from minivmm.emulator.hart import Hart
from minivmm.emulator.mmu import PTE_PPN_SHIFT, PTE_V
from minivmm.emulator.physical import RAM_BASE, AddressSpace, Ram
from minivmm.emulator.traps import Privilege

HANDLER = RAM_BASE + 0x1000  # mtvec
S_HANDLER = RAM_BASE + 0x2000  # stvec
DATA = RAM_BASE + 0x8000
TABLES = RAM_BASE + 0x4_0000  # page tables, the root first
SV39 = 8 << 60


class Bench:
    """Registers by their ABI names: bench["a0"]."""

    def __init__(self, kind: type[Hart] = Hart) -> None:
        self.ram = Ram(1 << 20)
        self.space = AddressSpace(self.ram)
        self.lines = 0
        self.hart = kind(self.space, lambda: self.lines, lambda: 1234)
        self.csrs = self.hart.csrs
        self.csrs.mtvec, self.csrs.stvec = HANDLER, S_HANDLER
        self._tables = 1

    def close(self) -> None:
        """Gives everything back."""
        self.hart.close()
        self.space.close()
        self.ram.close()

    def __getitem__(self, register: str) -> int:
        return self.hart.x[ABI_NAMES.index(register)]

    def __setitem__(self, register: str, value: int) -> None:
        self.hart.x[ABI_NAMES.index(register)] = value & (1 << 64) - 1

    def put(self, source: str, at: int = RAM_BASE) -> None:
        """Assembles lines into physical memory."""
        self.ram.write(at, program(source, at))

    def run(self, source: str, *, mode: Privilege = Privilege.M, at: int = RAM_BASE) -> None:
        """Executes as many instructions as there are lines, from `at`, in `mode`: an exception counts as one."""
        self.put(f"{source.strip()}\n.word 0\n.word 0\n", at)  # no instruction: where a block ends
        hart = self.hart
        hart.code.fence()
        hart.pc = at
        hart.enter(int(mode))
        end = hart.retired + hart.traps + len(source.strip().splitlines())
        while hart.retired + hart.traps < end:
            hart.step() if type(hart) is Hart else hart.execute(1)

    def map(self, virtual: int, physical: int, flags: int, level: int = 0) -> int:
        """Enters a page (level 0), 2 MiB (1) or 1 GiB (2) into the tables; returns where its entry is."""
        table = TABLES
        for step in (2, 1, 0):
            entry = table + (virtual >> 12 + 9 * step & 511) * 8
            if step == level:
                self.ram.write_u64(entry, physical >> 12 << PTE_PPN_SHIFT | flags | PTE_V)
                return entry
            pte = self.ram.read_u64(entry)
            if not pte:
                pte = (TABLES + 4096 * self._tables) >> 12 << PTE_PPN_SHIFT | PTE_V
                self._tables += 1
                self.ram.write_u64(entry, pte)
            table = pte >> PTE_PPN_SHIFT << 12
        raise ValueError(level)

    def paging(self) -> None:
        """Sv39 from the next instruction on."""
        self.csrs.write(0x180, SV39 | TABLES >> 12)

    @property
    def trap(self) -> tuple[int, int, int]:
        """mcause, mepc, mtval."""
        return self.csrs.mcause, self.csrs.mepc, self.csrs.mtval
