"""Translated code: blocks of RISC-V as x86-64 in a bounded buffer, found, chained, forgotten when their page changes.

What is translated is what the interpreter decodes (emulator.code): a run of instructions of one page up to a jump. What
cannot be - fetches that fault, illegal instructions, instructions across two pages - stays a decoded block, which the
hart interprets.

A jump to a known address is chained, so that it goes straight to the other block, where the guest cannot change what is
there without our knowing: in the same page, or anywhere as long as addresses are physical. Others go through the jump
cache of their regime, which is emptied whenever translations may have changed.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from minivmm.emulator.code import MAX_BLOCK, Block, CodeCache, CodePage
from minivmm.emulator.decoder import Decoded, IllegalInstruction
from minivmm.emulator.physical import PAGE_SHIFT, AddressSpace
from minivmm.emulator.semantics import CONDITIONS
from minivmm.emulator.system import SYSTEM
from minivmm.emulator.translator import sse, x86
from minivmm.emulator.translator.buffer import CodeBuffer
from minivmm.emulator.translator.emit import EMIT, ENDS, end_turn
from minivmm.emulator.translator.emit_atomics import ATOMICS
from minivmm.emulator.translator.emit_floating import FLOATING
from minivmm.emulator.translator.emit_system import is_storage, system
from minivmm.emulator.translator.emitter import Emitter, Host
from minivmm.emulator.translator.places import PLACES
from minivmm.emulator.translator.registers import BUDGET_REGISTER, HOST, SAVED, STATE, slot
from minivmm.emulator.translator.routines import ROUTINES
from minivmm.emulator.translator.sites import Kind, Site
from minivmm.emulator.translator.state import BUDGET, HOST_MXCSR, MXCSR, RBP_OFFSET
from minivmm.emulator.translator.walk import MISSES
from minivmm.emulator.translator.x86 import Reg
from minivmm.emulator.traps import Trap
from minivmm.memory import PAGE_SIZE

if TYPE_CHECKING:
    from minivmm.emulator.mmu import Regime
    from minivmm.emulator.translator.hart import TranslatingHart
    from minivmm.emulator.translator.mmu import TranslatingRegime

BLOCK_ROOM = 64 << 10  # bytes: more than the longest block can need
MAX_TURNS = 4
MAX_UNROLLED = 48  # instructions
_M64 = (1 << 64) - 1
_OFFSET_MASK = PAGE_SIZE - 1
_EMIT = EMIT | ATOMICS | FLOATING
_ROUTINES = ROUTINES | MISSES | PLACES


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


class _MarkedPages(dict[int, CodePage]):
    """Pages by number; translated code sees from `marks` which there are."""

    def __init__(self, marks: ctypes.Array[ctypes.c_ubyte]) -> None:
        super().__init__()
        self._marks = marks

    def __setitem__(self, number: int, page: CodePage) -> None:
        super().__setitem__(number, page)
        self._marks[number] = 1

    def __delitem__(self, number: int) -> None:
        super().__delitem__(number)
        self._marks[number] = 0

    def clear(self) -> None:
        """All of them."""
        super().clear()
        ctypes.memset(self._marks, 0, ctypes.sizeof(self._marks))


class TranslatedCode(CodeCache):
    """Finds, makes and chains blocks for one hart."""

    def __init__(self, hart: TranslatingHart, space: AddressSpace, size: int) -> None:
        super().__init__(hart, space)
        self.buffer = CodeBuffer(size)
        self.sites: list[Site] = []
        """By number."""
        self.chained = 0
        """Jumps that were made to go straight to their block."""
        self.translated_bytes = 0
        """Machine code made so far."""
        self.unrolls = True
        """Whether a block may be several turns of a loop."""
        self._delivers = hart.delivers
        self._state = hart.state
        self._new_place = _no_place if hart.delivers else hart.state.place
        marks = (ctypes.c_ubyte * (space.ram.size >> PAGE_SHIFT))()
        self._pages = _MarkedPages(marks)
        self._host = Host(space.ram.host_address, space.ram.size, ctypes.addressof(marks))
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
        self._routines: dict[tuple[TranslatingRegime, str], int] = {}

    def _emitter(self, regime: TranslatingRegime, block: TranslatedBlock) -> Emitter:
        def new_site(kind: Kind, index: int, pc: int) -> tuple[int, Site]:
            site = Site(kind, regime, block, index, pc)
            self.sites.append(site)
            return len(self.sites) - 1, site

        return Emitter(regime, new_site, self._new_place, self._host, self._delivers)

    def _routine(self, regime: TranslatingRegime, name: str) -> int:
        """Where a routine of a regime is in the buffer."""
        found = self._routines.get((regime, name))
        if found is None:
            emitter = self._emitter(regime, TranslatedBlock(0, 0, 0))
            _ROUTINES[name](emitter)
            found = self._routines[regime, name] = self._place(emitter)
        return found

    def _place(self, emitter: Emitter) -> int:
        """Puts finished code into the buffer; its jumps to the common routines find them."""
        start = self.buffer.append(emitter.code)
        for place in emitter.to_exit:
            self.buffer.redirect(start + place, self._exit)
        for place, name, regime in emitter.to_routines:
            self.buffer.redirect(start + place, self._routine(regime, name))
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
        return self._translate(regime, instructions, offset)  # type: ignore[arg-type]

    def _gather(self, regime: Regime, pc: int, offset: int, limit: int) -> list[tuple[int, Decoded]]:
        """The instructions to translate from `pc`, at `offset` in RAM; none when the first one is to be interpreted."""
        found: list[tuple[int, Decoded]] = []
        page_end = (offset | _OFFSET_MASK) + 1
        while len(found) < limit and offset < page_end:
            try:
                decoded = self.decode(regime, pc, offset, page_end)
            except (Trap, IllegalInstruction):
                break
            if offset + decoded.size > page_end:
                break
            found.append((pc, decoded))
            if decoded.name in ENDS or (decoded.name in SYSTEM and not is_storage(decoded, regime.fetch_mode)):
                break
            pc = pc + decoded.size & _M64
            offset += decoded.size
        return found

    def _translate(
        self, regime: TranslatingRegime, instructions: list[tuple[int, Decoded]], offset: int
    ) -> TranslatedBlock:
        """The machine code of instructions that are at `offset` in RAM."""
        first, (last, final) = instructions[0][0], instructions[-1]
        end = last + final.size & _M64
        turns = self._turns(instructions)
        block = TranslatedBlock(first, len(instructions) * turns, end)

        def chained(target: int) -> bool:
            return regime.chains_anywhere or target >> PAGE_SHIFT == first >> PAGE_SHIFT

        emitter = self._emitter(regime, block)
        emitter.pc = first
        emitter.begin(block.count)
        for index, (pc, decoded) in enumerate(instructions * turns):
            emitter.index, emitter.pc = index, pc
            ending = ENDS.get(decoded.name)
            if ending is not None and index < block.count - 1:
                end_turn(emitter, decoded)
            elif ending is not None:
                ending(emitter, decoded, chained)
            elif decoded.name in SYSTEM:
                system(emitter, decoded, chained)
            else:
                _EMIT[decoded.name](emitter, decoded)
        if final.name not in ENDS and (final.name not in SYSTEM or is_storage(final, regime.fetch_mode)):
            emitter.go(x86.JMP, end, chained(end))
        emitter.finish()

        block.start = self._place(emitter)
        block.entry = self.buffer.address + block.start
        for at, site in emitter.resumes:
            site.resume = block.entry + at
            pc, decoded = instructions[site.index % len(instructions)]
            site.following = pc + decoded.size & _M64
        for at, site in emitter.chains:
            site.place = block.start + at
        self.made += 1
        self._cover(offset, offset + (end - first & _M64), len(instructions))
        return block

    def _turns(self, instructions: list[tuple[int, Decoded]]) -> int:
        """How many turns of a loop become one block: budgeted for at once, which counts where turns are short."""
        (first, _), (last, final) = instructions[0], instructions[-1]
        if not self.unrolls or self.longest < MAX_BLOCK or final.name not in CONDITIONS or last + final.imm != first:
            return 1
        if last + final.size >> PAGE_SHIFT != first >> PAGE_SHIFT:  # a way out would leave the page
            return 1
        return max(min(MAX_TURNS, MAX_UNROLLED // len(instructions)), 1)

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
        self.sites.clear()
        self._routines.clear()
        self._state.forget_places()

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


def _no_place() -> None:
    """As State.place: every load and store looks into the TLB."""
