"""An interpreting and a translating hart with the same memory: random kernel code, executed by one and retraced by the
other. What the code does is of no use to anybody: modes, tables, CSRs, atomics and faults come as they come.
"""

from __future__ import annotations

import random
import zlib

from minivmm.emulator.assembly import encode
from minivmm.emulator.csr_table import CSR_TABLE, Csr, Interrupt, Status
from minivmm.emulator.hart import Hart
from minivmm.emulator.instructions import BY_NAME
from minivmm.emulator.mmu import PTE_A, PTE_D, PTE_PPN_SHIFT, PTE_R, PTE_U, PTE_V, PTE_W, PTE_X
from minivmm.emulator.physical import RAM_BASE
from minivmm.emulator.translator.csrs import SHARED
from minivmm.emulator.translator.hart import TranslatingHart
from minivmm.emulator.traps import Privilege
from minivmm.outcome import EndOfRun
from tests.minivmm.emulator.bench import SV39, Bench

PAGE = 0x1000
CODE_SIZE = 4 * PAGE  # from RAM_BASE, at the same addresses for S in one of the address spaces
USER_CODE = 0xC000_0000  # the same pages, for U
DATA, DATA_PAGES = RAM_BASE + 0x8000, 8
WINDOW, WINDOW_PAGES = 0x1_0000_0000, 16  # virtual: data pages, with any rights, other ones in each address space
MISALIGNED = WINDOW + 0x20_0000  # virtual: a superpage that is none
LARGE = 0x1_4000_0000  # virtual: 2 MiB from RAM_BASE, for S
ROOTS = (RAM_BASE + 0x4_0000, RAM_BASE + 0x5_0000)  # of the two address spaces; their other tables follow

# What registers are for: no instruction changes those from POINTERS on, except by AMOs into memory.
SCRATCH = range(1, 8)
POINTERS = range(8, 14)  # into data
STATUS = (14, 15)  # values for mstatus
SATP = (16, 17)
CODE = (18, 19, 24, 25)  # addresses of instructions
PTE_AT, PTE, TARGET, WORD = 20, 21, 22, 23

_ALU = ("add", "xor", "sltu", "mulhu", "addw")
_LOADS = ("lb", "lhu", "lw", "ld", "ld", "lwu")
_STORES = ("sb", "sh", "sw", "sd", "sd")
_ATOMICS = tuple(name for name in BY_NAME if name.startswith(("amo", "lr.", "sc.")))
_ACCESSES = ("csrrw", "csrrs", "csrrc", "csrrwi", "csrrsi", "csrrci")
_CSRS = (
    *(Csr.SSTATUS, Csr.SIE, Csr.SIP, Csr.SSCRATCH, Csr.SEPC, Csr.SCAUSE, Csr.STVAL, Csr.STVEC, Csr.SCOUNTEREN),
    *(Csr.MSTATUS, Csr.MIE, Csr.MIP, Csr.MSCRATCH, Csr.MEPC, Csr.MCAUSE, Csr.MTVAL, Csr.MTVEC, Csr.MIDELEG),
    *(Csr.MEDELEG, Csr.SATP, Csr.CYCLE, Csr.MINSTRET),
    *4 * (Csr.SSTATUS, Csr.SIE, Csr.SIP, Csr.SATP),
    *2 * (Csr.MSTATUS, Csr.SSCRATCH, Csr.SEPC),
)
_VECTORS = (Csr.STVEC, Csr.MTVEC)
_ADDRESSES = (Csr.SEPC, Csr.MEPC)


