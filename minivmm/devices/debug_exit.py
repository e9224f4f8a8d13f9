"""QEMU's isa-debug-exit: one write ends the machine with a code of the guest's choice."""

from __future__ import annotations

from minivmm.outcome import EndOfRun, Outcome

PORT = 0xF4


class DebugExit:
    """A write of v ends the run: 0 is SHUTDOWN, anything else EXITED with that code. (QEMU exits with v << 1 | 1.)"""

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002
        """QEMU's device reads as zero."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002
        """Always raises EndOfRun."""
        if value:
            raise EndOfRun(Outcome.EXITED, f"the guest exited with code {value}", value)
        raise EndOfRun(Outcome.SHUTDOWN, "the guest exited with code 0", 0)
