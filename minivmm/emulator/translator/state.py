"""What translated code and Python share: one piece of memory, at a fixed distance from RBP while translated code runs.

    x            the registers, and one more that swallows what is written to x0
    ADDRESS      where a load or store wanted to go that translated code could not do itself
    SITE         which place in translated code was left (sites.Site)
    F_REGISTERS  the floating-point registers
    MXCSR        the guest's rounding mode and flags; HOST_MXCSR keeps Python's while translated code runs
    ROUNDING     what of MXCSR is the dynamic rounding mode, for who goes back to it; OTHER_MXCSR while it is another
    TARGET       where an indirect jump goes
    BUDGET       instructions that may still be executed
    TRAPS        exceptions that translated code delivered itself, since Python looked
    STALE        1 after translated code has flushed the TLB: what Python knows about pages is to go too
    WALKS        of page tables
    SATP         and the one before while translated code changes it
    PENDING      the interrupts that devices held up when Python looked, as bits of mip
    RESERVED     LR's reservation: the host's address plus 1 for four bytes or 2 for eight; 0 for none
    RESERVED_VALUE  and what was loaded
    CSRS         the control and status registers that translated code accesses (csrs.SHARED)
    TLB_LOG      where the entries are that were made since all were empty: 32 bits each, the distance from RBP; as many
                 as TLB_COUNT says, and when that is LOG_ENTRIES there may be more
    FETCH_LOG    the pages that translated instructions come from: virtual page, plus 1 in S-mode, and physical page;
                 as many as FETCH_COUNT says, and when that is FETCH_ENTRIES there may be more
    for each regime (mmu.Regime) its software TLB and its jump cache
    and, for a process, an entry for every load and store: the page it went to last

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
TRAPS = 1024
PENDING = 1032
RESERVED = 1040
RESERVED_VALUE = 1048
CSRS = 1056
STALE = 1536
WALKS = 1544
SATP = 1552
OLD_SATP = 1560
TLB_COUNT = 1568
FETCH_COUNT = 1576
TLB_LOG = 4096
FETCH_LOG = 8192
LOG_ENTRIES = 1024
FETCH_ENTRIES = 512
RBP_OFFSET = 128  # so that x1 to x31 are within the reach of an 8-bit displacement

ENTRY_SHIFT = 4  # bytes of an entry: two words
TLB_ENTRIES = 1 << 12
JUMP_ENTRIES = 1 << 12
TLB_BYTES = TLB_ENTRIES << ENTRY_SHIFT
JUMP_BYTES = JUMP_ENTRIES << ENTRY_SHIFT
REGIMES = 60
"""There are no more: U and S with SUM and MXR, M with three data modes, each with floating point in three states."""
REGIME_BYTES = 2 * TLB_BYTES + JUMP_BYTES
_REGIMES_AT = 16384
_PLACES_AT = _REGIMES_AT + REGIMES * REGIME_BYTES
PLACES = 1 << 15
_SIZE = _PLACES_AT + (PLACES << ENTRY_SHIFT)
_NO_PAGE = (1 << 64) - 1  # no page and no instruction has this address
_EMPTY = b"\xff" * 16


class Tables:
    """One regime's tables: where they are, and how Python changes them."""

    def __init__(self, state: State, number: int) -> None:
        start = _REGIMES_AT + number * REGIME_BYTES
        self.read_at = start
        self.write_at = start + TLB_BYTES
        self.jumps_at = start + 2 * TLB_BYTES
        self._state = state
        self.clear_tlb()
        self.clear_jumps()

    def clear_tlb(self) -> None:
        """No page may be loaded from or stored to."""
        self._state.bytes[self.read_at : self.jumps_at] = 2 * _EMPTY_TLB

    def clear_jumps(self) -> None:
        """No indirect jump finds its way."""
        self._state.bytes[self.jumps_at : self.jumps_at + JUMP_BYTES] = _EMPTY_JUMPS

    def enter(self, table_at: int, address: int, addend: int) -> None:
        """Loads or stores (`table_at`: read_at or write_at) at the page of `address` go to address + addend."""
        state = self._state
        at = table_at + (address >> PAGE_SHIFT) % TLB_ENTRIES * 16
        state.words[at >> 3] = address >> PAGE_SHIFT << PAGE_SHIFT
        state.words[(at >> 3) + 1] = addend & (1 << 64) - 1
        count = state.words[TLB_COUNT >> 3]
        if count < LOG_ENTRIES:
            state.tlb_log[count] = at - RBP_OFFSET
            state.words[TLB_COUNT >> 3] = count + 1

    def enter_jump(self, pc: int, entry: int) -> None:
        """Indirect jumps to `pc` go to `entry`."""
        word = self.jumps_at + (pc >> 1) % JUMP_ENTRIES * 16 >> 3
        self._state.words[word] = pc
        self._state.words[word + 1] = entry
        self._state.jumps.append(word)


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
        self.traps = self.words[TRAPS >> 3 : (TRAPS >> 3) + 1]
        self.pending = self.words[PENDING >> 3 : (PENDING >> 3) + 1]
        self.tlb_log = self.bytes[TLB_LOG : TLB_LOG + 4 * LOG_ENTRIES].cast("I")
        self.stale = self.words[STALE >> 3 : (STALE >> 3) + 1]
        self.jumps: list[int] = []
        """The words of the entries made in jump caches since all were empty."""
        self._places = 0
        self._tables: list[Tables] = []
        self._fetched: set[tuple[int, int]] = set()

    def tables(self) -> Tables:
        """Those of one more regime."""
        assert len(self._tables) < REGIMES
        self._tables.append(Tables(self, len(self._tables)))
        return self._tables[-1]

    def clear_tlb(self) -> None:
        """No page may be loaded from or stored to in any regime."""
        count = self.words[TLB_COUNT >> 3]
        if count < LOG_ENTRIES:
            for at in self.tlb_log[:count]:
                self.words[at + RBP_OFFSET >> 3] = _NO_PAGE
        else:
            for tables in self._tables:
                tables.clear_tlb()
        self.words[TLB_COUNT >> 3] = 0
        self.bytes[_PLACES_AT : _PLACES_AT + (self._places << ENTRY_SHIFT)] = _EMPTY * self._places

    def place(self) -> int | None:
        """A TLB entry that is for one load or store alone: its displacement from RBP; None when there is no more."""
        if self._places == PLACES:
            return None
        at = _PLACES_AT + (self._places << ENTRY_SHIFT)
        self._places += 1
        self.words[at >> 3] = _NO_PAGE
        return at - RBP_OFFSET

    def forget_places(self) -> None:
        """There is no code that has one."""
        self._places = 0

    def clear_jumps(self) -> None:
        """No indirect jump finds its way in any regime."""
        if len(self.jumps) < LOG_ENTRIES:
            for word in self.jumps:
                self.words[word] = _NO_PAGE
        else:
            for tables in self._tables:
                tables.clear_jumps()
        self.jumps.clear()

    def note_fetch(self, virtual: int, physical: int) -> None:
        """Instructions come from this physical page, for this virtual page (plus 1 in S-mode)."""
        if (virtual, physical) in self._fetched:
            return
        count = len(self._fetched)
        if count < FETCH_ENTRIES:
            word = FETCH_LOG + 16 * count >> 3
            self.words[word], self.words[word + 1] = virtual, physical
            self._fetched.add((virtual, physical))
            self.words[FETCH_COUNT >> 3] = count + 1

    def forget_fetches(self) -> None:
        """Instructions come from nowhere yet."""
        self._fetched.clear()
        self.words[FETCH_COUNT >> 3] = 0

    def close(self) -> None:
        """Gives the memory back. Nobody else may hold a view of it."""
        views = (self.site, self.budget, self.tlb_log, self.stale, self.traps, self.pending, self.target, self.fault)
        floating = (self.rounding, self.mxcsr, self.f, self.doubles, self.singles)
        for view in (*views, *floating, self.x, self.words, self.bytes):
            view.release()
        del self._anchor
        self._map.close()
