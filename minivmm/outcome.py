"""How a machine ends: a closed set, each member with its own exit status of `vtk run`.

An outcome is not an error. Whatever a guest does, a run ends in exactly one of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple


class Outcome(Enum):
    """The ways a machine ends. `exit_status` is what `vtk run` exits with, `meaning` one line for a person."""

    exit_status: int
    meaning: str

    SHUTDOWN = ("shutdown", 0, "the guest powered itself off, or exited with code 0")
    EXITED = ("exited", 1, "the guest exited through the debug port with a code other than 0")
    HALTED = ("halted", 20, "every vCPU executed hlt with interrupts off: nothing can wake it")
    RESET = ("reset", 21, "the guest asked for a reset")
    CRASHED = ("crashed", 22, "the guest's kernel panicked")
    TRIPLE_FAULT = ("triple_fault", 23, "a fault while delivering a double fault: the CPU shut down")
    DEADLINE = ("deadline", 24, "the time allowed ran out")
    INTERRUPTED = ("interrupted", 130, "stopped from outside: Ctrl-C, SIGTERM, the console's escape key")
    INTERNAL_ERROR = ("internal_error", 25, "KVM could not go on: an instruction it cannot emulate, mostly")
    FAIL_ENTRY = ("fail_entry", 26, "the CPU refused the guest's state")
    SUSPENDED = ("suspended", 28, "the guest stopped itself to be saved, and waits to be resumed")
    HOST_ERROR = ("host_error", 27, "the host failed while the guest ran: memory, disk, or the VMM itself")
    DIVERGED = ("diverged", 29, "the two engines of --lockstep did not do the same")

    def __new__(cls, value: str, exit_status: int, meaning: str) -> Outcome:
        member = object.__new__(cls)
        member._value_ = value
        member.exit_status = exit_status
        member.meaning = meaning
        return member


class EndOfRun(Exception):
    """Raised by a device or a vCPU to end the run: not an error, the way a guest's last act reaches the machine."""

    def __init__(self, outcome: Outcome, detail: str = "", code: int | None = None) -> None:
        super().__init__(outcome.value)
        self.outcome = outcome
        self.detail = detail
        self.code = code


_NOTHING: Mapping[str, int] = MappingProxyType({})


class RunResult(NamedTuple):
    """What a run left behind."""

    outcome: Outcome
    detail: str = ""
    """What the machine knows of the end: the port written, the instruction refused, the errno."""
    code: int | None = None
    """The guest's own exit code (debug-exit port), where it gave one."""
    console: bytes = b""
    """What the guest wrote to its serial console, the last 1 MiB of it."""
    seconds: float = 0.0
    """Wall-clock time from the first KVM_RUN to the end."""
    exits: Mapping[str, int] = _NOTHING
    """KVM exits to user space by reason, over all vCPUs."""
    registers: Mapping[str, int] = _NOTHING
    """Registers of the vCPU that ended the run, where the end was not the guest's wish."""
    dump: str = ""
    """A few lines more for a person to see of a crash, where the machine keeps track of them."""

    @property
    def exit_status(self) -> int:
        """The exit status of `vtk run`: the outcome's, or the guest's own code clipped to 1..19."""
        if self.outcome is Outcome.EXITED and self.code is not None:
            return min(max(self.code, 1), 19)
        return self.outcome.exit_status
