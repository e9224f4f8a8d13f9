"""A machine under control: started, paused, reset and ended from outside, each step told as QMP's event.

A guest that resets has its machine made anew, as QEMU does; so the machine here may be another one each time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol

from minivmm.errors import VtkError
from minivmm.outcome import Outcome, RunResult

FOREVER = 1e9  # seconds, 31 years: a machine that stays has no deadline


class RunState(Enum):
    """QAPI's RunState, as far as a machine here is ever in one."""

    PRELAUNCH = "prelaunch"  # made, never let go
    RUNNING = "running"
    PAUSED = "paused"
    SHUTDOWN = "shutdown"


CAUSES = {
    Outcome.SHUTDOWN: "guest-shutdown",
    Outcome.EXITED: "guest-shutdown",
    Outcome.HALTED: "guest-shutdown",
    Outcome.SUSPENDED: "guest-shutdown",
    Outcome.RESET: "guest-reset",
    Outcome.CRASHED: "guest-panic",
    Outcome.TRIPLE_FAULT: "guest-panic",
    Outcome.INTERRUPTED: "host-signal",
}
"""QAPI's ShutdownCause of an outcome; of every other one it is host-error."""


class AnyMachine(Protocol):
    """What minivmm.Machine and minivmm.XenMachine have in common."""

    def start(self, timeout: float = ...) -> None: ...
    def wait(self) -> RunResult: ...
    def stop(self, detail: str = ...) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def press_power_button(self) -> None: ...
    def balloon(self, size: int) -> None: ...
    def balloon_size(self) -> int: ...
    def send(self, data: bytes) -> None: ...
    @property
    def pending_input(self) -> int: ...
    def vcpu_stats(self) -> list[dict[str, int]]: ...
    def vcpu_threads(self) -> list[int]: ...
    def close(self) -> None: ...


def untold(_event: str, _data: dict[str, Any]) -> None:
    """Of a machine whose steps nobody wants to hear of."""


class Controlled:
    """The machine that `make` makes, `paused` before its first instruction or not. Every method is thread-safe.

    `announce`, set before `run`, gets each event's name and data. Raises what `make` raises. A context manager.
    """

    def __init__(self, name: str, make: Callable[[], AnyMachine], *, paused: bool = False) -> None:
        self.name = name
        self.announce: Callable[[str, dict[str, Any]], None] = untold
        self._make = make
        self._lock = threading.RLock()
        self._machine = make()
        self._state = RunState.PRELAUNCH if paused else RunState.RUNNING
        self._wanted = ""  # what ends the machine from outside, as QAPI's ShutdownCause
        self._why = ""  # in words
        self._resetting = False

    @property
    def state(self) -> RunState:
        """What it is doing."""
        return self._state

    def run(self, timeout: float = FOREVER) -> RunResult:
        """Runs it to its end, through any number of resets; at most `timeout` seconds from one to the next."""
        while True:
            with self._lock:
                if self._state is not RunState.RUNNING:
                    self._machine.pause()
                self._machine.start(timeout)
            result = self._machine.wait()
            with self._lock:
                if self._wanted and result.outcome is Outcome.RESET:  # the guest was first by a moment: nobody's wish
                    result = result._replace(outcome=Outcome.INTERRUPTED, detail=self._why)
                if not self._resets(result):
                    break
                try:
                    self._make_anew()
                except VtkError as error:  # its kernel is gone, say
                    result = RunResult(Outcome.HOST_ERROR, f"it could not be reset: {error.message}")
                    break
        with self._lock:
            self._state = RunState.SHUTDOWN
        if result.outcome is Outcome.CRASHED:
            self.announce("GUEST_PANICKED", {"action": "poweroff"})
        cause = self._wanted or CAUSES.get(result.outcome, "host-error")
        self.announce("SHUTDOWN", {"guest": cause.startswith("guest"), "reason": cause})
        return result

    def _resets(self, result: RunResult) -> bool:
        """Whether this end is a reset, the guest's own or one asked for, and not the end of all."""
        return not self._wanted and (self._resetting or result.outcome is Outcome.RESET)

    def _make_anew(self) -> None:
        by_guest, self._resetting = not self._resetting, False
        self._machine.close()
        self._machine = self._make()
        self.announce("RESET", {"guest": by_guest, "reason": "guest-reset" if by_guest else "host-qmp-system-reset"})

    # --- verbs -------------------------------------------------------------------------------------------------------
    def pause(self) -> None:
        """Its vCPUs stand still when this returns. Raises HostError."""
        with self._lock:
            if self._state is RunState.RUNNING:
                self._machine.pause()
                self._state = RunState.PAUSED
                self.announce("STOP", {})

    def resume(self) -> None:
        """It goes on."""
        with self._lock:
            if self._state in (RunState.PAUSED, RunState.PRELAUNCH):
                self._machine.resume()
                self._state = RunState.RUNNING
                self.announce("RESUME", {})

    def press_power_button(self) -> None:
        """Asks the guest to shut down. Raises ConfigError when it cannot hear."""
        with self._lock:
            if self._state is RunState.SHUTDOWN:
                return
            self._machine.press_power_button()
            self.announce("POWERDOWN", {})

    def reset(self) -> None:
        """Begins anew, with everything the guest had in memory gone."""
        with self._lock:
            if self._state is not RunState.SHUTDOWN:
                self._resetting = True
                self._machine.stop("reset from outside")

    def balloon(self, size: int) -> None:
        """Asks the guest to make do with `size` bytes of memory. Raises ConfigError when it has no balloon."""
        with self._lock:
            if self._state is not RunState.SHUTDOWN:
                self._machine.balloon(size)

    def balloon_size(self) -> int:
        """Bytes of memory that the guest has now. Raises ConfigError when it has no balloon."""
        with self._lock:
            return self._machine.balloon_size() if self._state is not RunState.SHUTDOWN else 0

    def quit(self, cause: str, detail: str) -> None:
        """Ends it: `run` returns. `cause` is QAPI's ShutdownCause."""
        with self._lock:
            if not self._wanted:
                self._wanted, self._why = cause, detail
            self._machine.stop(detail)

    def send(self, data: bytes) -> None:
        """Types on its console."""
        with self._lock:
            if self._state is not RunState.SHUTDOWN:
                self._machine.send(data)

    @property
    def pending_input(self) -> int:
        """Bytes typed that the guest has not read yet."""
        with self._lock:
            return self._machine.pending_input if self._state is not RunState.SHUTDOWN else 0

    # --- figures -----------------------------------------------------------------------------------------------------
    def vcpu_stats(self) -> list[dict[str, int]]:
        """KVM's own counters of each vCPU, since the last reset."""
        with self._lock:
            return self._machine.vcpu_stats() if self._state is not RunState.SHUTDOWN else []

    def vcpu_threads(self) -> list[int]:
        """The kernel's ids of the threads that run the vCPUs; 0 before they are started."""
        with self._lock:
            return self._machine.vcpu_threads() if self._state is not RunState.SHUTDOWN else []

    def close(self) -> None:
        """Gives everything back to the host. After `run` has returned, or without it."""
        with self._lock:
            self._state = RunState.SHUTDOWN
            self._machine.close()

    def __enter__(self) -> Controlled:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
