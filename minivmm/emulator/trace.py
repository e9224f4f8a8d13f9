"""What an engine does, told as it happens: instructions, blocks, look-ups, chains, exits, traps, flushes.

A hart that is traced is of a class of its own (`traced`), which adds the telling to what the engine's methods do; one
that is not has no trace of this in it. The interpreter tells each instruction with the registers it changed. Translated
code cannot be watched inside: it is entered for one block at a time, and the changes come with the block's last
instruction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, cast

from minivmm.emulator.assembly import ABI_NAMES, FLOATING_NAMES, disassemble, disassemble_word
from minivmm.emulator.code import Block, CodeCache
from minivmm.emulator.decoder import decode
from minivmm.emulator.hart import Hart
from minivmm.emulator.traps import Access, Cause, CodeChanged, Privilege, Trap
from minivmm.outcome import EndOfRun

if TYPE_CHECKING:
    from minivmm.emulator.mmu import Regime
    from minivmm.emulator.semantics import Operation

INSTRUCTIONS, BLOCKS, LOOKUPS, CHAINS, EXITS, TRAPS, FLUSHES = EVENTS = (
    *("instructions", "blocks", "lookups", "chains", "exits", "traps", "flushes"),
)
MEANINGS = {
    INSTRUCTIONS: "each instruction executed, and the registers it changed",
    BLOCKS: "blocks decoded or translated: guest instructions, bytes of host code, time",
    LOOKUPS: "blocks looked for: found, or to be made",
    CHAINS: "jumps made to go straight to their block",
    EXITS: "translated code left, and why",
    TRAPS: "exceptions, interrupts and system calls",
    FLUSHES: "code forgotten: overwritten, fence.i, no more room",
}
REGISTERS = ABI_NAMES + FLOATING_NAMES
_ECALL_FROM_U, _A0, _A7 = int(Cause.ECALL_FROM_U), 10, 17


class Event(NamedTuple):
    """Something that happened."""

    kind: str  # one of EVENTS
    at: int  # nanoseconds of the host's monotonic clock
    duration: int  # nanoseconds; 0 for a moment
    retired: int  # instructions executed before, as exactly as the engine knows within a block
    pc: int
    text: str  # for a person
    details: Mapping[str, int | str]


class Tracer(NamedTuple):
    """Who is told, and of what. `sink` is called on the thread that executes."""

    sink: Callable[[Event], None]
    events: frozenset[str] = frozenset(EVENTS)


def traced(kind: type[Hart], tracer: Tracer | None) -> type[Hart]:
    """The class of harts like `kind` that are traced; itself without a tracer."""
    if tracer is None:
        return kind
    from minivmm.emulator.translator.hart import TranslatingHart

    telling: type[TracedHart] = TracedHart
    if issubclass(kind, TranslatingHart):
        from minivmm.emulator.translator.trace import TracedTranslatingHart

        telling = TracedTranslatingHart
    return cast("type[Hart]", type(f"Traced{kind.__name__}", (telling, kind), {"tracer": tracer}))


class TracedHart(Hart):
    """What every engine's hart tells."""

    tracer: Tracer

    def tell(self, kind: str, pc: int, text: str, since: int = 0, **details: int | str) -> None:
        """An event that took from `since` (time.monotonic_ns) until now, or is of this moment."""
        if kind in self.tracer.events:
            now = time.monotonic_ns()
            self.tracer.sink(Event(kind, since or now, now - since if since else 0, self.retired, pc, text, details))

    def tell_instruction(self, retired: int, pc: int, text: str, changed: Mapping[str, int]) -> None:
        """An instruction that was executed after `retired` others."""
        if INSTRUCTIONS in self.tracer.events:
            shown = "  ".join(f"{name}={value:#x}" for name, value in changed.items())
            line = f"{text:<32} {shown}".rstrip()
            self.tracer.sink(Event(INSTRUCTIONS, time.monotonic_ns(), 0, retired, pc, line, changed))

    def _make_code(self) -> CodeCache:
        return TracedCode(self, self.space)

    def trap(self, pc: int, cause: int, tval: int = 0, *, interrupt: bool = False) -> None:
        """As Hart's."""
        number, mode = self.x[_A7], self.mode
        super().trap(pc, cause, tval, interrupt=interrupt)
        if cause == _ECALL_FROM_U and self.mode == mode:  # answered by vtk, not by a kernel
            self.tell(TRAPS, pc, f"system call {number}: {self.x[_A0]:#x}", number=number, result=self.x[_A0])
            return
        name = f"interrupt {cause}" if interrupt else Cause(cause).name.lower().replace("_", " ")
        to = Privilege(self.mode).name
        text = f"{name}, tval {tval:#x}: to {self.pc:#x} in {to}-mode"
        self.tell(TRAPS, pc, text, cause=name, tval=tval, handler=self.pc, mode=to)

    def registers(self) -> list[int]:
        """All of them, as their REGISTERS are named."""
        return [*self.x[: len(ABI_NAMES)], *self.floating.f]

    def changes(self, before: list[int]) -> dict[str, int]:
        """The registers that are not as before, by name."""
        now = self.registers()
        if now == before:
            return {}
        return {name: new for name, old, new in zip(REGISTERS, before, now, strict=True) if old != new}


