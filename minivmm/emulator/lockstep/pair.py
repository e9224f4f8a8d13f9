"""Two sides driven to the same places.

A place is a number of instructions retired and traps taken. The first side goes on; the second follows, and whichever
is behind catches up until both stand at the same place: engines execute whole blocks, and theirs need not be the same.
Interrupts are looked at only there, so that both take one at the same instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from minivmm.emulator.csr_table import Interrupt
from minivmm.emulator.lockstep.sides import Side, differing_words
from minivmm.outcome import EndOfRun

CATCH_UPS = 200  # until two sides that never stand at the same place are told to differ
IDLE = 0.1  # seconds that both wait before the caller looks whether to go on
WORD = 8
SOFTWARE = int(Interrupt.SSI).bit_length() - 1  # the interrupt that an instruction alone can raise


class Difference(NamedTuple):
    """Something that is not the same: a register, CSR or place in memory by name, and what each side has."""

    name: str
    first: str
    second: str


class Pair:
    """Two sides at the same place. `stride`: instructions after which interrupts are looked at."""

    def __init__(
        self, first: Side, second: Side, stride: int, take_input: Callable[[int], bytes], idle: float = IDLE
    ) -> None:
        self.sides = (first, second)
        self._stride = stride
        self._take_input = take_input
        self._idle = idle
        self.looks = 0
        """How often interrupts were looked at; while both wait for one, that is once."""
        self._looked_at = 0  # instructions retired then
        self._attended = -1
        self.ends: list[EndOfRun | None] = [None, None]
        """How each ended, when it did."""

    @property
    def retired(self) -> int:
        """Instructions, of the first side."""
        return self.sides[0].hart.retired

    @property
    def position(self) -> tuple[int, int, int]:
        """How far the first side is: the same in every run of the same guest with the same input."""
        hart = self.sides[0].hart
        return hart.retired, hart.traps, self.looks

    @property
    def ended(self) -> bool:
        """Whether one of them has ended."""
        return self.ends != [None, None]

    # --- going on ----------------------------------------------------------------------------------------------------
    def prepare(self) -> bool:
        """Looks at interrupts when that is due. False while both wait for one, or when that was the end."""
        hart = self.sides[0].hart
        if hart.waiting or hart.attended != self._attended or hart.retired - self._looked_at >= self._stride:
            return self._look()
        return True

    def advance(self, count: int | None = None) -> None:
        """Prepares; then `count` instructions, or as many as there are until interrupts are looked at again: more to
        the end of a block, fewer when the first side attends to something or ends."""
        if self.prepare():
            left = self._stride - (self.retired - self._looked_at)
            self._go(0, left if count is None else min(count, left))
            self._meet()

    def _look(self) -> bool:
        data = self._take_input(self.looks)
        waited = self.sides[0].hart.waiting
        running = []
        for index, side in enumerate(self.sides):
            try:
                if data:
                    side.send(data)
                running.append(side.look())
                if not running[-1]:
                    side.idle(0.0 if index else self._idle)
            except EndOfRun as end:
                self.ends[index] = end
        if data or not waited or any(running):
            self.looks += 1
        self._looked_at, self._attended = self.retired, self.sides[0].hart.attended
        return all(running) and not self.ended

    def _go(self, index: int, count: int) -> None:
        try:
            self.sides[index].hart.execute(count)
        except EndOfRun as end:
            self.ends[index] = end

    def _meet(self) -> None:
        """Whoever is behind catches up; one that has ended cannot."""
        first, second = (side.hart for side in self.sides)
        for _ in range(CATCH_UPS):
            ours, theirs = (first.retired, first.traps), (second.retired, second.traps)
            behind = 0 if ours < theirs else 1
            if ours == theirs or self.ends[behind] is not None:
                return
            hart = self.sides[behind].hart
            if ours[1] != theirs[1] and hart.pending_interrupt() == SOFTWARE:
                self.sides[behind].look()  # the other's engine has taken what its own instruction let in
            else:
                self._go(behind, max(abs(ours[0] - theirs[0]), 1))

    # --- comparing ---------------------------------------------------------------------------------------------------
    def differences(self, watched: Sequence[int] = ()) -> list[Difference]:
        """Of the harts' state, their output, how they ended, and the words of memory at `watched`."""
        first, second = self.sides
        ours, theirs = first.hart.architectural_state(), second.hart.architectural_state()
        found = []
        if ours != theirs:
            names = [name for name in ours if ours[name] != theirs.get(name)]
            found += [Difference(name, _number(name, ours[name]), _number(name, theirs[name])) for name in names]
        if first.output() != second.output():
            counts = [f"{side.output()[0]} bytes" for side in self.sides]
            found.append(Difference("output", *(counts if counts[0] != counts[1] else ["other bytes"] * 2)))
        ends = [_end(end) for end in self.ends]
        if ends[0] != ends[1]:
            found.append(Difference("end", *ends))
        for address in watched:
            words = [side.read(address, WORD) for side in self.sides]
            if words[0] != words[1]:
                found.append(_memory(address, words))
        return found

    def memory_differences(self) -> dict[int, Difference]:
        """The words of memory that differ, by address."""
        first, second = self.sides
        addresses = differing_words(first.memory(), second.memory())
        return {address: _memory(address, [side.read(address, WORD) for side in self.sides]) for address in addresses}

    def close(self) -> None:
        """Gives both back."""
        for side in self.sides:
            side.close()


def _number(name: str, value: int) -> str:
    return str(value) if name in ("retired", "traps", "mode", "waiting", "reservation") else f"{value:#x}"


def _end(end: EndOfRun | None) -> str:
    if end is None:
        return "goes on"
    return f"{end.outcome.value}: {end.detail}" if end.detail else end.outcome.value


def _memory(address: int, words: Sequence[bytes]) -> Difference:
    values = [f"{int.from_bytes(word, 'little'):#018x}" for word in words]
    return Difference(f"[{address:#x}]", *values)
