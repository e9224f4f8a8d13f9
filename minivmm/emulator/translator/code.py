"""Translated code: blocks of RISC-V as x86-64 in a bounded buffer, found, chained, forgotten when their page changes.

What is translated is what the interpreter decodes (emulator.code): a run of instructions of one page up to a jump. What
is not worth it or cannot be - SYSTEM instructions, fetches that fault, instructions across two pages - stays a decoded
block, which the hart interprets.

A jump to a known address is chained, so that it goes straight to the other block, where the guest cannot change what is
there without our knowing: in the same page, or anywhere as long as addresses are physical. Others go through the jump
cache of their regime, which is emptied whenever translations may have changed.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from minivmm.emulator.code import Block, CodeCache, CodePage
from minivmm.emulator.decoder import Decoded, IllegalInstruction
from minivmm.emulator.instructions import FLOATING
from minivmm.emulator.physical import PAGE_SHIFT, AddressSpace
from minivmm.emulator.system import SYSTEM
from minivmm.emulator.translator import sse, x86
from minivmm.emulator.translator.buffer import CodeBuffer
from minivmm.emulator.translator.emit import ENDS
from minivmm.emulator.translator.emit_floating import EMIT
from minivmm.emulator.translator.emitter import Emitter
from minivmm.emulator.translator.registers import BUDGET_REGISTER, HOST, SAVED, STATE, slot
from minivmm.emulator.translator.sites import Kind, Site
from minivmm.emulator.translator.state import BUDGET, HOST_MXCSR, MXCSR, RBP_OFFSET
from minivmm.emulator.translator.x86 import Reg
from minivmm.emulator.traps import Trap
from minivmm.memory import PAGE_SIZE

if TYPE_CHECKING:
    from minivmm.emulator.mmu import Regime
    from minivmm.emulator.semantics import Operation
    from minivmm.emulator.translator.hart import TranslatingHart
    from minivmm.emulator.translator.mmu import TranslatingRegime

BLOCK_ROOM = 64 << 10  # bytes: more than the longest block can need
_M64 = (1 << 64) - 1
_OFFSET_MASK = PAGE_SIZE - 1


class TranslatedBlock:
    """A block of machine code."""

    __slots__ = ("count", "end", "entry", "incoming", "pc", "start")

    def __init__(self, pc: int, count: int, end: int) -> None:
        self.pc = pc
        self.count = count  # guest instructions
        self.end = end  # the guest address behind them
        self.start = 0  # its offset in the buffer
        self.entry = 0  # where it is executed
        self.incoming: list[tuple[int, int]] = []  # chained jumps to it: the displacement's offset, its own stub's


class TranslatedCode(CodeCache):
    """Finds, makes and chains blocks for one hart."""

    def __init__(self, hart: TranslatingHart, space: AddressSpace, size: int) -> None:
        super().__init__(hart, space)
        self.buffer = CodeBuffer(size)
        self.sites: list[Site | None] = []
        """By number; None is a look-up in the jump cache in vain."""
        self.chained = 0
        """Jumps that were made to go straight to their block."""
        self.translated_bytes = 0
        """Machine code made so far."""
        self._begin()

    # --- the routines every block uses -------------------------------------------------------------------------------
    def _begin(self) -> None:
        """Entry, exit and the end of a look-up in vain, at the start of the buffer."""
        enter = [x86.push(register) for register in SAVED]
        enter += [x86.alu_imm(x86.Alu.SUB, Reg.RSP, 8)]  # a multiple of 16, for nobody but the rule
        enter += [x86.lea(STATE, Reg.RDI, RBP_OFFSET), x86.mov(Reg.RAX, Reg.RSI)]
        enter += [x86.mov_load(host, STATE, slot(guest)) for guest, host in HOST.items()]
        enter += [sse.store_control(STATE, HOST_MXCSR - RBP_OFFSET), sse.load_control(STATE, MXCSR - RBP_OFFSET)]
        enter += [x86.mov_load(BUDGET_REGISTER, STATE, BUDGET - RBP_OFFSET), x86.jmp_register(Reg.RAX)]
        leave = [x86.mov_store(STATE, slot(guest), host) for guest, host in HOST.items()]
        leave += [x86.mov_store(STATE, BUDGET - RBP_OFFSET, BUDGET_REGISTER)]
        leave += [sse.store_control(STATE, MXCSR - RBP_OFFSET), sse.load_control(STATE, HOST_MXCSR - RBP_OFFSET)]
        leave += [x86.alu_imm(x86.Alu.ADD, Reg.RSP, 8)]
        leave += [x86.pop(register) for register in reversed(SAVED)]
        leave += [x86.RET]
        self.enter = self.buffer.function(self.buffer.append(b"".join(enter)), ctypes.c_void_p, ctypes.c_void_p)
        self._exit = self.buffer.append(b"".join(leave))
        self._kept = self.buffer.used
        self._miss = 0
        self._dispatchers: dict[int, int] = {}
        self._start_sites()

    def _start_sites(self) -> None:
        self.sites[:] = [None]
        self._dispatchers.clear()
        miss = Emitter(None, _no_site)
        miss.miss(0)
        self._miss = self._place(miss)

    def _dispatcher(self, regime: TranslatingRegime) -> int:
        """The routine that looks RAX up in the jump cache of a regime."""
        found = self._dispatchers.get(regime.number)
        if found is None:
            dispatcher = Emitter(regime.tables, _no_site)
            dispatcher.dispatch()
            found = self._dispatchers[regime.number] = self._place(dispatcher)
        return found

    def _place(self, emitter: Emitter, dispatcher: int = 0) -> int:
        """Puts finished code into the buffer; its jumps to the common routines find them."""
        start = self.buffer.append(emitter.code)
        for places, target in (
            (emitter.to_exit, self._exit),
            (emitter.to_miss, self._miss),
            (emitter.to_dispatch, dispatcher),
        ):
            for place in places:
                self.buffer.redirect(start + place, target)
        self.translated_bytes += len(emitter.code)
        return start

    def find(self, regime: Regime, pc: int) -> Block:
        """As CodeCache; also a TranslatedBlock."""
        if self.buffer.room < BLOCK_ROOM:
            self.forget()
        return super().find(regime, pc)

    # --- making ------------------------------------------------------------------------------------------------------
    def _make(self, regime: Regime, pc: int, offset: int, limit: int) -> Block | TranslatedBlock:  # type: ignore[override]
        instructions = self._gather(regime, pc, offset, limit)
        if not instructions:
            return super()._make(regime, pc, offset, 1)
        return self._translate(regime, instructions)  # type: ignore[arg-type]

    def _gather(self, regime: Regime, pc: int, offset: int, limit: int) -> list[tuple[int, Decoded]]:
        """The instructions to translate from `pc`, at `offset` in RAM; none when the first one is to be interpreted."""
        found: list[tuple[int, Decoded]] = []
        page_end = (offset | _OFFSET_MASK) + 1
        while len(found) < limit and offset < page_end:
            try:
                decoded = self.decode(regime, pc, offset, page_end)
            except (Trap, IllegalInstruction):
                break
            if decoded.name in SYSTEM or offset + decoded.size > page_end:
                break
            found.append((pc, decoded))
            if decoded.name in ENDS:
                break
            pc = pc + decoded.size & _M64
            offset += decoded.size
        return found

    def _translate(self, regime: TranslatingRegime, instructions: list[tuple[int, Decoded]]) -> TranslatedBlock:
        first, (last, final) = instructions[0][0], instructions[-1]
        end = last + final.size & _M64
        block = TranslatedBlock(first, len(instructions), end)
        sites: list[Site] = []

        def new_site(kind: Kind, index: int, pc: int) -> tuple[int, Site]:
            site = Site(kind, block, index, pc)
            sites.append(site)
            return len(self.sites) + len(sites) - 1, site

        def chained(target: int) -> bool:
            return regime.chains_anywhere or target >> PAGE_SHIFT == first >> PAGE_SHIFT

        emitter = Emitter(regime.tables, new_site)
        emitter.floating = regime.floating
        emitter.pc = first
        emitter.begin(block.count)
        for index, (pc, decoded) in enumerate(instructions):
            emitter.index, emitter.pc = index, pc
            ending = ENDS.get(decoded.name)
            if ending is not None:
                ending(emitter, decoded, chained)
            elif (emit := EMIT.get(decoded.name)) is not None:
                emit(emitter, decoded)
            else:
                emitter.call()
        if final.name not in ENDS:
            emitter.go(x86.JMP, end, chained(end))
        emitter.finish()

        block.start = self._place(emitter, self._dispatcher(regime) if emitter.to_dispatch else 0)
        block.entry = self.buffer.address + block.start
        self.sites += sites
        for at, site in emitter.resumes:
            site.resume = block.entry + at
            pc, decoded = instructions[site.index]
            site.following = pc + decoded.size & _M64
        for site in sites:
            if site.kind is Kind.CALL:
                site.operation = self._interpreted(regime, instructions[site.index][1])
        for at, site in emitter.chains:
            site.place = block.start + at
        self.made += 1
        start = self._locate(regime, first)
        self._cover(start, start + (end - first & _M64), block.count)
        return block

    def _interpreted(self, regime: TranslatingRegime, decoded: Decoded) -> Operation:
        """What Python does for an instruction."""
        unit = self._hart.floating if decoded.name in FLOATING else self._hart.atomics
        return unit.operation(regime, decoded)

    # --- chaining ----------------------------------------------------------------------------------------------------
    def chain(self, site: Site, target: TranslatedBlock) -> None:
        """The jump that was left at `site` goes straight to `target` from now on."""
        writable = self.buffer
        stub = writable.target_of(site.place)
        writable.redirect(site.place, target.start)
        target.incoming.append((site.place, stub))
        self.chained += 1

    def _dropped(self, page: CodePage) -> None:
        """Nobody jumps straight to the blocks of a page any more."""
        for block in page.blocks.values():
            if isinstance(block, TranslatedBlock):
                for place, stub in block.incoming:
                    self.buffer.redirect(place, stub)
                block.incoming.clear()

    def forget(self) -> None:
        """As CodeCache; the buffer is empty again."""
        super().forget()
        self.buffer.reset(self._kept)
        self._start_sites()

    # --- who writes into code ----------------------------------------------------------------------------------------
    def note_store(self, offset: int, size: int) -> bool:
        """As CodeCache; the blocks of the page are unchained."""
        page = self._pages.get(offset >> PAGE_SHIFT)
        changed = super().note_store(offset, size)
        if changed and page is not None:
            self._dropped(page)
        return changed

    def _page(self, offset: int) -> CodePage:
        old, flushed = self._pages.get(offset >> PAGE_SHIFT), self.flushed
        page = super()._page(offset)
        if old is not None and old is not page and flushed == self.flushed:
            self._dropped(old)
        return page

    def fence(self) -> None:
        """FENCE.I: chained blocks do not come by here again, so pages are compared at once."""
        super().fence()
        for number, page in list(self._pages.items()):
            start = number << PAGE_SHIFT
            if page.bytes != self._space.ram8[start : start + PAGE_SIZE]:
                del self._pages[number]
                self._dropped(page)
                self.invalidated += 1

    def close(self) -> None:
        """Gives the buffer back."""
        self.buffer.close()


def _no_site(kind: Kind, _index: int, _pc: int) -> tuple[int, Site]:
    """The common routines are left nowhere."""
    raise AssertionError(kind)