def _access(rng: random.Random) -> int:
    csr, name = rng.choice(_CSRS), rng.choice(_ACCESSES)
    if csr in _VECTORS or csr in _ADDRESSES:
        return encode("csrrw", rd=rng.choice((0, *SCRATCH)), rs1=rng.choice(CODE), csr=csr)
    if csr == Csr.SATP:
        return encode("csrrw", rd=rng.choice((0, 0, 0, 1)), rs1=rng.choice((*SATP, *SATP, *SATP, *SATP, 0, 1)), csr=csr)
    rd = rng.choice((0, *SCRATCH))
    if name.endswith("i"):
        return encode(name, rd=rd, uimm=rng.choice((0, 2, 2, rng.randrange(32))), csr=csr)
    return encode(name, rd=rd, rs1=rng.choice((0, *SCRATCH, *STATUS, *STATUS)), csr=csr)


def instructions(rng: random.Random) -> list[int]:
    """One, or what must not be taken apart."""
    scratch = rng.choice(SCRATCH)
    offset = 8 * rng.randrange(-2, 3) + rng.choice((0, 0, 0, 0, 4, 1))
    match rng.choices(range(13), weights=(6, 8, 8, 16, 24, 3, 4, 5, 2, 1, 3, 3, 1))[0]:
        case 0:
            return [encode(rng.choice(_ALU), rd=scratch, rs1=rng.choice(SCRATCH), rs2=rng.choice((*SCRATCH, 14)))]
        case 1:
            return [encode(rng.choice(_LOADS), rd=rng.choice((0, scratch)), rs1=rng.choice(POINTERS), imm=offset)]
        case 2:
            return [encode(rng.choice(_STORES), rs2=scratch, rs1=rng.choice(POINTERS), imm=offset)]
        case 3:
            name = rng.choice((*_ATOMICS, "lr.w", "lr.d", "lr.d", "sc.w", "sc.d", "sc.d"))
            operands = {"rd": rng.choice((0, scratch)), "rs1": rng.choice(POINTERS)}
            if not name.startswith("lr."):
                operands["rs2"] = rng.choice((0, *SCRATCH))
            return [encode(name, **operands)]
        case 4:
            return [_access(rng)]
        case 5:
            return [encode(rng.choice(("ecall", "ebreak")))]
        case 6:
            return [encode(rng.choice(("sret", "mret")))]
        case 7:
            return [encode(rng.choice(("beq", "bne", "bltu")), rs1=scratch, rs2=14, imm=4 * rng.randrange(-6, 12))]
        case 8:
            # Nothing comes between the two but a trap of the second: what is stale is not looked at.
            return [encode("sd", rs1=PTE_AT, rs2=PTE), encode("sfence.vma")]
        case 9:
            return [encode("sw", rs1=TARGET, rs2=WORD)]
        case 10:
            return [encode(rng.choice(("sfence.vma", "sfence.vma", "wfi", "fence.i")))]
        case 11:
            at, width = rng.choice(POINTERS), rng.choice("wd")
            between = encode("sb", rs1=at, rs2=rng.choice(SCRATCH)) if rng.randrange(2) else encode("addi")
            return [
                encode(f"lr.{width}", rd=scratch, rs1=at),
                between,
                encode(f"sc.{width}", rd=1, rs1=at, rs2=rng.choice(SCRATCH)),
            ]
        case _:
            jump = encode("jalr", rd=scratch, rs1=rng.choice(CODE))
            return [rng.choice((rng.getrandbits(32) | 3, jump))]


