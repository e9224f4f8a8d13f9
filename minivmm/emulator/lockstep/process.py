"""A Linux program twice, interpreted and translated. What it asks of the host is done once, for both.

Whichever comes to a system call first makes it; what it gave - the result, the bytes it stored - is recorded and given
to the other one, and to both when the program is run again to look for a difference. Memory is mapped by each for
itself. Time is the number of instructions.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

from minivmm.emulator.lockstep.pair import Pair
from minivmm.emulator.lockstep.search import Lockstep, Mismatch
from minivmm.emulator.lockstep.sides import Digest, Piece
from minivmm.emulator.traps import Trap
from minivmm.emulator.user.abi import IOVEC, Map, SystemCall
from minivmm.emulator.user.calls import CALLS
from minivmm.emulator.user.calls.files import CHUNK, MAX_IOVECS
from minivmm.emulator.user.process import A0, Process
from minivmm.errors import ConfigError
from minivmm.memory import PAGE_SIZE
from minivmm.outcome import EndOfRun, Outcome, RunResult

STRIDE = 100_000
"""Instructions after which the two are compared."""
SEED = 5  # of the bytes that a program is started with
RECORD_LIMIT = 256 << 20  # bytes of what system calls gave; beyond, the run cannot be repeated

# What concerns the process alone, and each does for itself.
_OWN = {
    *(SystemCall.BRK, SystemCall.MUNMAP, SystemCall.MREMAP, SystemCall.MPROTECT, SystemCall.RT_SIGACTION),
    *(SystemCall.EXIT, SystemCall.EXIT_GROUP, SystemCall.KILL, SystemCall.TKILL, SystemCall.TGKILL),
}


class Made(NamedTuple):
    """A system call that was made."""

    number: int
    arguments: tuple[int, ...]
    stored: tuple[tuple[int, bytes], ...]
    """Address and bytes."""
    filled: tuple[tuple[int, bytes], ...]
    """The same, of a mapping of a file."""
    result: int
    end: EndOfRun | None
    """When the time was up meanwhile."""


class Record:
    """The system calls of a program, in order."""

    def __init__(self) -> None:
        self.made: dict[int, Made] = {}
        self.count = 0
        self._bytes = 0
        self.complete = True
        """Whether all of them are there."""

    def add(self, made: Made) -> None:
        """One more."""
        self.made[self.count] = made
        self.count += 1
        self._bytes += sum(len(data) for _, data in (*made.stored, *made.filled))
        if self._bytes > RECORD_LIMIT:
            self.complete = False
        if not self.complete:
            self.made.pop(self.count - 3, None)  # both are beyond it: they part by one call at most


class TwinProcess(Process):
    """One of two. `again`: makes no system call that is not recorded."""

    def __init__(
        self,
        program: str | Path,
        arguments: Sequence[str],
        environment: Sequence[str],
        root: str | Path | None,
        memory: int,
        quota: int,
        translate: bool,
        record: Record,
        again: bool,
    ) -> None:
        self._record, self._again = record, again
        self._random = random.Random(SEED)
        self._next = 0  # call
        self._stored: list[tuple[int, bytes]] = []
        self._filled: list[tuple[int, bytes]] = []
        self._calling = False
        self.written = Digest()
        """What it gave to write(2) and its like."""
        super().__init__(
            program,
            arguments,
            environment=environment,
            root=root,
            memory=memory,
            quota=quota,
            translate=translate,
        )

    def now(self) -> int:
        """As Process', in instructions."""
        return self.hart.retired

    def random(self, count: int) -> bytes:
        """As Process', the same for both."""
        return self._random.randbytes(count)

    def store(self, address: int, data: bytes) -> None:
        """As Process'."""
        super().store(address, data)
        self._stored.append((address, data))

    def fill(self, address: int, data: bytes) -> None:
        """As Process'."""
        super().fill(address, data)
        self._filled.append((address, data))

    def look_at_the_clock(self) -> None:
        """As Process'; between calls, whoever drives the two does."""
        if self._calling:
            super().look_at_the_clock()

    def call(self, number: int) -> int:
        """As Process'; what has been made already is not made again."""
        self.hart.attend()  # nothing is executed beyond it before the two are at the same place
        count = CALLS.get(number, (None, 0))[1]
        arguments = tuple(self.hart.x[A0 : A0 + count])
        self._note_written(number, arguments)
        index, self._next = self._next, self._next + 1
        if index < self._record.count:
            return self._repeat(self._record.made[index], number, arguments)
        if self._again:
            raise EndOfRun(Outcome.INTERRUPTED, "beyond the system calls that were recorded")
        self._stored, self._filled, self._calling = [], [], True
        result, ended = 0, None
        try:
            result = super().call(number)
        except EndOfRun as end:
            ended = end
            raise
        finally:
            self._calling = False
            made = Made(number, arguments, tuple(self._stored), tuple(self._filled), result, ended)
            self._record.add(made)
        return result

    def _repeat(self, made: Made, number: int, arguments: tuple[int, ...]) -> int:
        if (number, arguments) != (made.number, made.arguments):
            raise EndOfRun(Outcome.CRASHED, f"system call {number}{arguments}, not {made.number}{made.arguments}")
        if number in _OWN:
            return super().call(number)
        if made.end is not None:
            raise made.end
        self.calls.count(SystemCall(number).name.lower()) if number in CALLS else self.unknown.count(str(number))
        if number == SystemCall.MMAP and made.result >= 0:
            address, length, prot, flags, _, _ = arguments
            result: int = CALLS[number][0](self, address, length, prot, flags | Map.ANONYMOUS, 0, 0)
            for at, data in made.filled:
                super().fill(at, data)
            return result
        for address, data in made.stored:
            super().store(address, data)
        return made.result

    def _note_written(self, number: int, arguments: tuple[int, ...]) -> None:
        """What a call would write."""
        try:
            if number in (SystemCall.WRITE, SystemCall.PWRITE64):
                self.written.add(self.memory.read(arguments[1], min(arguments[2], CHUNK)))
            elif number == SystemCall.WRITEV:
                vector = self.memory.read(arguments[1], IOVEC.size * min(arguments[2], MAX_IOVECS))
                for base, length in IOVEC.iter_unpack(vector):
                    self.written.add(self.memory.read(base, min(length, CHUNK)))
        except Trap:
            self.written.add(b"?")  # EFAULT, for both


