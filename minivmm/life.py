"""The life of a machine: started once, watched against its deadline, ended in one outcome, given back to the host.

What executes and how it is brought to a stand differs from machine to machine: a subclass says so in `_begin` and
`_halt`. That a run ends once, and what a caller, Ctrl-C and the deadline have to do with it, is here.
"""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

from minivmm.errors import ConfigError, HostError
from minivmm.outcome import EndOfRun, Outcome, RunResult
from minivmm.tail import Tail

CONSOLE_LIMIT = 1 << 20  # bytes of console output kept in the result
_QUIET = (Outcome.SHUTDOWN, Outcome.EXITED, Outcome.INTERRUPTED)


class Life(ABC):
    """A machine that runs once. `console` gets its output as it comes, on the thread that executes it."""

    def __init__(self, console: Callable[[bytes], None] | None) -> None:
        self._sink = console
        self._output = Tail(CONSOLE_LIMIT)
        self._release = contextlib.ExitStack()
        """What close() gives back."""
        self._end: EndOfRun | None = None
        self._culprit: object = None
        """Who ended the run, where that was one of several."""
        self._end_lock = threading.Lock()
        self._ended = threading.Event()
        self._result: RunResult | None = None
        self._started = self._deadline = self._seconds = 0.0

    # --- what a machine adds -----------------------------------------------------------------------------------------
    @abstractmethod
    def _begin(self) -> None:
        """Lets it execute, on threads of its own; they end the run by `_note_end`."""

    @abstractmethod
    def _halt(self) -> None:
        """Returns when nothing of it executes any more. The run has been ended."""

    @property
    @abstractmethod
    def exits(self) -> dict[str, int]:
        """What happened in the run, by name, and how often."""

    def _registers(self) -> dict[str, int]:
        """Those of whoever ended the run; asked for when the end was not the guest's wish."""
        return {}

    def _dump(self) -> str:
        """A few lines more of the end, for a person."""
        return ""

    def _watch(self) -> None:
        """Waits for the end, at most until the deadline, and then ends it."""
        if not self._ended.wait(max(self._deadline - time.monotonic(), 0)):
            self._note_deadline()

    # --- the verbs ---------------------------------------------------------------------------------------------------
    def run(self, timeout: float = 60.0) -> RunResult:
        """Starts the machine and waits for its end: at most `timeout` seconds, then the outcome is DEADLINE."""
        try:
            self.start(timeout)
            return self.wait()
        except KeyboardInterrupt:  # before wait() was there to take it
            if not self._started:
                raise
            self._note_interrupt()
            return self.wait()

    def start(self, timeout: float = 60.0) -> None:
        """Lets it run. A machine starts once. Raises ConfigError for a second time."""
        if self._started:
            raise ConfigError(
                "this machine has run already", remedy=f"make a new {type(self).__name__}: that takes a millisecond"
            )
        self._started = time.monotonic()
        self._deadline = self._started + timeout
        self._begin()

    def wait(self) -> RunResult:
        """Waits for the end, at most until the deadline. Ctrl-C in the waiting thread ends it as INTERRUPTED."""
        if self._result is not None:
            return self._result
        if not self._started:
            raise ConfigError("this machine has not been started", remedy="machine.start()")
        try:
            self._watch()
        except KeyboardInterrupt:
            self._note_interrupt()
        self._halt()
        assert self._end is not None
        end = self._end
        self._result = RunResult(
            outcome=end.outcome,
            detail=end.detail,
            code=end.code,
            console=bytes(self._output),
            seconds=self._seconds,
            exits=self.exits,
            registers={} if end.outcome in _QUIET else self._registers(),
            dump=self._dump(),
        )
        return self._result

    def stop(self, detail: str = "stopped by the caller") -> None:
        """Ends the run as INTERRUPTED. Thread-safe; wait() then returns."""
        self._note_end(EndOfRun(Outcome.INTERRUPTED, detail))

    def close(self) -> None:
        """Ends the run if it still goes, and gives everything back to the host. May be called twice."""
        if self._started and self._result is None:
            self.stop("closed")
            self.wait()
        self._release.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # --- the end -----------------------------------------------------------------------------------------------------
    def _note_end(self, end: EndOfRun, culprit: object = None) -> None:
        """Records how the run ends; the first to say so wins."""
        with self._end_lock:
            if self._end is None:
                self._seconds = time.monotonic() - self._started if self._started else 0.0
                # Without its traceback, whose frames hold views of memory that is to be given back.
                self._end, self._culprit = end.with_traceback(None), culprit
        self._ended.set()

    def _to_the_end(self, execute: Callable[[], None]) -> None:
        """The body of a thread that executes: whatever happens in there becomes an outcome."""
        try:
            execute()
        except EndOfRun as end:
            self._note_end(end)
        except HostError as error:
            self._note_end(EndOfRun(Outcome.HOST_ERROR, error.message))
        except Exception as error:  # noqa: BLE001  the thread's boundary: a bug here must end the run, and say what it was
            self._note_end(EndOfRun(Outcome.HOST_ERROR, f"minivmm failed: {type(error).__name__}: {error}"))

    def _note_interrupt(self) -> None:
        self._note_end(EndOfRun(Outcome.INTERRUPTED, "interrupted from the keyboard"))

    def _note_deadline(self) -> None:
        allowed = self._deadline - self._started
        self._note_end(EndOfRun(Outcome.DEADLINE, f"still running after {allowed:g} seconds"))

    def _console_output(self, data: bytes) -> None:
        """What the guest transmitted: kept (the last CONSOLE_LIMIT bytes) and handed on."""
        self._output.write(data)
        if self._sink is not None:
            self._sink(data)
