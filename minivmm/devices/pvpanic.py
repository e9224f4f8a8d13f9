"""pvpanic (QEMU docs/specs/pvpanic): how a guest's kernel tells its VMM that it panicked."""

from __future__ import annotations

from minivmm.outcome import EndOfRun, Outcome

PORT = 0x505

PANICKED = 1 << 0
CRASH_LOADED = 1 << 1


class PvPanic:
    """Reading gives the events supported, writing one reports it."""

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002
        """The supported events: only PANICKED, since nothing here loads a crash kernel."""
        return PANICKED

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002
        """Raises EndOfRun(CRASHED) for PANICKED; other events are ignored."""
        if value & PANICKED:
            raise EndOfRun(Outcome.CRASHED, "the guest's kernel panicked (pvpanic)")