class TracedCodes(CodeCache):
    """What every engine's cache of blocks tells."""

    @property
    def hart(self) -> TracedHart:
        """Whose it is."""
        return cast(TracedHart, self._hart)

    def find(self, regime: Regime, pc: int) -> Block:
        """As CodeCache's: it is called for what the regime does not know."""
        made = self.made
        block = super().find(regime, pc)
        found = "miss, made" if self.made > made else "miss, found again in its page"
        self.hart.tell(LOOKUPS, pc, found, result=found)
        return block

    def note_store(self, offset: int, size: int) -> bool:
        """As CodeCache's."""
        changed = super().note_store(offset, size)
        if changed:
            text = f"{size} bytes stored into decoded instructions: the page's blocks are dropped"
            self.hart.tell(FLUSHES, self.hart.pc, text, reason="store", offset=offset)
        return changed

    def fence(self) -> None:
        """As CodeCache's."""
        super().fence()
        self.hart.tell(FLUSHES, self.hart.pc, "fence.i: blocks are looked for again", reason="fence.i")

    def forget(self) -> None:
        """As CodeCache's."""
        super().forget()
        self.hart.tell(FLUSHES, self.hart.pc, "all blocks are forgotten", reason="full")


class TracedCode(TracedCodes):
    """Of the interpreter: its functions tell what they did."""

    def _make(self, regime: Regime, pc: int, offset: int, limit: int) -> Block:
        since = time.monotonic_ns()
        block = super()._make(regime, pc, offset, limit)
        text = f"decoded: {block.count} instructions, {pc:#x} to {block.end:#x}"
        self.hart.tell(BLOCKS, pc, text, since, instructions=block.count, end=block.end)
        if INSTRUCTIONS in self.hart.tracer.events:
            for index, address in enumerate(block.addresses):
                block.operations[index] = self._telling(regime, block.operations[index], address, index)
        if LOOKUPS in self.hart.tracer.events:
            block.operations[0] = self._looked_up(block.operations[0], pc)
        return block

    def _looked_up(self, operation: Operation, pc: int) -> Operation:
        """A block's first instruction, of which the first execution is no hit: that made the block."""
        hart, fresh = self.hart, True

        def execute() -> int | None:
            nonlocal fresh
            if not fresh:
                hart.tell(LOOKUPS, pc, "hit", result="hit")
            fresh = False
            return operation()

        return execute

    def _telling(self, regime: Regime, operation: Operation, pc: int, index: int) -> Operation:
        hart, text = self.hart, instruction_text(self.hart, pc, regime.fetch_mode)

        def execute() -> int | None:
            before = hart.registers()
            try:
                following = operation()
            except (CodeChanged, EndOfRun):
                hart.tell_instruction(hart.retired + index, pc, text, hart.changes(before))
                raise
            hart.tell_instruction(hart.retired + index, pc, text, hart.changes(before))
            return following

        return execute


def instruction_text(hart: Hart, pc: int, mode: int) -> str:
    """The instruction at an address, disassembled."""
    return _text_and_size(hart, pc, mode)[0]


def instruction_texts(hart: Hart, pc: int, mode: int, count: int) -> list[tuple[int, str]]:
    """Address and text of `count` instructions from an address on."""
    found = []
    for _ in range(count):
        text, size = _text_and_size(hart, pc, mode)
        found.append((pc, text))
        pc += size
    return found


def _text_and_size(hart: Hart, pc: int, mode: int) -> tuple[str, int]:
    parcels = []
    for address in (pc, pc + 2):
        try:
            at = hart.space.ram_offset(hart.mmu.translate(address, Access.FETCH, mode))
        except Trap:
            at = None
        parcels.append(0 if at is None else int(hart.space.ram16[at >> 1]))
    word = parcels[0] | parcels[1] << 16
    try:
        decoded = decode(word)
    except ValueError:  # IllegalInstruction
        return disassemble_word(word, pc), 2 if word & 3 != 3 else 4
    return disassemble(decoded, pc), decoded.size
