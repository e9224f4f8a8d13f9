"""The PC's keyboard controller, as far as a machine without keyboard needs it: the reset line."""

from __future__ import annotations

from minivmm.outcome import EndOfRun, Outcome

PORT = 0x64

PULSE_RESET = 0xFE  # command: pulse output line 0, which is the CPU's reset


class KeyboardController:
    """The status and command port. No data ever waits, and every command but the reset is accepted and forgotten."""

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002
        """Status: input and output buffers empty."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002
        """Raises EndOfRun(RESET) for the reset command."""
        if value & 0xFF == PULSE_RESET:
            raise EndOfRun(Outcome.RESET, "the guest pulsed the reset line (i8042)")
