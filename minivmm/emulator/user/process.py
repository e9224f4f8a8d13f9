"""One Linux program for riscv64, statically linked, on an emulated hart: no kernel below it, only system calls here.

The hart is in U-mode and its addresses are looked up in the process' own mappings (memory.py). An ecall is a system
call (calls.py); any other exception is the signal that Linux would send, and ends the program. There is one thread, and
signal handlers are remembered but never called.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import stat
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minivmm.boot.elf import EM_RISCV, Elf
from minivmm.emulator.csr_table import Status
from minivmm.emulator.hart import Hart
from minivmm.emulator.mmu import Mmu
from minivmm.emulator.physical import RAM_BASE, AddressSpace, Ram
from minivmm.emulator.traps import Access, Cause, Privilege, Trap
from minivmm.emulator.user.abi import AT_FDCWD, Prot, SystemCall
from minivmm.emulator.user.calls import CALLS
from minivmm.emulator.user.files import Files
from minivmm.emulator.user.loading import RANDOM_SIZE, STACK_SIZE, load
from minivmm.emulator.user.memory import STACK_TOP, USER_END, NoMemory, ProcessMemory
from minivmm.memory import PAGE_SIZE
from minivmm.outcome import EndOfRun, Outcome, RunResult
from minivmm.tally import Tally

if TYPE_CHECKING:
    from minivmm.emulator.trace import Tracer

_LONGEST = 1e6  # seconds: what select and sleep accept
SLICE = 1 << 20  # instructions between two looks at the deadline
_M64 = (1 << 64) - 1
A0, A7, SP = 10, 17, 2
ENOSYS, EFAULT = 38, 14
_SIGNALS = {
    Cause.ILLEGAL_INSTRUCTION: signal.SIGILL,
    Cause.BREAKPOINT: signal.SIGTRAP,
    Cause.INSTRUCTION_ACCESS_FAULT: signal.SIGBUS,
    Cause.LOAD_ACCESS_FAULT: signal.SIGBUS,
    Cause.STORE_ACCESS_FAULT: signal.SIGBUS,
    Cause.LOAD_ADDRESS_MISALIGNED: signal.SIGBUS,
    Cause.STORE_ADDRESS_MISALIGNED: signal.SIGBUS,
}
"""What Linux sends (arch/riscv/kernel/traps.c); a page fault is SIGSEGV."""

_CALL_NAMES = {call.value: call.name.lower() for call in SystemCall}


class _Pages:
    """What replaces the page tables in an Mmu: the process' mappings."""

    process_memory: ProcessMemory

    def translate(self, address: int, access: int, mode: int, sum_: bool = False, mxr: bool = False) -> int:  # noqa: ARG002
        """As Mmu's."""
        return self.process_memory.translate(address, access)


