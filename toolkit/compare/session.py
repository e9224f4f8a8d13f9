"""A running bench program as a comparison sees it: lines to it, lines from it with the time each one came.

    Session (protocol)
    ├── ProcessSession    an ordinary process on two pipes
    └── MachineSession    a virtual machine's serial console (minivmm's Machine, QemuMachine)

Whatever the other side sends, memory stays bounded: lines that are not of the protocol (which start with `{`) are for
people and only the last few KiB are kept, to be shown when something breaks.

VtkError
└── SessionLost          the session cannot be used any further
    ├── SessionEnded     the process or machine is gone
    ├── SessionSilent    no line came before the deadline
    └── ProtocolBroken   (protocol.py) a line came that is not what the protocol says
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from minivmm.errors import VtkError
from minivmm.outcome import Outcome, RunResult

MAX_LINE = 16 << 10  # bytes of one protocol line: the longest real one, "ready", has some 300
MAX_PENDING = 256  # protocol lines not yet read: a sample has two
TAIL = 2 << 10  # bytes of text kept for an error message
READ_SIZE = 64 << 10


class SessionLost(VtkError):
    """The session cannot be used any further."""


class SessionEnded(SessionLost):
    """The process or machine is gone. The message says how it went."""


class SessionSilent(SessionLost):
    """No line came before the deadline."""


class Session(Protocol):
    """What a technique opens."""

    def send_line(self, line: str) -> None:
        """Sends one command. Raises SessionEnded when nobody is there to read it."""

    def read_line(self, deadline: float) -> tuple[int, bytes]:
        """The next protocol line and the `time.monotonic_ns()` at which its newline came.

        `deadline` is on `time.monotonic()`'s clock. Raises SessionSilent past it, SessionEnded when no more will come.
        """

    def exits(self) -> dict[str, int]:
        """Exits from the guest so far, by reason; empty where nobody counts them."""

    def text(self) -> str:
        """The last of what came that was not of the protocol: what to show when something breaks."""

    def close(self) -> None:
        """Ends the process or machine, whatever it is doing, and leaves nothing behind."""


class LineBuffer:
    """Bytes as they come, cut into protocol lines. Not thread-safe."""

    def __init__(self) -> None:
        self.lines: deque[tuple[int, bytes]] = deque()
        self.discarded = 0
        """Bytes that were not of the protocol."""
        self._partial = bytearray()
        self._overlong = False
        self._tail = bytearray()

    def feed(self, chunk: bytes, now: int) -> bool:
        """Takes what came at `now`; true when a protocol line was completed by it.

        On the console path of a machine in this process: a chunk without a newline costs one search and one append.
        """
        if b"\n" not in chunk:
            self._partial += chunk
            if len(self._partial) > MAX_LINE:
                self._give_up_line()
            return False
        *complete, rest = chunk.split(b"\n")
        complete[0] = bytes(self._partial) + complete[0]
        self._partial[:] = rest
        found = False
        for line in complete:
            if self._overlong:  # the end of a line whose beginning is gone
                self._overlong = False
                self._discard(line)
            elif line.startswith(b"{") and len(line) <= MAX_LINE and len(self.lines) < MAX_PENDING:
                self.lines.append((now, line))
                found = True
            else:
                self._discard(line + b"\n")
        if len(self._partial) > MAX_LINE:
            self._give_up_line()
        return found

    def text(self) -> str:
        """The last of what was discarded, and the line begun, as printable text."""
        last = bytes(self._tail + self._partial)[-TAIL:].decode("utf-8", "replace")
        return "".join(
            letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in last
        )

    def _give_up_line(self) -> None:
        self._discard(bytes(self._partial))
        self._partial.clear()
        self._overlong = True

    def _discard(self, data: bytes) -> None:
        self.discarded += len(data)
        self._tail += data[-TAIL:]
        del self._tail[:-TAIL]


def silence(buffer: LineBuffer) -> SessionSilent:
    """The error for a deadline that passed while `buffer` had no line."""
    if buffer.discarded > TAIL:
        return SessionSilent(f"no answer in time, but {buffer.discarded} bytes of other output")
    return SessionSilent("no answer in time")


def read_line(fd: int, poll: select.poll, buffer: LineBuffer, deadline: float) -> tuple[int, bytes] | None:
    """The next protocol line from a descriptor that `poll` watches, and when it came (ns); None at its end.

    Raises what `silence` makes when none has come at `deadline` (time.monotonic).
    """
    while not buffer.lines:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise silence(buffer)
        if not poll.poll(remaining * 1000):
            continue
        chunk = os.read(fd, READ_SIZE)
        now = time.monotonic_ns()
        if not chunk:
            return None
        buffer.feed(chunk, now)
    return buffer.lines.popleft()


class ProcessSession:
    """A child process with its own process group, commands on its stdin, lines on its stdout.

    Lines are stamped by the thread that waits for them, so nothing else of this process runs while the child does.
    Raises SessionEnded when the program cannot be started.
    """

    def __init__(self, command: Sequence[str | os.PathLike[str]]) -> None:
        self._buffer = LineBuffer()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,  # last words belong to the text
                bufsize=0,
                start_new_session=True,  # Ctrl-C is ours to handle, and children of the child end with it
            )
        except OSError as error:
            raise SessionEnded(f"{os.fspath(command[0])} cannot be started: {error.strerror}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin = self._process.stdin
        self._stdout = self._process.stdout
        self._poll = select.poll()
        self._poll.register(self._stdout, select.POLLIN)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def send_line(self, line: str) -> None:
        """See Session."""
        try:
            self._stdin.write(line.encode() + b"\n")
        except (OSError, ValueError) as error:
            raise self._ended() from error

    def read_line(self, deadline: float) -> tuple[int, bytes]:
        """See Session."""
        line = read_line(self._stdout.fileno(), self._poll, self._buffer, deadline)
        if line is None:
            raise self._ended()
        return line

    def exits(self) -> dict[str, int]:
        """A process has none."""
        return {}

    def text(self) -> str:
        """See Session."""
        return self._buffer.text()

    def close(self) -> None:
        """See Session."""
        with contextlib.suppress(ProcessLookupError):  # the whole group may be gone already
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._stdin.close()
        self._stdout.close()

    def _ended(self) -> SessionEnded:
        try:
            status = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return SessionEnded("the process closed its output")
        if status < 0:
            return SessionEnded(f"the process was killed by {signal.Signals(-status).name}")
        return SessionEnded(f"the process ended with status {status}")


class BenchMachine(Protocol):
    """What MachineSession needs of a machine: `minivmm.Machine` and `toolkit.qemu.QemuMachine` both have it."""

    def start(self, timeout: float = ...) -> None: ...
    def wait(self) -> RunResult: ...
    def stop(self) -> None: ...
    def send(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class MachineSession:
    """A machine whose serial console speaks the protocol.

    The machine calls back with console output on a thread of its own, where the line is stamped; the thread that waits
    for lines sleeps meanwhile, because a busy Python thread would delay the exits of a machine in this process.

    `build` makes the machine around the console callback it is given; `lifetime` is the machine's own deadline in
    seconds; `counters` reads its exits.
    """

    def __init__(
        self,
        build: Callable[[Callable[[bytes], None]], BenchMachine],
        *,
        lifetime: float,
        counters: Callable[[], dict[str, int]] | None = None,
    ) -> None:
        self._buffer = LineBuffer()
        self._changed = threading.Condition()
        self._result: RunResult | None = None
        self._counters = counters
        self._machine = build(self._console)
        try:
            self._machine.start(timeout=lifetime)
        except BaseException:
            self._machine.close()
            raise
        self._waiter = threading.Thread(target=self._wait, name="vtk-compare-wait", daemon=True)
        self._waiter.start()

    def send_line(self, line: str) -> None:
        """See Session."""
        with self._changed:
            if self._result is not None:
                raise ended(self._result)
        self._machine.send(line.encode() + b"\n")

    def read_line(self, deadline: float) -> tuple[int, bytes]:
        """See Session."""
        with self._changed:
            while not self._buffer.lines:
                if self._result is not None:
                    raise ended(self._result)
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise silence(self._buffer)
                self._changed.wait(remaining)
            return self._buffer.lines.popleft()

    def exits(self) -> dict[str, int]:
        """See Session."""
        return self._counters() if self._counters is not None else {}

    def text(self) -> str:
        """See Session."""
        with self._changed:
            return self._buffer.text()

    def close(self) -> None:
        """See Session."""
        self._machine.stop()
        self._waiter.join(timeout=10.0)
        self._machine.close()

    def _console(self, chunk: bytes) -> None:
        now = time.monotonic_ns()
        with self._changed:
            if self._buffer.feed(chunk, now):
                self._changed.notify()

    def _wait(self) -> None:
        try:
            result = self._machine.wait()
        except VtkError as error:
            result = RunResult(Outcome.HOST_ERROR, detail=error.message)
        with self._changed:
            self._result = result
            self._changed.notify()


def ended(result: RunResult) -> SessionEnded:
    """The error for a machine that is no more."""
    detail = f" ({result.detail})" if result.detail else ""
    code = f" with code {result.code}" if result.outcome is Outcome.EXITED else ""
    return SessionEnded(f"the machine ended: {result.outcome.value}{code}{detail}")
