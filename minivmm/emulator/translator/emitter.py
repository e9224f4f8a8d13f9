"""Machine code being made: bytes, operands, and the stubs by which translated code is left.

RAX, RCX and RDX hold nothing from one instruction to the next.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from minivmm.emulator.decoder import Decoded
from minivmm.emulator.mmu import FloatingState
from minivmm.emulator.translator import x86
from minivmm.emulator.translator.registers import BUDGET_REGISTER, HOST, STATE, slot
from minivmm.emulator.translator.sites import Kind, Site
from minivmm.emulator.translator.state import RBP_OFFSET, SITE, TARGET, Tables
from minivmm.emulator.translator.x86 import Alu, Cond, Reg, Shift

if TYPE_CHECKING:
    from minivmm.emulator.translator.mmu import TranslatingRegime


class Host(NamedTuple):
    """Addresses that are the same for all code."""

    ram: int  # of RAM's first byte
    size: int  # bytes of RAM
    code_map: int  # a byte for each page of RAM: not 0 when there are translated instructions


RAX, RCX, RDX = Reg.RAX, Reg.RCX, Reg.RDX
INDEX_MASK = 0xFFF0  # of a TLB's or jump cache's 4096 entries of 16 bytes
PAGE_MASK = -4096

MISS = struct.Struct("<IIQ")
"""Behind the call of a routine for a page that is not in the TLB, and the jump that follows: the site's number, how
many instructions of the block are behind this one, its address."""
MISS_AT = 5  # bytes from where the call returns to: a jump

NewSite = Callable[[Kind, int, int], tuple[int, Site]]
"""Makes the site of a kind at an instruction (its index in the block and its address); also says its number."""


class Emitter:
    """Collects the code of a block, and the stubs by which it is left."""

    def __init__(self, regime: TranslatingRegime, site: NewSite, host: Host, delivers: bool) -> None:
        self.code = bytearray()
        self.regime = regime
        self.tables: Tables = regime.tables
        self.host = host
        self.delivers = delivers
        """Whether translated code takes traps and returns from them."""
        self._site = site
        self._stubs: list[Callable[[], None]] = []
        self.to_exit: list[int] = []
        """Offsets of displacements of jumps to the common exit."""
        self.to_routines: list[tuple[int, str, TranslatingRegime]] = []
        """The same, to a routine (routines.py) of a regime."""
        self.chains: list[tuple[int, Site]] = []
        """Offset of a displacement, and the site its stub leaves at."""
        self.resumes: list[tuple[int, Site]] = []
        """Offset at which a site goes on."""
        self.floating: FloatingState = regime.floating
        """Of the block's regime."""
        self.boxed: set[int] = set()
        """Floating-point registers that hold a boxed single at this place in the block."""
        self.index = 0  # of the instruction in the block
        self.pc = 0  # its address
        self.count = 0  # instructions of the block

    # --- bytes -------------------------------------------------------------------------------------------------------
    def put(self, *parts: bytes) -> None:
        """Appends instructions."""
        code = self.code
        for part in parts:
            code += part

    def jump(self, opcode: bytes) -> int:
        """Appends a relative jump to nowhere yet; returns the offset of its displacement."""
        self.code += opcode + b"\0\0\0\0"
        return len(self.code) - 4

    def land(self, at: int) -> None:
        """The jump whose displacement is at `at` comes here."""
        self.code[at : at + 4] = (len(self.code) - at - 4).to_bytes(4, "little", signed=True)

    # --- operands ----------------------------------------------------------------------------------------------------
    def move(self, to: Reg, register: int, wide: bool = True) -> None:
        """A host register becomes a guest register."""
        if register == 0:
            self.put(x86.mov_imm(to, 0))
        elif (host := HOST.get(register)) is not None:
            self.put(x86.mov(to, host, wide))
        else:
            self.put(x86.mov_load(to, STATE, slot(register), wide))

    def source(self, register: int, temporary: Reg) -> Reg:
        """A host register that holds a guest register; not to be changed."""
        host = HOST.get(register)
        if host is None:
            self.move(temporary, register)
            return temporary
        return host

    def alu(self, operation: Alu, to: Reg, register: int, wide: bool = True) -> None:
        """A host register and a guest register."""
        host = HOST.get(register)
        if register == 0:
            self.put(x86.alu_imm(operation, to, 0, wide))
        elif host is not None:
            self.put(x86.alu(operation, to, host, wide))
        else:
            self.put(x86.alu_load(operation, to, STATE, slot(register), wide))

    def commit(self, rd: int, host: Reg) -> None:
        """A guest register becomes a host register."""
        own = HOST.get(rd)
        if own is None:
            self.put(x86.mov_store(STATE, slot(rd), host))
        elif own != host:
            self.put(x86.mov(own, host))

    def compare(self, rs1: int, rs2: int) -> None:
        """CMP of two guest registers."""
        left, right = HOST.get(rs1), HOST.get(rs2)
        if left is not None and rs2 == 0:
            self.put(x86.compare_zero(left, left))
        elif left is not None or rs1 == 0 or (right is None and rs2 != 0):
            self.alu(Alu.CMP, self.source(rs1, RAX), rs2)
        elif right is not None:
            self.put(x86.memory(b"\x39", right, STATE, slot(rs1)))
        else:
            self.put(x86.alu_memory_imm(Alu.CMP, STATE, slot(rs1), 0))

    # --- memory ------------------------------------------------------------------------------------------------------
    def host_address(self, table_at: int, decoded: Decoded, size: int, kind: Kind) -> Site:
        """RAX becomes the host's address of what a load or store accesses; where the TLB does not know, the site."""
        base = HOST.get(decoded.rs1)
        if base is None:
            self.move(RAX, decoded.rs1)
            if decoded.imm:
                self.put(x86.alu_imm(Alu.ADD, RAX, decoded.imm))
        elif decoded.imm:
            self.put(x86.lea(RAX, base, decoded.imm))
        else:
            self.put(x86.mov(RAX, base))
        entry = table_at - RBP_OFFSET
        self.put(
            x86.mov(RCX, RAX, False),
            x86.shift_imm(Shift.SHR, RCX, 8, False),
            x86.alu_imm(Alu.AND, RCX, INDEX_MASK, False),
            x86.mov(RDX, RAX),
            x86.alu_imm(Alu.AND, RDX, PAGE_MASK | size - 1),
            x86.indexed(b"\x3b", RDX, STATE, RCX, entry),  # CMP
        )
        slow = self.jump(x86.jcc(Cond.NE))
        known = len(self.code)
        self.put(x86.indexed(b"\x03", RAX, STATE, RCX, entry + 8))  # ADD
        number, site = self._site(kind, self.index, self.pc)
        left, pc = self.count - self.index - 1, self.pc
        miss = "load_miss" if table_at == self.tables.read_at else "store_miss"
        self._stubs.append(lambda: self._miss(slow, known, miss, MISS.pack(number, left, pc)))
        return site

    def _miss(self, at: int, known: int, routine: str, told: bytes) -> None:
        """The stub for the jump at `at`: goes on at `known` when the routine has entered the page."""
        self.land(at)
        self.to_routine(routine, opcode=x86.CALL)
        back = self.jump(x86.JMP)
        self.code[back : back + 4] = (known - back - 4).to_bytes(4, "little", signed=True)
        self.put(told)

    def resume(self, site: Site) -> None:
        """Behind the instruction: here the site goes on."""
        self.resumes.append((len(self.code), site))

    # --- the ways out ------------------------------------------------------------------------------------------------
    def _leave(self, at: int, number: int, *first: bytes) -> None:
        """The stub for the jump at `at`: says which site it is and goes to the common exit."""
        self.land(at)
        self.put(*first, x86.mov_store_imm32(STATE, SITE - RBP_OFFSET, number))
        self.to_exit.append(self.jump(x86.JMP))

    def begin(self, count: int) -> None:
        """The block's first instructions: its cost comes off the budget."""
        self.count = count
        self.put(x86.alu_imm(Alu.SUB, BUDGET_REGISTER, count))
        at = self.jump(x86.jcc(Cond.S))
        number, _ = self._site(Kind.BUDGET, 0, self.pc)
        self._stubs.append(lambda: self._leave(at, number, x86.alu_imm(Alu.ADD, BUDGET_REGISTER, count)))

    def system_site(self, decoded: Decoded) -> int:
        """The number of a site at which Python executes the instruction; the block is left there."""
        number, site = self._site(Kind.SYSTEM, self.index, self.pc)
        site.decoded = decoded
        return number

    def attend_site(self, following: int) -> int:
        """The number of a site behind an instruction, at which Python looks at interrupts."""
        number, site = self._site(Kind.ATTEND, self.index, self.pc)
        site.following = following
        return number

    def leave_when(self, at: int, number: int) -> None:
        """The jump leaves at a site."""
        self.stub(lambda: self._leave(at, number))

    def stub(self, stub: Callable[[], None]) -> None:
        """Makes code behind the block, when that is done."""
        self._stubs.append(stub)

    def to_routine(self, name: str, regime: TranslatingRegime | None = None, opcode: bytes = x86.JMP) -> None:
        """A jump to a routine of this or another regime."""
        self.to_routines.append((self.jump(opcode), name, regime or self.regime))

    def call(self) -> Site:
        """Python executes the instruction."""
        number, site = self._site(Kind.CALL, self.index, self.pc)
        self.put(x86.mov_store_imm32(STATE, SITE - RBP_OFFSET, number))
        self.to_exit.append(self.jump(x86.JMP))
        self.resume(site)
        return site

    def aside(self, opcode: bytes, code: bytes) -> None:
        """A conditional jump to `code`, which is behind the block and comes back to here."""
        at = self.jump(opcode)
        back = len(self.code)
        self._stubs.append(lambda: self._detour(at, code, back))

    def _detour(self, at: int, code: bytes, back: int) -> None:
        self.land(at)
        self.put(code)
        place = self.jump(x86.JMP)
        self.code[place : place + 4] = (back - place - 4).to_bytes(4, "little", signed=True)

    def call_aside(self, opcode: bytes) -> Site:
        """A conditional jump to where Python executes the instruction, which is to be resumed at its end."""
        at = self.jump(opcode)
        number, site = self._site(Kind.CALL, self.index, self.pc)
        self._stubs.append(lambda: self._leave(at, number))
        return site

    def go(self, opcode: bytes, target: int, chained: bool) -> None:
        """A jump to a guest address: straight to its block once that is known, or through the jump cache."""
        at = self.jump(opcode)
        if not chained:
            self._stubs.append(lambda: self._look_up(at, target))
            return
        number, site = self._site(Kind.CHAIN, self.index, self.pc)
        site.target = target
        self.chains.append((at, site))
        self._stubs.append(lambda: self._leave(at, number))

    def _look_up(self, at: int, target: int) -> None:
        self.land(at)
        self.put(x86.mov_imm(RAX, target))
        self.to_routine("dispatch")

    def dispatch(self) -> None:
        """Goes to the guest address in RAX, through the jump cache."""
        entry = self.tables.jumps_at - RBP_OFFSET
        self.put(
            x86.mov(RCX, RAX, False),
            x86.shift_imm(Shift.SHL, RCX, 3, False),
            x86.alu_imm(Alu.AND, RCX, INDEX_MASK, False),
            x86.indexed(b"\x3b", RAX, STATE, RCX, entry),  # CMP
        )
        self.to_routine("miss", opcode=x86.jcc(Cond.NE))
        self.put(x86.jmp_indexed(STATE, RCX, entry + 8))

    def miss(self) -> None:
        """What is behind a look-up in vain."""
        number, _ = self._site(Kind.JUMP, 0, 0)
        self.put(
            x86.mov_store(STATE, TARGET - RBP_OFFSET, RAX),
            x86.mov_store_imm32(STATE, SITE - RBP_OFFSET, number),
        )
        self.to_exit.append(self.jump(x86.JMP))

    def finish(self) -> None:
        """The stubs, behind the block."""
        for stub in self._stubs:
            stub()
