"""A guest's serial console on this process's standard input and output.

Output goes through a bounded buffer to a thread that writes it, so that a stuck terminal or pipe holds a guest back
without ever holding it past its deadline. Input, the escape key and signals are served by one more thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Protocol

from minivmm.outcome import RunResult
from toolkit import terminal

OUTPUT_LIMIT = 256 << 10
"""Bytes of output that may wait for a slow reader before the guest is held back."""

INPUT_WINDOW = 4096
"""Bytes of input a guest may leave unread before no more is read from standard input."""

INPUT_PAUSE = 0.01  # seconds between looks at whether the guest has read


class RunnableMachine(Protocol):
    """What `minivmm.Machine` and `toolkit.qemu.QemuMachine` have in common here."""

    def start(self, timeout: float = ...) -> None: ...
    def wait(self) -> RunResult: ...
    def stop(self, detail: str = ...) -> None: ...
    def send(self, data: bytes) -> None: ...
    @property
    def pending_input(self) -> int: ...


class Output:
    """Writes a guest's output to a descriptor. `write` is the machine's console callback."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.on_broken_pipe: Callable[[], None] | None = None
        """Called, on the writing thread, when nobody reads any more."""
        self._buffer = bytearray()
        self._changed = threading.Condition()
        self._deadline = float("inf")
        self._finished = False
        self.broken = False
        """Whoever read the output went away."""
        self.last = b"\n"
        """The last byte written."""
        self._thread = threading.Thread(target=self._run, name="vtk-output", daemon=True)  # from the first write on

    def hold_until(self, deadline: float) -> None:
        """Holds no guest back after `deadline` (time.monotonic); what does not fit then is dropped."""
        with self._changed:
            self._deadline = deadline
            self._changed.notify_all()

    def write(self, data: bytes) -> None:
        """Queues `data`, waiting for room until the deadline."""
        with self._changed:
            while len(self._buffer) >= OUTPUT_LIMIT and not self.broken:
                left = self._deadline - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(min(left, 3600.0))
            if not self.broken:
                self._buffer += data
                self._changed.notify_all()
                if self._thread.ident is None:
                    self._thread.start()

    def finish(self, limit: float = float("inf")) -> None:
        """Returns when everything queued is written, or nobody reads it; after `limit` seconds at the latest."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()
        deadline = time.monotonic() + limit
        while self._thread.is_alive() and (left := deadline - time.monotonic()) > 0:
            self._thread.join(min(left, 0.2))  # in slices, so that Ctrl-C gets through to one who will not read

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._buffer:
                    if self._finished:
                        return
                    self._changed.wait()
                data = bytes(self._buffer)
                self._buffer.clear()
                self._changed.notify_all()
            if not self._write_all(data):
                with self._changed:
                    self.broken = True
                    self._buffer.clear()
                    self._changed.notify_all()
                if self.on_broken_pipe is not None:
                    self.on_broken_pipe()
                return

    def _write_all(self, data: bytes) -> bool:
        """False when nobody reads."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:  # somebody made the descriptor non-blocking: a shell may share it with others
                select.select([], [self._fd], [])
            except OSError:  # EPIPE, or the terminal hung up (EIO)
                return False
        self.last = data[-1:]
        return True


class Session:
    """One machine with its console here, from start to end. Use from the main thread: it takes the signals."""

    def __init__(self, machine: RunnableMachine, output: Output | None, *, read_input: bool = True) -> None:
        """`output` is where the machine's console callback leads, None when it leads nowhere."""
        self._machine = machine
        self._output = output
        if output is not None:
            output.on_broken_pipe = lambda: self.stop("standard output was closed")
        self._input = 0 if read_input and _is_open(0) else None
        self.interactive = self._input is not None and terminal.is_ours(0)
        self._wake, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self, timeout: float) -> RunResult:
        """Starts the machine and stays with it until its end."""
        try:
            # Raw mode first: a key typed while the guest starts is the guest's already.
            with self._signals(), terminal.raw_mode(0) if self.interactive else contextlib.nullcontext():
                self._machine.start(timeout)
                if self._output is not None:
                    self._output.hold_until(time.monotonic() + timeout)
                return self._wait()
        finally:
            os.close(self._wake)
            os.close(self._wake_write)

    def _wait(self) -> RunResult:
        thread = threading.Thread(target=self._attend, name="vtk-input", daemon=True)
        thread.start()
        try:
            return self._machine.wait()
        finally:
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake_write, b"\0")  # no signal has the number 0: the end
            thread.join()

    def stop(self, why: str) -> None:
        """Ends the machine; nothing it still writes is waited for. Thread-safe."""
        if self._output is not None:
            self._output.hold_until(0.0)
        self._machine.stop(why)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT, SIGTERM and SIGHUP end the machine.

        Their handlers do nothing: the number arrives at the wake-up descriptor (signal.set_wakeup_fd), and the input
        thread does the rest. A handler would run between any two instructions of the main thread, locks held.
        """
        ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # What was ignored from the start stays so: SIGHUP under nohup, SIGINT in a script's background job.
        taken = [number for number in ending if signal.getsignal(number) is not signal.SIG_IGN]
        before = [signal.signal(number, _handled_elsewhere) for number in taken]
        wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in zip(taken, before, strict=True):
                signal.signal(number, handler)

    def _attend(self) -> None:
        """The input thread: feeds the guest, watches for the escape key and signals, until the machine has ended."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        escape = terminal.EscapeKey()
        source, listening = self._input, False
        while True:
            room = source is not None and self._machine.pending_input < INPUT_WINDOW
            if room != listening and self._input is not None:
                poll.register(self._input, select.POLLIN) if room else poll.unregister(self._input)
                listening = room
            waiting = source is not None and not room
            for fd, _ in poll.poll(INPUT_PAUSE * 1000 if waiting else None):
                if fd == self._wake:
                    if self._woken():
                        return
                    continue
                typed = _read(fd)
                if not typed:
                    source = None  # the guest stays, as a machine does whose keyboard is pulled out
                elif self.interactive:
                    text, leave = escape.read(typed)
                    self._machine.send(text)
                    if leave:
                        self.stop("ended by the escape key")
                else:
                    self._machine.send(typed)

    def _woken(self) -> bool:
        """Serves what came on the wake-up descriptor. True when the machine has ended."""
        numbers = _read(self._wake)
        for number in numbers:
            if number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self.stop(f"stopped by {signal.Signals(number).name}")
        return 0 in numbers


def _handled_elsewhere(_signal: int, _frame: FrameType | None) -> None:
    """See Session._signals."""


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _read(fd: int) -> bytes:
    """Up to a page of what is there; b"" at the end, an unreadable descriptor's included."""
    try:
        return os.read(fd, INPUT_WINDOW)
    except OSError:
        return b""