class ProcessSide:
    """One of the two, as it is compared."""

    def __init__(self, process: TwinProcess, name: str) -> None:
        self.name = name
        self.process = process
        self.hart = process.hart

    def look(self) -> bool:
        """As Side's: a program has no interrupts."""
        return True

    def idle(self, longest: float) -> None:
        """As Side's: never."""

    def output(self) -> tuple[int, bytes]:
        """As Side's."""
        return self.process.written.value()

    def memory(self) -> dict[int, Piece]:
        """As Side's: the pages it has touched."""
        ram = self.process.space.ram.host_address
        return {address: Piece(ram + at, PAGE_SIZE) for address, at in self.process.memory.pages().items()}

    def read(self, address: int, size: int) -> bytes:
        """As Side's; within a page."""
        frame = self.process.memory.frame(address)
        if frame is None:
            return bytes(size)
        at = frame + (address & PAGE_SIZE - 1)
        return bytes(self.process.space.ram8[at : at + size])

    def fetch(self, address: int, mode: int) -> int:  # noqa: ARG002
        """As Side's."""
        return int.from_bytes(self.read(address, 2) + self.read(address + 2, 2), "little")

    def send(self, data: bytes) -> None:
        """As Side's: input is read by system calls."""

    def close(self) -> None:
        """As Side's."""
        self.process.close()


class LockstepProcess:
    """As Process; the run ends as DIVERGED when the two engines do not do the same, and says where."""

    def __init__(
        self,
        program: str | Path,
        arguments: Sequence[str] = (),
        *,
        environment: Sequence[str] = (),
        root: str | Path | None = None,
        memory: int = 1 << 30,
        quota: int = 1 << 30,
        stride: int = STRIDE,
    ) -> None:
        if stride < 1:
            raise ConfigError(f"a stride of {stride} instructions cannot be", cause="the least is 1: every block")
        self._program, self._arguments, self._environment = program, tuple(arguments), tuple(environment)
        self._root, self._memory, self._quota, self._stride = root, memory, quota, stride
        self._record = Record()
        pair = self._make(False)
        self._lockstep = Lockstep(self._make, pair)
        self.process = self._processes(pair)[0]
        """The interpreted one."""
        self.files = self.process.files
        self.unknown = self.process.unknown

    def _make(self, again: bool) -> Pair:
        sides = []
        with contextlib.ExitStack() as undo:
            for translate in (False, True):
                process = TwinProcess(
                    self._program,
                    self._arguments,
                    self._environment,
                    None if again or translate else self._root,
                    self._memory,
                    self._quota,
                    translate,
                    self._record,
                    again,
                )
                undo.callback(process.close)
                sides.append(ProcessSide(process, "translate" if translate else "interpret"))
            undo.pop_all()
        sides[1].process.files = sides[0].process.files  # for whichever comes to a system call first
        return Pair(sides[0], sides[1], self._stride, lambda _: b"")

    def _processes(self, pair: Pair) -> list[TwinProcess]:
        return [side.process for side in pair.sides if isinstance(side, ProcessSide)]

    def run(self, timeout: float | None = None) -> RunResult:
        """As Process'."""
        processes = self._processes(self._lockstep.pair)
        started = min(process.begin(timeout) for process in processes)
        deadline = self.process.deadline
        dump = ""
        try:
            found = self._lockstep.run(lambda: time.monotonic() < deadline, lambda: self._record.complete)
            if isinstance(found, Mismatch):
                end, dump = EndOfRun(Outcome.DIVERGED, found.detail), found.dump
            else:
                end = found or EndOfRun(Outcome.DEADLINE, f"still running after {timeout:g} seconds")
        except KeyboardInterrupt:
            end = EndOfRun(Outcome.INTERRUPTED, "interrupted from the keyboard")
        return RunResult(end.outcome, end.detail, end.code, seconds=time.monotonic() - started, dump=dump)

    @property
    def figures(self) -> dict[str, int]:
        """What was executed and how often it was compared."""
        hart = self.process.hart
        return {"instructions": hart.retired, "system calls": hart.traps} | self._lockstep.figures

    def close(self) -> None:
        """Gives everything back."""
        self._lockstep.pair.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
