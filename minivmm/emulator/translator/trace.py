"""What translated code tells (emulator.trace): blocks made, chained, left, dropped; executed a block at a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from minivmm.emulator.code import Block, CodeCache, CodePage
from minivmm.emulator.decoder import Decoded
from minivmm.emulator.physical import AddressSpace
from minivmm.emulator.trace import (
    BLOCKS,
    CHAINS,
    EXITS,
    FLUSHES,
    INSTRUCTIONS,
    LOOKUPS,
    TRAPS,
    TracedCodes,
    TracedHart,
    instruction_texts,
)
from minivmm.emulator.translator.code import TranslatedBlock, TranslatedCode
from minivmm.emulator.translator.hart import TranslatingHart
from minivmm.emulator.translator.sites import Kind, Site

if TYPE_CHECKING:
    from minivmm.emulator.translator.mmu import TranslatingRegime

REASONS = {
    Kind.BUDGET: "no budget for the block",
    Kind.LOAD: "a load Python must do",
    Kind.STORE: "a store Python must do",
    Kind.ATOMIC: "an atomic Python must do",
    Kind.CALL: "an instruction Python executes",
    Kind.SYSTEM: "an instruction Python executes, which ends the block",
    Kind.ATTEND: "an interrupt may have been let in",
    Kind.CHAIN: "a jump not followed before",
    Kind.JUMP: "a jump to an address not in the jump cache",
}


class TracedTranslatingHart(TracedHart, TranslatingHart):
    """A hart that translates, and tells."""

    def _make_code(self) -> CodeCache:
        self.delivers = self.delivers and not self.tracer.events & {INSTRUCTIONS, TRAPS}
        return TracedTranslatedCode(self, self.space, self.buffer_size)

    told = -1
    """The address that has just been told to be looked for."""

    def _find(self, pc: int) -> Block | TranslatedBlock:
        if pc in self.regime.blocks and pc != self.told:
            self.tell(LOOKUPS, pc, "hit", result="hit")
        self.told = -1
        return super()._find(pc)

    def execute(self, count: int) -> None:
        """As Hart's; a block at a time where its instructions are to be told."""
        if INSTRUCTIONS not in self.tracer.events:
            super().execute(count)
            return
        end, attended = self.retired + count, self.attended
        while self.retired < end and self.attended == attended:
            pc, mode, before, retired = self.pc, self.regime.fetch_mode, self.registers(), self.retired
            known = self._find(pc)
            self.told = pc
            texts = instruction_texts(self, pc, mode, known.count)  # now: it may overwrite itself
            try:
                super().execute(known.count or 1)
            finally:
                executed = texts[: self.retired - retired]
                for index, (address, text) in enumerate(executed):
                    changed = self.changes(before) if index == len(executed) - 1 else {}
                    self.tell_instruction(retired + index, address, text, changed)


class TracedTranslatedCode(TracedCodes, TranslatedCode):
    """Translated code, told of."""

    def __init__(self, hart: TracedTranslatingHart, space: AddressSpace, size: int) -> None:
        super().__init__(hart, space, size)
        self.unrolls = False  # a block is told as the instructions it has in memory
        enter, state = self.enter, hart.state

        def enter_and_tell(state_address: int, address: int) -> None:
            enter(state_address, address)
            site = self.sites[state.site[0]]
            kind = site.kind
            if kind is Kind.BUDGET and INSTRUCTIONS in hart.tracer.events:
                return  # because it was asked for one block
            pc = state.target[0] if kind is Kind.JUMP else site.pc
            details = {"address": state.fault[0]} if kind in (Kind.LOAD, Kind.STORE, Kind.ATOMIC) else {}
            hart.tell(EXITS, pc, f"left: {REASONS[kind]}", reason=kind.name.lower(), **details)

        self.enter = enter_and_tell

    def _translate(
        self, regime: TranslatingRegime, instructions: list[tuple[int, Decoded]], offset: int
    ) -> TranslatedBlock:
        since, size = time.monotonic_ns(), self.translated_bytes
        block = super()._translate(regime, instructions, offset)
        size = self.translated_bytes - size
        spent = time.monotonic_ns() - since
        self.hart.tell(
            BLOCKS,
            block.pc,
            f"translated: {block.count} instructions, {block.pc:#x} to {block.end:#x}, "
            f"into {size} bytes at {block.entry:#x}, in {spent // 1000} us",
            since,
            instructions=block.count,
            end=block.end,
            bytes=size,
            host=block.entry,
            microseconds=spent // 1000,
        )
        return block

    def chain(self, site: Site, target: TranslatedBlock) -> None:
        """As TranslatedCode's."""
        super().chain(site, target)
        text = f"chained: the jump at {site.pc:#x} goes straight to the block at {target.pc:#x}"
        self.hart.tell(CHAINS, site.pc, text, target=target.pc)

    def _dropped(self, page: CodePage) -> None:
        blocks: list[object] = list(page.blocks.values())
        chained = sum(len(block.incoming) for block in blocks if isinstance(block, TranslatedBlock))
        super()._dropped(page)
        text = f"dropped: a page's {len(blocks)} blocks, {chained} chained jumps turned back"
        self.hart.tell(FLUSHES, self.hart.pc, text, reason="dropped", blocks=len(blocks), unchained=chained)
