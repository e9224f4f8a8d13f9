"""The PLIC (RISC-V PLIC specification 1.0.0): 31 sources, and the contexts of hart 0's M- and S-mode.

A source's gateway lets one request through at a time: pending, claimed, completed. A level that is still up at
completion is a new request (chapter 4); an edge that came meanwhile is not lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from minivmm.emulator.csr_table import Interrupt

BASE, SIZE = 0x0C00_0000, 0x60_0000
SOURCES = 31  # 0 is no source
MAX_PRIORITY = 7

PRIORITY, PENDING, ENABLE, CONTEXT = 0x0, 0x1000, 0x2000, 0x20_0000
ENABLE_STRIDE, CONTEXT_STRIDE = 0x80, 0x1000
CONTEXT_LINES = (int(Interrupt.MEI), int(Interrupt.SEI))
_ALL_SOURCES = (1 << SOURCES + 1) - 2


class Plic:
    """`changed` is called when a line to the hart may have risen or fallen, on whatever thread that happened."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._lock = threading.Lock()
        self._priority = [0] * (SOURCES + 1)
        self._pending = 0  # bit n: source n, here and below
        self._claimed = 0
        self._level = 0
        self._edge = 0  # came while its source was claimed
        self._enabled = [0, 0]
        self._threshold = [0, 0]

    # --- the devices' side -------------------------------------------------------------------------------------------
    def set_level(self, source: int, level: bool) -> None:
        """A level-triggered line. Thread-safe."""
        bit = 1 << source
        with self._lock:
            if level:
                self._level |= bit
                self._pending |= bit & ~self._claimed
            else:
                self._level &= ~bit
                self._pending &= ~bit
        self._changed()

    def pulse(self, source: int) -> None:
        """An edge. Thread-safe."""
        bit = 1 << source
        with self._lock:
            if self._claimed & bit:
                self._edge |= bit
            else:
                self._pending |= bit
        self._changed()

    # --- the hart's side ---------------------------------------------------------------------------------------------
    def lines(self) -> int:
        """MEIP and SEIP as bits of mip."""
        if not self._pending:
            return 0
        return sum(line for context, line in enumerate(CONTEXT_LINES) if self._best(context))

    def _best(self, context: int) -> int:
        """The source to claim: the highest priority above the threshold, the lowest number among equals; 0 for none."""
        best, best_priority = 0, self._threshold[context]
        candidates = self._pending & self._enabled[context]
        while candidates:
            source = (candidates & -candidates).bit_length() - 1
            candidates &= candidates - 1
            if self._priority[source] > best_priority:
                best, best_priority = source, self._priority[source]
        return best

    def _claim(self, context: int) -> int:
        source = self._best(context)
        if source:
            self._pending &= ~(1 << source)
            self._claimed |= 1 << source
        return source

    def _complete(self, context: int, source: int) -> None:
        """Ignored for a source that is not enabled for the context (chapter 9)."""
        if not 0 < source <= SOURCES or not self._enabled[context] >> source & 1:
            return
        bit = 1 << source
        self._claimed &= ~bit
        self._pending |= (self._level | self._edge) & bit
        self._edge &= ~bit

    def read(self, offset: int, size: int) -> int:
        """Registers are 32 bits wide; other accesses, and what is not there, read as 0."""
        if size != 4:
            return 0
        with self._lock:
            if offset < PENDING:
                source = offset >> 2
                return self._priority[source] if source <= SOURCES else 0
            if offset == PENDING:
                return self._pending
            context, register = divmod(offset - CONTEXT, CONTEXT_STRIDE)
            if 0 <= context < len(CONTEXT_LINES):
                if register == 0:
                    return self._threshold[context]
                return self._claim(context) if register == 4 else 0
            context, register = divmod(offset - ENABLE, ENABLE_STRIDE)
            return self._enabled[context] if 0 <= context < len(CONTEXT_LINES) and register == 0 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """As read."""
        if size != 4:
            return
        with self._lock:
            if offset < PENDING:
                if 0 < offset >> 2 <= SOURCES:
                    self._priority[offset >> 2] = value & MAX_PRIORITY
            elif offset >= CONTEXT:
                context, register = divmod(offset - CONTEXT, CONTEXT_STRIDE)
                if context < len(CONTEXT_LINES):
                    if register == 0:
                        self._threshold[context] = value & MAX_PRIORITY
                    elif register == 4:
                        self._complete(context, value)
            elif offset >= ENABLE:
                context, register = divmod(offset - ENABLE, ENABLE_STRIDE)
                if context < len(CONTEXT_LINES) and register == 0:
                    self._enabled[context] = value & _ALL_SOURCES
        self._changed()
