"""The CLINT: timer and software interrupts of hart 0, laid out as SiFive's (FU540-C000 manual, chapter 9).

mtime runs at 10 MHz, as on QEMU's `virt`: from the host's clock, or from the number of instructions executed, which
makes a run repeat itself exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from minivmm.emulator.csr_table import Interrupt

BASE, SIZE = 0x0200_0000, 0x1_0000
FREQUENCY = 10_000_000  # Hz of mtime
_NS_PER_TICK = 1_000_000_000 // FREQUENCY

MSIP, MTIMECMP, MTIME = 0x0, 0x4000, 0xBFF8
_ALL = (1 << 64) - 1
TIMER = int(Interrupt.MTI)  # in mip and mie
_MSI = int(Interrupt.MSI)


class Clock(Protocol):
    """Where mtime comes from."""

    def now(self) -> int:
        """Ticks since the machine was made."""

    def seconds_until(self, ticks: int) -> float:
        """How long an idle hart waits for `ticks`: 0 or less when they are over."""


class HostClock:
    """Ticks of the host's monotonic clock."""

    def __init__(self) -> None:
        self._start = time.monotonic_ns()

    def now(self) -> int:
        """10 MHz since the machine was made."""
        return (time.monotonic_ns() - self._start) // _NS_PER_TICK

    def seconds_until(self, ticks: int) -> float:
        """In real time."""
        return (ticks - self.now()) / FREQUENCY


class InstructionClock:
    """A tick an instruction; an idle hart's waiting takes no time at all."""

    def __init__(self, retired: Callable[[], int]) -> None:
        self._retired = retired
        self._skipped = 0

    def now(self) -> int:
        """Instructions executed and ticks waited for."""
        return self._retired() + self._skipped

    def seconds_until(self, ticks: int) -> float:
        """The time has come, now."""
        self._skipped += max(ticks - self.now(), 0)
        return 0.0


class Clint:
    """`attend` is called when the guest changed what may interrupt it."""

    def __init__(self, clock: Clock, attend: Callable[[], None]) -> None:
        self._clock, self._attend = clock, attend
        self._offset = 0  # mtime minus the clock
        self._msip = 0
        self.mtimecmp = _ALL  # the manual leaves it open; so no timer interrupt comes unasked

    def mtime(self) -> int:
        """The time register."""
        return self._clock.now() + self._offset & _ALL

    def lines(self) -> int:
        """MSIP and MTIP as bits of mip (Privileged 1.12, 3.2.1: MTIP while mtime >= mtimecmp)."""
        timer = TIMER if self.mtime() >= self.mtimecmp else 0
        return timer | _MSI if self._msip else timer

    def seconds_until_timer(self) -> float:
        """How long until MTIP rises."""
        return self._clock.seconds_until(self.mtimecmp - self._offset)

    def read(self, offset: int, size: int) -> int:
        """A register, or four or eight bytes of one; 0 elsewhere."""
        if offset < 4:
            value, within = self._msip, offset
        elif MTIMECMP <= offset < MTIMECMP + 8:
            value, within = self.mtimecmp, offset - MTIMECMP
        elif MTIME <= offset < MTIME + 8:
            value, within = self.mtime(), offset - MTIME
        else:
            return 0
        return value >> 8 * within & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """As read; other hart's registers do nothing."""
        if offset == MSIP:
            self._msip = value & 1
        elif MTIMECMP <= offset < MTIMECMP + 8:
            self.mtimecmp = _merged(self.mtimecmp, offset - MTIMECMP, size, value)
        elif MTIME <= offset < MTIME + 8:
            self._offset = _merged(self.mtime(), offset - MTIME, size, value) - self._clock.now()
        self._attend()


def _merged(old: int, within: int, size: int, value: int) -> int:
    mask = (1 << 8 * size) - 1 << 8 * within
    return (old & ~mask | value << 8 * within & mask) & _ALL
