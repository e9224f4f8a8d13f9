"""The test finisher of QEMU's `virt` and SiFive's boards: one 32-bit register that ends the machine."""

from __future__ import annotations

from minivmm.outcome import EndOfRun, Outcome

BASE, SIZE = 0x10_0000, 0x1000


class Finisher:
    """Reads as 0. What may be written: bits 15:0, and with FAIL the exit code above them."""

    FAIL, PASS, RESET = 0x3333, 0x5555, 0x7777

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002
        """Nothing to see."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002
        """Raises EndOfRun for one of the three known values at the register; ignores all else."""
        if offset != 0:
            return
        code = value >> 16 & 0xFFFF
        match value & 0xFFFF:
            case self.PASS:
                raise EndOfRun(Outcome.SHUTDOWN, "power-off by the test finisher", 0)
            case self.FAIL if code:
                raise EndOfRun(Outcome.EXITED, f"exit by the test finisher with code {code}", code)
            case self.FAIL:
                raise EndOfRun(Outcome.SHUTDOWN, "exit by the test finisher with code 0", 0)
            case self.RESET:
                raise EndOfRun(Outcome.RESET, "reset by the test finisher")