class Twins:
    """Two harts, and the random code they execute."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.benches = Bench(Hart), Bench(TranslatingHart)
        self.one, self.other = (bench.hart for bench in self.benches)
        self._entries: list[int] = []
        self._tables()
        code = b""
        while len(code) < CODE_SIZE - 8:
            code += b"".join(word.to_bytes(4, "little") for word in instructions(self.rng))
        self._write(RAM_BASE, code)

    def close(self) -> None:
        """Gives everything back."""
        for bench in self.benches:
            bench.close()

    def _write(self, address: int, data: bytes) -> None:
        for bench in self.benches:
            bench.ram.write(address, data)

    def _put(self, address: int, value: int) -> None:
        self._write(address, value.to_bytes(8, "little"))

    def _random_entry(self) -> int:
        """A page table's last level: a data page with any rights, or nothing that a page can be."""
        rng = self.rng
        flags = rng.choice((PTE_R, PTE_R | PTE_W, PTE_R | PTE_W, PTE_R | PTE_W, PTE_X, PTE_R | PTE_X, PTE_W))
        flags |= rng.choice((0, PTE_U)) | rng.choice((0, PTE_A, PTE_A | PTE_D))
        flags |= PTE_V if rng.randrange(6) else 0
        page = DATA + PAGE * rng.randrange(DATA_PAGES)
        page = rng.choice((*8 * (page,), 0x1000_0000, RAM_BASE + (1 << 20)))
        return page >> 12 << PTE_PPN_SHIFT | flags | (rng.choice((1 << 54, 1 << 60)) if rng.randrange(20) == 0 else 0)

    def _tables(self) -> None:
        always = PTE_V | PTE_A | PTE_D
        for root in ROOTS:
            code, user, data = (root + PAGE * index for index in range(1, 4))
            middle = {RAM_BASE: root + 0x5000, USER_CODE: root + 0x6000, WINDOW: root + 0x7000, LARGE: root + 0x8000}
            for address, table in middle.items():
                self._put(root + 8 * (address >> 30), table >> 12 << PTE_PPN_SHIFT | PTE_V)
            for address, table in ((RAM_BASE, code), (USER_CODE, user), (WINDOW, data)):
                self._put(middle[address], table >> 12 << PTE_PPN_SHIFT | PTE_V)
            self._put(middle[LARGE], RAM_BASE >> 12 << PTE_PPN_SHIFT | always | PTE_R | PTE_W)
            self._put(middle[WINDOW] + 8, RAM_BASE + PAGE >> 12 << PTE_PPN_SHIFT | always | PTE_R | PTE_W)
            for offset in range(0, CODE_SIZE, PAGE):
                page = (offset + PAGE * ROOTS.index(root)) % CODE_SIZE  # not where it is in the other one
                entry = RAM_BASE + page >> 12 << PTE_PPN_SHIFT | always | PTE_R | PTE_X
                self._put(code + (offset >> 9), entry)
                self._put(user + (offset >> 9), entry | PTE_U)
            for index in range(WINDOW_PAGES):
                self._put(data + 8 * index, self._random_entry())
                self._entries.append(data + 8 * index)

    # --- a fresh start -----------------------------------------------------------------------------------------------
    def _code(self, mode: int) -> int:
        base = USER_CODE if mode == Privilege.U else RAM_BASE
        return base + 4 * self.rng.randrange(CODE_SIZE // 4)

    def _data(self, mode: int) -> int:
        """An address in data, as a mode sees it; mostly one that an atomic takes."""
        rng = self.rng
        within = 8 * rng.randrange(3) if rng.randrange(8) else rng.randrange(PAGE)
        page = PAGE * rng.randrange(DATA_PAGES)
        if rng.randrange(20) == 0:
            return rng.choice((MISALIGNED, 1 << 38, 1 << 63)) + within
        if mode == Privilege.M and rng.randrange(8):
            return DATA + page + within
        if mode == Privilege.S and rng.randrange(2):
            return LARGE + DATA - RAM_BASE + page + within
        return WINDOW + PAGE * rng.randrange(WINDOW_PAGES) + within

    def restart(self) -> None:
        """Both harts in the same random state."""
        rng = self.rng
        mode = int(rng.choice((Privilege.M, Privilege.S, Privilege.S, Privilege.U)))
        registers = {number: rng.choice((rng.getrandbits(64), rng.getrandbits(12), 0x222)) for number in SCRATCH}
        registers |= {number: self._data(mode) for number in POINTERS}
        registers |= {number: rng.getrandbits(24) & ~int(Status.MPRV | Status.TVM) for number in STATUS}
        registers[STATUS[1]] = rng.choice((registers[STATUS[1]], int(Status.SUM), int(Status.SUM)))
        registers |= {number: SV39 | root >> 12 for number, root in zip(SATP, ROOTS, strict=True)}
        registers |= {number: self._code(rng.choice((mode, mode, Privilege.U, Privilege.S))) for number in CODE}
        registers[CODE[0]] |= 1  # which no address of an instruction is
        entry = rng.choice(self._entries)
        registers[PTE_AT] = rng.choice((entry, entry - RAM_BASE + LARGE))
        registers[PTE] = self._random_entry()
        target = self._code(Privilege.M)
        registers[TARGET] = rng.choice((target, target - RAM_BASE + LARGE))
        registers[WORD] = instructions(rng)[0]
        named = {name: rng.getrandbits(64) & ~1 for name in ("mscratch", "sscratch", "mcause", "scause")}
        named |= {"medeleg": rng.choice((0xB1FF, 0xB1FF, 0, rng.getrandbits(16) & 0xB3FF))}
        named |= {"mideleg": rng.choice((0x222, 0x222, 0, 0x2)), "mie": rng.choice((0, 0x222, 0xAAA, 2))}
        named |= {"mepc": self._code(rng.choice((0, 1))), "sepc": self._code(rng.choice((0, 1)))}
        named |= {"mtvec": self._code(Privilege.M), "stvec": self._code(Privilege.S) | rng.choice((0, 0, 1))}
        status = rng.getrandbits(24) & ~int(Status.MPRV | (Status.TVM if rng.randrange(4) else 0))
        satp, pc = rng.choice((*2 * SATP, 0)), self._code(mode)
        software = rng.choice((0, 0, int(Interrupt.SSI), int(Interrupt.STI), 0x222))
        lines = rng.choice((0, 0, 0, int(Interrupt.SEI), int(Interrupt.MTI)))
        for bench in self.benches:
            hart, csrs = bench.hart, bench.csrs
            bench.lines = lines
            for number, value in registers.items():
                hart.x[number] = value
            for name, value in named.items():
                setattr(csrs, name, value)
            csrs.mip = software
            csrs.write(Csr.MSTATUS, status)
            csrs.write(Csr.SATP, registers[satp] if satp else 0)
            hart.pc, hart.waiting = pc, False
            hart.enter(mode)

    # --- the run -----------------------------------------------------------------------------------------------------
    def run(self, count: int) -> bool:
        """About `count` instructions of the translator, retraced by the interpreter. False when they end the harts."""
        ended = _advance(self.other, lambda: self.other.execute(count))
        retraced = None
        while retraced is None and _count(self.one) < _count(self.other):
            retraced = _advance(self.one, self.one.step)
        if ended is not None and retraced is None:
            retraced = _advance(self.one, self.one.step)
        assert (retraced, self.state(self.one)) == (ended, self.state(self.other))
        return ended is None

    def state(self, hart: Hart) -> dict[str, object]:
        """All there is of a hart."""
        names = (*SHARED, *(row.name for row in CSR_TABLE if row.name in ("menvcfg", "senvcfg")))
        return {
            **{f"x{number}": hex(hart.x[number]) for number in range(32)},
            **{name: hex(getattr(hart.csrs, name)) for name in names},
            "pc": hex(hart.pc),
            "mode": hart.mode,
            "retired": hart.retired,
            "traps": hart.traps,
            "satp": hex(hart.mmu.satp),
            "reserved": hart.atomics.reserved,
            "memory": zlib.crc32(hart.space.ram8),
        }


def _count(hart: Hart) -> int:
    return hart.retired + hart.traps


def _advance(hart: Hart, execute: object) -> str | None:
    """Looks at interrupts, as a machine does between slices, and executes. What the hart's end was, if it was."""
    before = _count(hart)
    if not hart.look_at_interrupts():
        hart.waiting = False  # for ever, on this bench
    if _count(hart) > before:
        return None
    try:
        execute()  # type: ignore[operator]
    except EndOfRun as end:
        return str(end.detail)
    return None