class Process:
    """A program with its arguments, ready to run.

    root: the directory it may see, as its `/`; None: no files but the three that are open. memory: bytes of RAM it may
    fill. quota: bytes it may write to files. translate: by dynamic translation; else interpreted. tracer: is told what
    the engine does. Raises ImageError, HostError.
    """

    def __init__(
        self,
        program: str | Path,
        arguments: Sequence[str] = (),
        *,
        environment: Sequence[str] = (),
        root: str | Path | None = None,
        memory: int = 1 << 30,
        quota: int = 1 << 30,
        translate: bool = True,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer
        self.name = str(program)
        self.signal_actions: dict[int, bytes] = {}
        self.stack_size = STACK_SIZE
        self.ram_size = memory
        self.unknown = Tally()
        """System calls that were answered with ENOSYS, by name or number, and how often."""
        self.calls = Tally()
        """System calls that were made."""
        self.deadline = math.inf  # of time.monotonic()
        self._timeout = 0.0
        elf = Elf(program, machines=(EM_RISCV,))
        with contextlib.ExitStack() as undo:
            self._ram = Ram(memory)
            undo.callback(self._ram.close)
            self.space = AddressSpace(self._ram)
            undo.callback(self.space.close)
            self.memory = ProcessMemory(self.space)
            self.hart = self._make_hart(translate)
            self.files = Files(None if root is None else str(root), quota)
            undo.callback(self.files.release)
            argv = [self.name, *arguments]
            self.hart.pc, self.hart.x[SP] = load(
                self.memory, elf, self.name, argv, environment, self.random(RANDOM_SIZE)
            )
            self._undo = undo.pop_all()

    def _make_hart(self, translate: bool) -> Hart:
        hart = _translating(self) if translate else _interpreting(self)
        hart.csrs.mcounteren = hart.csrs.scounteren = 7  # cycle, time and instret may be read, as under Linux
        hart.csrs.write_mstatus(int(Status.FS))
        hart.enter(int(Privilege.U))
        return hart

    def traced(self, kind: type[Hart]) -> type[Hart]:
        """A hart's class, or the one that tells the tracer."""
        if self._tracer is None:
            return kind
        from minivmm.emulator.trace import traced

        return traced(kind, self._tracer)

    # --- running -----------------------------------------------------------------------------------------------------
    def run(self, timeout: float | None = None) -> RunResult:
        """To the program's end, at most `timeout` seconds. Ctrl-C ends it as INTERRUPTED."""
        started = self.begin(timeout)
        try:
            while True:
                self.hart.execute(SLICE)
                self.look_at_the_clock()
        except EndOfRun as end:
            return RunResult(end.outcome, end.detail, end.code, seconds=time.monotonic() - started)
        except KeyboardInterrupt:
            return RunResult(Outcome.INTERRUPTED, "interrupted from the keyboard", seconds=time.monotonic() - started)

    def begin(self, timeout: float | None) -> float:
        """The deadline is so many seconds from now; returns now."""
        now = time.monotonic()
        self._timeout = timeout or 0.0
        self.deadline = math.inf if timeout is None else now + timeout
        return now

    def look_at_the_clock(self) -> None:
        """Raises EndOfRun at the deadline."""
        if time.monotonic() >= self.deadline:
            raise EndOfRun(Outcome.DEADLINE, f"still running after {self._timeout:g} seconds")

    @property
    def figures(self) -> dict[str, int]:
        """Instructions, system calls, and what the engine made."""
        hart, code = self.hart, self.hart.code
        found = {"instructions": hart.retired, "system calls": hart.traps, "blocks": code.made, "decoded": code.decoded}
        return found | hart.figures

    def trap(self, pc: int, cause: int, tval: int) -> None:
        """An exception: a system call, or the end."""
        hart = self.hart
        hart.traps += 1
        if cause != Cause.ECALL_FROM_U:
            name = Cause(cause).name.lower().replace("_", " ")
            self.die(_SIGNALS.get(Cause(cause), signal.SIGSEGV), f"{name} at {pc:#x}, address {tval:#x}")
        hart.pc = pc + 4 & _M64
        self.look_at_the_clock()  # a call may take as long as a million instructions
        hart.x[A0] = self.call(hart.x[A7]) & _M64

    def call(self, number: int) -> int:
        """A system call with the arguments in the registers; its result, negative for an error. Raises EndOfRun."""
        function, count = CALLS.get(number, (None, 0))
        if function is None:
            self.unknown.count(str(number))
            return -ENOSYS
        self.calls.count(_CALL_NAMES[number])
        try:
            return function(self, *self.hart.x[A0 : A0 + count])
        except OSError as error:
            return -(error.errno or EFAULT)
        except (Trap, ValueError, OverflowError, struct.error):
            return -EFAULT

    def die(self, number: int, why: str) -> None:
        """Ends the program as a signal does. Raises EndOfRun."""
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        raise EndOfRun(Outcome.CRASHED, f"{name}: {why}", 128 + number)

    # --- for system calls --------------------------------------------------------------------------------------------
    def store(self, address: int, data: bytes) -> None:
        """Writes to the program's memory. Raises Trap."""
        self.memory.write(address, data)
        code = self.hart.code
        if code.made:  # what was written may be instructions
            for page in range(address & ~(PAGE_SIZE - 1), address + len(data), PAGE_SIZE):
                offset = self.memory.translate(max(page, address), Access.STORE) - RAM_BASE
                if code.is_code(offset):
                    code.note_store(offset, min(page + PAGE_SIZE, address + len(data)) - max(page, address))

    def path(self, directory: int, address: int) -> str:
        """The path at an address, from the program's root. Raises Trap, OSError."""
        name = os.fsdecode(self.memory.string(address))
        if not name:
            raise OSError(2, os.strerror(2))
        number = (directory & 0xFFFF_FFFF ^ 0x8000_0000) - 0x8000_0000
        return self.files.path(number, name, AT_FDCWD)

    @contextlib.contextmanager
    def opened(self, path: str, flags: int) -> Iterator[int]:
        """A descriptor for the block. Raises OSError."""
        descriptor = self.files.open(path, flags)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def set_break(self, wanted: int) -> int:
        """brk(2): the new end, or the old one where that cannot be."""
        memory = self.memory
        if wanted < memory.brk_start or wanted > STACK_TOP - STACK_SIZE:
            return memory.brk_end
        old = memory.brk_end + PAGE_SIZE - 1 & ~(PAGE_SIZE - 1)
        new = wanted + PAGE_SIZE - 1 & ~(PAGE_SIZE - 1)
        if new > old and not memory.is_free(old, new - old):
            return memory.brk_end
        try:
            if new > old:
                memory.map(old, new - old, Prot.READ | Prot.WRITE)
            elif new < old:
                self.unmap(new, old - new)
        except NoMemory:
            return memory.brk_end
        memory.brk_end = wanted
        return wanted

    def map(self, start: int, length: int, prot: Prot) -> None:
        """New pages, in place of old ones. Raises NoMemory: too many mappings."""
        if not self.memory.is_free(start, length):
            self.unmap(start, length)
        self.memory.map(start, length, prot)

    def move(self, start: int, length: int, to: int) -> None:
        """Pages of one mapping go where there is nothing. Raises NoMemory."""
        executable = bool(self.memory.rights(start) & Prot.EXEC)
        self.memory.move(start, length, to)
        self._forget(executable)

    def unmap(self, start: int, length: int) -> None:
        """Takes pages away. Raises NoMemory: too many mappings."""
        self._forget(self.memory.unmap(start, length))

    def protect(self, start: int, length: int, prot: Prot) -> bool:
        """Changes rights; False when not all of it is mapped. Raises NoMemory: too many mappings."""
        executable = self.memory.protect(start, length, prot)
        if executable is None:
            return False
        self._forget(executable)
        return True

    def _forget(self, executable: bool) -> None:
        self.hart.mmu.flush()
        if executable:
            self.hart.code.forget()

    def fill(self, address: int, data: bytes) -> None:
        """What a mapping begins with. Raises NoMemory."""
        self.memory.force(address, data)

    def now(self) -> int:
        """What rdtime reads: nanoseconds."""
        return time.monotonic_ns()

    def random(self, count: int) -> bytes:
        """Random bytes that the program is started with."""
        return os.urandom(count)

    # --- what may take long: never beyond the deadline ---------------------------------------------------------------
    def _allowed(self, seconds: float) -> float:
        return max(min(seconds, self.deadline - time.monotonic(), _LONGEST), 0)

    def sleep(self, seconds: float) -> None:
        """Raises EndOfRun at the deadline."""
        time.sleep(self._allowed(seconds))
        self.look_at_the_clock()

    def poll(self, poller: select.poll, seconds: float) -> list[tuple[int, int]]:
        """What is ready within so many seconds. Raises EndOfRun at the deadline."""
        ready = poller.poll(math.ceil(self._allowed(seconds) * 1000))
        if not ready:
            self.look_at_the_clock()
        return ready

    def wait_for(self, host: int, events: int) -> bool:
        """Waits until a descriptor of this process can be read or written, where that may take long; whether it may.
        Raises EndOfRun at the deadline."""
        if self.deadline == math.inf or stat.S_IFMT(os.fstat(host).st_mode) in (stat.S_IFREG, stat.S_IFDIR):
            return False
        poller = select.poll()
        poller.register(host, events)
        self.poll(poller, math.inf)
        return True

    def close(self) -> None:
        """Gives everything back."""
        self.hart.close()
        self._undo.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _interpreting(process: Process) -> Hart:
    class UserMmu(_Pages, Mmu):
        process_memory = process.memory

    class UserHart(Hart):
        def _make_mmu(self) -> Mmu:
            return UserMmu(self.space)

        def trap(self, pc: int, cause: int, tval: int = 0, *, interrupt: bool = False) -> None:  # noqa: ARG002
            process.trap(pc, cause, tval)

    return process.traced(UserHart)(process.space, lambda: 0, process.now)


def _translating(process: Process) -> Hart:
    from minivmm.emulator.translator.hart import TranslatingHart
    from minivmm.emulator.translator.mmu import TranslatingMmu

    class UserMmu(_Pages, TranslatingMmu):
        process_memory = process.memory
        fixed = True

    class UserHart(TranslatingHart):
        delivers = False

        def _make_mmu(self) -> Mmu:
            return UserMmu(self.space, self.state)

        def trap(self, pc: int, cause: int, tval: int = 0, *, interrupt: bool = False) -> None:  # noqa: ARG002
            process.trap(pc, cause, tval)

    return process.traced(UserHart)(process.space, lambda: 0, process.now)


assert STACK_TOP < USER_END
