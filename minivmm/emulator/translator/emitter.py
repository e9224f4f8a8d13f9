"""Machine code being made: bytes, operands, and the stubs by which translated code is left.

RAX, RCX and RDX hold nothing from one instruction to the next.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from minivmm.emulator.decoder import Decoded
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


NewPlace = Callable[[], int | None]
"""A TLB entry that is for one load or store alone (state.State.place)."""


class Emitter:
    """Collects the code of a block, and the stubs by which it is left."""

    def __init__(self, regime: TranslatingRegime, site: NewSite, place: NewPlace, host: Host, delivers: bool) -> None:
        self.code = bytearray()
        self.regime = regime
        self.tables: Tables = regime.tables
        self.host = host
        self.delivers = delivers
        """Whether translated code takes traps and returns from them."""
        self._site = site
        self._new_place = place
        self._stubs: list[Callable[[], None]] = []
        self._exits: list[tuple[int, int, bytes]] = []
        """Offset of the displacement of a jump out, the number of its site, and what to do before."""
        self._misses: list[tuple[int, int, bytes, str, bytes]] = []
        """Offset behind a jump to be taken where a page is not known; where to go on; what makes of RAX the address and
        what else the routine wants; the routine; what it is told."""
        self.to_exit: list[int] = []
        """Offsets of displacements of jumps to the common exit."""
        self.to_routines: list[tuple[int, str, TranslatingRegime]] = []
        """The same, to a routine (routines.py) of a regime."""
        self.chains: list[tuple[int, Site]] = []
        """Offset of a displacement, and the site its stub leaves at."""
        self.resumes: list[tuple[int, Site]] = []
        """Offset at which a site goes on."""
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
        _DISPLACEMENT.pack_into(self.code, at, len(self.code) - at - 4)

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

    def copy(self, rd: int, register: int) -> None:
        """A guest register becomes another."""
        own = HOST.get(rd)
        if own is not None:
            self.move(own, register)
        elif register:
            self.commit(rd, self.source(register, RAX))
        else:
            self.put(x86.mov_store_imm32(STATE, slot(rd), 0, True))

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
    def operand(self, table_at: int, decoded: Decoded, size: int, kind: Kind) -> tuple[Site, Reg, int]:
        """What a load or store accesses is at RCX, the register and the displacement that are returned; or where the
        TLB does not know, at the site."""
        code, loads = self.code, table_at == self.tables.read_at
        place = self._new_place()
        if place is None:
            entry = table_at - RBP_OFFSET
            look_up = _look_up_tlb(decoded.rs1, decoded.imm, size, entry)
            code += look_up.code
            known = back = len(code)
            code += x86.mov_load_indexed(RCX, STATE, RCX, entry + 8)
            before, routine = look_up.address, "load_miss" if loads else "store_miss"
        else:
            look_up = _masked_address(decoded.rs1, decoded.imm, size)
            code += look_up.code
            code += _COMPARE_PLACE.pack(_COMPARE, place, _UNLESS)
            known = len(code)
            code += _LOAD_PLACE.pack(_LOAD, place + 8)
            back = len(code)
            before = look_up.address + _TELL_PLACE.pack(_TELL, place)
            routine = "load_place" if loads else "store_place"
        number, site = self._site(kind, self.index, self.pc)
        self._misses.append((known, back, before, routine, MISS.pack(number, self.count - self.index - 1, self.pc)))
        return site, look_up.base, look_up.displacement

    def host_address(self, table_at: int, decoded: Decoded, size: int, kind: Kind) -> Site:
        """RAX becomes the host's address of what a load or store accesses; where the TLB does not know, the site."""
        site, base, displacement = self.operand(table_at, decoded, size, kind)
        self.put(x86.lea_indexed(RAX, base, RCX, displacement))
        return site

    def resume(self, site: Site) -> None:
        """Behind the instruction: here the site goes on."""
        self.resumes.append((len(self.code), site))

    # --- the ways out ------------------------------------------------------------------------------------------------
    def begin(self, count: int) -> None:
        """The block's first instructions: its cost comes off the budget."""
        self.count = count
        self.put(x86.alu_imm(Alu.SUB, BUDGET_REGISTER, count))
        at = self.jump(x86.jcc(Cond.S))
        number, _ = self._site(Kind.BUDGET, 0, self.pc)
        self._exits.append((at, number, x86.alu_imm(Alu.ADD, BUDGET_REGISTER, count)))

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
        self._exits.append((at, number, b""))

    def stub(self, stub: Callable[[], None]) -> None:
        """Makes code behind the block, when that is done."""
        self._stubs.append(stub)

    def to_routine(self, name: str, regime: TranslatingRegime | None = None, opcode: bytes = x86.JMP) -> None:
        """A jump to a routine of this or another regime."""
        self.to_routines.append((self.jump(opcode), name, regime or self.regime))

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

    def call(self, opcode: bytes, decoded: Decoded) -> Site:
        """A jump, conditional or not, to where Python executes the instruction; its end is to be the site's resume."""
        at = self.jump(opcode)
        number, site = self._site(Kind.CALL, self.index, self.pc)
        site.decoded = decoded
        self._exits.append((at, number, b""))
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
        self._exits.append((at, number, b""))

    def go_early(self, opcode: bytes, target: int) -> None:
        """As `go` within the page, before the block's end: what has not been executed goes back to the budget."""
        at, left = self.jump(opcode), self.count - self.index - 1
        number, site = self._site(Kind.CHAIN, self.index, self.pc)
        site.target = target

        def stub() -> None:
            self.land(at)
            self.put(x86.alu_imm(Alu.ADD, BUDGET_REGISTER, left))
            self.chains.append((self.jump(x86.JMP), site))  # at first to what follows here
            self.code += _LEAVE.pack(_STORE_SITE, number, x86.JMP, 0)
            self.to_exit.append(len(self.code) - 4)

        self.stub(stub)

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
        code, to_exit = self.code, self.to_exit
        for known, back, before, routine, told in self._misses:
            _DISPLACEMENT.pack_into(code, known - 4, len(code) - known)
            code += before
            self.to_routine(routine, opcode=x86.CALL)
            code += x86.JMP
            code += _DISPLACEMENT.pack(back - len(code) - 4)
            code += told
        for at, number, first in self._exits:
            _DISPLACEMENT.pack_into(code, at, len(code) - at - 4)
            code += first
            code += _LEAVE.pack(_STORE_SITE, number, x86.JMP, 0)
            to_exit.append(len(code) - 4)
        for stub in self._stubs:
            stub()


