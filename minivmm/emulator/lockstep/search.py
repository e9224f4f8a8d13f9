"""From "they differ by now" to the first instruction after which they do.

Comparing costs more than executing, so two sides run on for a while before they are compared. When they differ then,
the guest is run again from its start - it repeats itself exactly - to the last place where all was the same, and from
there on compared after each block; then again, and compared after each instruction of that block. What only goes wrong
when instructions are translated together is found by making the block longer, one run each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from minivmm.emulator.assembly import disassemble_word
from minivmm.emulator.code import MAX_BLOCK
from minivmm.emulator.decoder import is_compressed
from minivmm.emulator.lockstep.pair import Difference, Pair
from minivmm.outcome import EndOfRun

MEMORY_STRIDE = 1_000_000  # instructions between two comparisons of all memory
MEMORY_SEARCHES = 3  # for the store by which memory came to differ
SHOWN = 12  # differences in a report

Position = tuple[int, int, int]
Going = Callable[[], bool]
"""Whether there is time, and a wish, to go on."""


class Mismatch(NamedTuple):
    """The first difference, as close as it was found."""

    retired: int
    """Instructions that both executed before, with the same effect."""
    pc: int
    where: str
    """What it is that has not the same effect: an instruction, or what could not be looked at more closely."""
    block: tuple[str, ...]
    """The instructions of the block, disassembled."""
    differences: tuple[Difference, ...]
    names: tuple[str, str]

    @property
    def detail(self) -> str:
        """One line."""
        difference = self.differences[0]
        values = (
            f"{value} under {name}"
            for name, value in zip(self.names, (difference.first, difference.second), strict=True)
        )
        return f"after {self.retired:,} instructions, {self.where}: {difference.name} is {' and '.join(values)}"

    @property
    def dump(self) -> str:
        """The block and all differences, for a person."""
        lines = [f"{'':<22}{self.names[0]:<20}{self.names[1]}"]
        lines += [f"{name:<22}{first:<20}{second}" for name, first, second in self.differences[:SHOWN]]
        if len(self.differences) > SHOWN:
            lines.append(f"and {len(self.differences) - SHOWN} more")
        return "\n".join([*self.block, *lines])


class _FoundBlock(NamedTuple):
    """A block after which something differs."""

    agreed: Position
    """Where all was the same, and a stride began."""
    start: Position
    place: tuple[int, int, int]
    """Its address, the mode it is fetched in, and its instructions."""
    memory: tuple[int, ...]
    """Words of memory that differ behind it."""
    mismatch: Mismatch


class Lockstep:
    """Runs a guest twice. `make` makes two sides at its start: afresh, or again (True), with the input of before."""

    def __init__(self, make: Callable[[bool], Pair], pair: Pair) -> None:
        self._make = make
        self.pair = pair
        self._compared = self._memory_compared = 0

    @property
    def figures(self) -> dict[str, int]:
        """How often the two were compared."""
        return {"compared": self._compared, "memory_compared": self._memory_compared}

    def run(self, going: Going, repeatable: Going = lambda: True) -> EndOfRun | Mismatch | None:
        """To the guest's end, or to the first difference; None when it was not to go on."""
        pair = self.pair
        agreed, compare_memory_at = pair.position, MEMORY_STRIDE
        while going():
            before = pair.position
            pair.advance()
            if pair.position == before and not pair.ended:
                continue  # both wait
            self._compared += 1
            differences = pair.differences()
            memory: dict[int, Difference] = {}
            if differences or pair.ended or pair.retired >= compare_memory_at:
                self._memory_compared += 1
                memory = pair.memory_differences()
                compare_memory_at = pair.retired + MEMORY_STRIDE
                if not differences and not memory:
                    agreed = pair.position
            if differences or memory:
                found = [*differences, *memory.values()]
                return self._search(going if repeatable() else _never, agreed, pair, found, tuple(memory))
            if pair.ended:
                return pair.ends[0]
        return None

    # --- running it again --------------------------------------------------------------------------------------------
    def _search(
        self, going: Going, agreed: Position, pair: Pair, differences: list[Difference], watched: Sequence[int]
    ) -> Mismatch:
        names = pair.sides[0].name, pair.sides[1].name
        end = pair.retired
        hart = pair.sides[0].hart
        coarse = Mismatch(
            agreed[0], hart.pc, f"in one of the {end - agreed[0]:,} that followed", (), tuple(differences), names
        )
        if not going():
            return coarse
        block = self._search_blocks(going, agreed, end, watched)
        # A wrong store shows when it is loaded from, or not at all. So what differs in memory by then is watched, too.
        for _ in range(MEMORY_SEARCHES):
            if block is None or set(block.memory) <= set(watched):
                break
            watched = (*watched, *block.memory)
            block = self._search_blocks(going, agreed, end, watched) or block
        if block is None:
            return coarse
        return self._search_instruction(going, (block.agreed, block.start), block, watched) or block.mismatch

    def _search_strides(self, going: Going, agreed: Position, watched: Sequence[int]) -> Position:
        """The last place between strides where all is the same."""
        pair = self._again(going, (agreed,))
        try:
            while going() and not pair.ended:
                pair.advance()
                if pair.differences(watched):
                    break
                agreed = pair.position
        finally:
            pair.close()
        return agreed

    def _search_blocks(self, going: Going, agreed: Position, end: int, watched: Sequence[int]) -> _FoundBlock | None:
        """The first block after which something differs."""
        agreed = self._search_strides(going, agreed, watched)
        pair = self._again(going, (agreed,))
        try:
            while going() and pair.retired <= end and not pair.ended:
                start = pair.position
                pair.prepare()
                pc, mode, before = pair.sides[0].hart.pc, pair.sides[0].hart.mode, pair.position
                pair.advance(1)
                differences = pair.differences(watched)
                if differences:
                    # Where the first one trapped, the instruction that did is not among those retired.
                    length = max(sum(pair.position[:2]) - sum(before[:2]), 1)
                    place = pc, mode, length
                    mismatch = self._told(pair, start, place, differences, None)
                    return _FoundBlock(agreed, start, place, tuple(pair.memory_differences()), mismatch)
        finally:
            pair.close()
        return None

    def _search_instruction(
        self, going: Going, to: tuple[Position, Position], block: _FoundBlock, watched: Sequence[int]
    ) -> Mismatch | None:
        """The instruction in the block that begins at `to`; None when it cannot be told."""
        place, length = block.place, block.place[2]
        pair = self._again(going, to)
        try:
            _limit_blocks(pair, 1)
            for index in range(min(length, MAX_BLOCK)):
                start = pair.position
                pair.prepare()
                pc = pair.sides[0].hart.pc
                pair.advance(1)
                differences = pair.differences(watched)
                if differences:
                    return self._told(pair, start, place, differences, (index, pc))
        finally:
            pair.close()
        low, high = 1, length  # blocks of `low` instructions do the same, of `high` do not
        last: Mismatch | None = None
        while high - low > 0 and going():
            middle = (low + high) // 2 if high - low > 1 else high
            pair = self._again(going, to)
            try:
                start = pair.position
                _limit_blocks(pair, middle)
                pair.advance(1)
                differences = pair.differences(watched)
                if differences:
                    last = self._told(pair, start, place, differences, (middle - 1, None))
                    if middle == high:
                        return last
                    high = middle
                elif middle == high:
                    return last
                else:
                    low = middle
            finally:
                pair.close()
        return last

    def _again(self, going: Going, to: Sequence[Position]) -> Pair:
        """A pair at a place: the first one by strides, the next ones by blocks."""
        pair = self._make(True)
        for index, position in enumerate(to):
            while pair.position < position and not pair.ended and going():
                pair.advance(1 if index else None)
        return pair

    def _told(
        self,
        pair: Pair,
        start: Position,
        place: tuple[int, int, int],
        differences: list[Difference],
        culprit: tuple[int, int | None] | None,
    ) -> Mismatch:
        """place: as _FoundBlock's. culprit: the index of the instruction, and its address when
        it was executed by itself."""
        first, second = pair.sides
        address, mode, length = place
        listing, culprit_pc, text, retired = [], address, "", start[0]
        for index in range(min(length, MAX_BLOCK)):
            word = first.fetch(address, mode)
            line = disassemble_word(word, address)
            mark = " "
            if culprit is not None and culprit == (index, culprit[1]):
                mark, culprit_pc, text = ">", address, line
            listing.append(f"{mark} {address:#x}  {line}")
            address += 2 if is_compressed(word) else 4
        if culprit is None:
            where = f"in the block of {length} at {place[0]:#x}"
        elif culprit[1] is None:
            retired += culprit[0]
            where = f"{text} at {culprit_pc:#x}, together with those before it in its block"
        else:
            where = f"{text} at {culprit_pc:#x}"
        names = first.name, second.name
        return Mismatch(retired, culprit_pc, where, tuple(listing), tuple(differences), names)


def _never() -> bool:
    return False


def _limit_blocks(pair: Pair, instructions: int) -> None:
    """What was decoded and translated is made anew, in blocks of so many instructions at most."""
    for side in pair.sides:
        side.hart.code.longest = instructions
        side.hart.code.forget()
