"""What translated code and Python share: one piece of memory, at a fixed distance from RBP while translated code runs.

    x            the registers, and one more that swallows what is written to x0
    ADDRESS      where a load or store wanted to go that translated code could not do itself
    SITE         which place in translated code was left (sites.Site)
    F_REGISTERS  the floating-point registers
    MXCSR        the guest's rounding mode and flags; HOST_MXCSR keeps Python's while translated code runs
    ROUNDING     what of MXCSR is the dynamic rounding mode, for who goes back to it; OTHER_MXCSR while it is another
    TARGET       where an indirect jump goes
    BUDGET       instructions that may still be executed
    and for each regime (mmu.Regime) its software TLB and its jump cache

A TLB entry is a tag, the virtual address of a page, and what to add to a virtual address in it to get the host's. The
comparison keeps the low bits that a misaligned address would have, so that those miss too. A jump cache entry is a
virtual address and the translated code for it.
"""

from __future__ import annotations

import ctypes
import mmap

from minivmm.emulator.physical import PAGE_SHIFT

X_COUNT = 33
ADDRESS = 272  # offsets in bytes
TARGET = 280
BUDGET = 288
SITE = 296
F_REGISTERS = 304
MXCSR = 560
HOST_MXCSR = 564
ROUNDING = 568
OTHER_MXCSR = 572
RBP_OFFSET = 128  # so that x1 to x31 are within the reach of an 8-bit displacement

ENTRY_SHIFT = 4  # bytes of an entry: two words
TLB_ENTRIES = 1 << 12
JUMP_ENTRIES = 1 << 12
TLB_BYTES = TLB_ENTRIES << ENTRY_SHIFT
JUMP_BYTES = JUMP_ENTRIES << ENTRY_SHIFT
REGIMES = 60
"""There are no more: U and S with SUM and MXR, M with three data modes, each with floating point in three states."""
REGIME_BYTES = 2 * TLB_BYTES + JUMP_BYTES
_REGIMES_AT = 4096
_SIZE = _REGIMES_AT + REGIMES * REGIME_BYTES
_EMPTY = b"\xff" * 16  # no page and no instruction has this address


class Tables:
    """One regime's tables: where they are, and how Python changes them."""

    def __init__(self, state: State, number: int) -> None:
        start = _REGIMES_AT + number * REGIME_BYTES
        self.read_at = start
        self.write_at = start + TLB_BYTES
        self.jumps_at = start + 2 * TLB_BYTES
        self._bytes = state.bytes
        self._words = state.words
        self.clear()

    def clear(self) -> None:
        """Nothing is known any more."""
        self.clear_read()
        self.clear_write()
        self.clear_jumps()

    def clear_read(self) -> None:
        """No page may be loaded from."""
        self._bytes[self.read_at : self.write_at] = _EMPTY_TLB

    def clear_write(self) -> None:
        """No page may be stored to."""
        self._bytes[self.write_at : self.jumps_at] = _EMPTY_TLB

    def clear_jumps(self) -> None:
        """No indirect jump finds its way."""
        self._bytes[self.jumps_at : self.jumps_at + JUMP_BYTES] = _EMPTY_JUMPS

    def enter(self, table_at: int, address: int, addend: int) -> None:
        """Loads or stores (`table_at`: read_at or write_at) at the page of `address` go to address + addend."""
        word = table_at + (address >> PAGE_SHIFT) % TLB_ENTRIES * 16 >> 3
        self._words[word] = address >> PAGE_SHIFT << PAGE_SHIFT
        self._words[word + 1] = addend & (1 << 64) - 1

    def enter_jump(self, pc: int, entry: int) -> None:
        """Indirect jumps to `pc` go to `entry`."""
        word = self.jumps_at + (pc >> 1) % JUMP_ENTRIES * 16 >> 3
        self._words[word] = pc
        self._words[word + 1] = entry


_EMPTY_TLB = _EMPTY * TLB_ENTRIES
_EMPTY_JUMPS = _EMPTY * JUMP_ENTRIES


class State:
    """The memory, for Python."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _SIZE)
        self._anchor = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._anchor)
        """Of its first byte."""
        self.bytes = memoryview(self._map)
        self.words = self.bytes.cast("Q")
        self.x = self.words[:X_COUNT]
        """The registers."""
        self.f = self.words[F_REGISTERS >> 3 : (F_REGISTERS >> 3) + 32]
        """The floating-point registers, as patterns and as numbers."""
        registers = self.bytes[F_REGISTERS : F_REGISTERS + 8 * 32]
        self.doubles, self.singles = registers.cast("d"), registers.cast("f")
        self.mxcsr = self.bytes[MXCSR : MXCSR + 4].cast("I")
        self.rounding = self.bytes[ROUNDING : ROUNDING + 4].cast("I")
        self.fault = self.words[ADDRESS >> 3 : (ADDRESS >> 3) + 1]
        self.target = self.words[TARGET >> 3 : (TARGET >> 3) + 1]
        self.budget = self.bytes[BUDGET : BUDGET + 8].cast("q")
        self.site = self.bytes[SITE : SITE + 4].cast("I")
        self._tables = 0

    def tables(self) -> Tables:
        """Those of one more regime."""
        number = self._tables
        self._tables += 1
        assert number < REGIMES
        return Tables(self, number)

    def close(self) -> None:
        """Gives the memory back. Nobody else may hold a view of it."""
        views = (self.rounding, self.mxcsr, self.f, self.site, self.budget, self.target, self.fault, self.x)
        for view in (*views, self.doubles, self.singles, self.words, self.bytes):
            view.release()
        del self._anchor
        self._map.close()