_STORE_SITE = x86.mov_store_imm32(STATE, SITE - RBP_OFFSET, 0)[:-4]  # and the number
_LEAVE = struct.Struct(f"<{len(_STORE_SITE)}sI{len(x86.JMP)}si")
_DISPLACEMENT = struct.Struct("<i")  # of a relative jump, from its own end

# With the displacement of a place (state.State.place), which is beyond 8 bits: CMP RDX, the jump, MOV RCX, MOV ECX.
_FAR = 1 << 30
_COMPARE = x86.memory(b"\x3b", RDX, STATE, _FAR)[:-4]
_UNLESS = x86.jcc(Cond.NE) + bytes(4)
_LOAD = x86.mov_load(RCX, STATE, _FAR)[:-4]
_TELL = x86.mov_imm(RCX, _FAR)[:-4]
_COMPARE_PLACE = struct.Struct(f"<{len(_COMPARE)}si{len(_UNLESS)}s")
_LOAD_PLACE = struct.Struct(f"<{len(_LOAD)}si")
_TELL_PLACE = struct.Struct(f"<{len(_TELL)}si")


class _LookUp(NamedTuple):
    """Code that looks an address up, and what goes with it."""

    code: bytes
    address: bytes  # what makes of RAX the address, after that
    base: Reg  # the address is this register plus the displacement
    displacement: int


@lru_cache(1 << 14)
def _masked_address(rs1: int, imm: int, size: int) -> _LookUp:
    """RDX becomes what TLB entries are compared with: the page of x[rs1] + imm, and what keeps that from being aligned
    to `size`."""
    host = HOST.get(rs1)
    if host is not None:
        base, displacement = host, imm
        before = b""
        address = x86.lea(RAX, base, imm) if imm else x86.mov(RAX, base)
    else:
        base, displacement = RAX, 0
        before = x86.mov_imm(RAX, imm)
        if rs1:
            before = x86.mov_load(RAX, STATE, slot(rs1)) + (x86.alu_imm(Alu.ADD, RAX, imm) if imm else b"")
        address = b""
    before += x86.lea(RDX, base, displacement) if displacement else x86.mov(RDX, base)
    return _LookUp(before + x86.alu_imm(Alu.AND, RDX, PAGE_MASK | size - 1), address, base, displacement)


@lru_cache(1 << 14)
def _look_up_tlb(rs1: int, imm: int, size: int, entry: int) -> _LookUp:
    """Looks x[rs1] + imm up in the TLB that is `entry` from RBP on; the code ends in the jump to take where that does
    not know. RDX is what was compared, RCX the entry's index."""
    made = _masked_address(rs1, imm, size)
    check = (
        made.code,
        x86.mov(RCX, RDX, False),
        x86.shift_imm(Shift.SHR, RCX, 8, False),
        x86.alu_imm(Alu.AND, RCX, INDEX_MASK, False),
        x86.indexed(b"\x3b", RDX, STATE, RCX, entry),  # CMP
        x86.jcc(Cond.NE) + bytes(_DISPLACEMENT.size),
    )
    return made._replace(code=b"".join(check))
