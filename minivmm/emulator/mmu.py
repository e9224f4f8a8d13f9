"""Sv39 (Privileged 1.12, 4.3 and 4.4): the walk, and the loads and stores that need one.

Accessed and dirty bits are set by the walk, as QEMU's `virt` does by default; a page that is not dirty yet is not in
the `write` table, so that its first store comes here.

Most loads and stores never come here: an instruction looks its page up in its regime's `read` or `write` table, which
gives what to add to the virtual address to get the offset in RAM. A page that is not in the table is walked, checked
and, when it is RAM, entered. A page with decoded instructions is never in `write`.

Misaligned loads and stores are done, in two parts where they cross a page; atomics must be aligned.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from minivmm.emulator.csr_table import SATP_BARE, SATP_MODE_SHIFT, SATP_PPN
from minivmm.emulator.physical import PAGE_SHIFT, AddressSpace, NobodyThere
from minivmm.emulator.traps import ACCESS_FAULT, MISALIGNED, PAGE_FAULT, Access, CodeChanged, Privilege, Trap
from minivmm.memory import PAGE_SIZE

if TYPE_CHECKING:
    from minivmm.emulator.code import CodeCache

OFFSET_MASK = PAGE_SIZE - 1

# Page table entries (4.4.1, figure 4.19).
PTE_V, PTE_R, PTE_W, PTE_X, PTE_U, PTE_G, PTE_A, PTE_D = (1 << bit for bit in range(8))
PTE_PPN_SHIFT, PTE_PPN = 10, (1 << 44) - 1
PTE_RESERVED = 0x3FF << 54  # N, PBMT and the reserved ones: no extension here gives them a meaning
MAX_ENTRIES = 1 << 16  # pages in a table; one page of RAM may be mapped at any number of addresses
LEVELS, VPN_BITS = 3, 9
CANONICAL = LEVELS * VPN_BITS + PAGE_SHIFT - 1  # bits 63 to 38 of an address are all equal
_U, _M = int(Privilege.U), int(Privilege.M)
_FETCH, _LOAD, _STORE = int(Access.FETCH), int(Access.LOAD), int(Access.STORE)
_NEEDED = (PTE_X, PTE_R, PTE_W)  # by Access


class FloatingState(IntEnum):
    """What floating-point instructions do."""

    OFF = 0  # mstatus.FS: they are illegal
    ON = 1
    UNUSUAL = 2  # frm is a rounding mode that the host does not have, or nobody


class Regime:
    """The rules code runs under: who fetches, who loads and stores, SUM and MXR, floating point; and what is known.

    Decoded blocks are bound to their regime's tables, so that a change of mode is a change of regime and costs nothing.
    """

    __slots__ = (
        *("blocks", "data_mode", "fetch_mode", "floating", "mxr", "sum"),
        *("read", "read_device", "write", "write_device"),
    )

    def __init__(self, fetch_mode: int, data_mode: int, sum_: bool, mxr: bool, floating: FloatingState) -> None:
        self.fetch_mode = fetch_mode
        self.data_mode = data_mode  # another than fetch_mode with mstatus.MPRV (3.1.6.3)
        self.sum = sum_
        self.mxr = mxr
        self.floating = floating
        self.blocks: dict[int, object] = {}  # by virtual address: code.Block
        self.read: dict[int, int] = {}  # virtual page -> offset in RAM minus virtual address
        self.write: dict[int, int] = {}
        self.read_device: dict[int, int] = {}  # virtual page -> physical address minus virtual address
        self.write_device: dict[int, int] = {}


class Mmu:
    """Translates, loads and stores for one hart."""

    def __init__(self, space: AddressSpace) -> None:
        self.space = space
        self.satp = 0
        self.walks = 0
        self.code: CodeCache
        self._regimes: dict[tuple[int, int, bool, bool, FloatingState], Regime] = {}

    def regime(self, fetch_mode: int, data_mode: int, sum_: bool, mxr: bool, floating: FloatingState) -> Regime:
        """The one Regime of these rules."""
        key = (fetch_mode, data_mode, sum_, mxr, floating)
        found = self._regimes.get(key)
        if found is None:
            found = self._regimes[key] = Regime(*key)
        return found

    def flush(self) -> None:
        """Forgets every translation: satp was written, or sfence.vma executed."""
        for regime in self._regimes.values():
            regime.read.clear()
            regime.write.clear()
            regime.read_device.clear()
            regime.write_device.clear()
            regime.blocks.clear()

    def forget_blocks(self) -> None:
        """Decoded blocks are to be looked for again."""
        for regime in self._regimes.values():
            regime.blocks.clear()

    def forget_writable(self) -> None:
        """Stores are to be looked at again: a page has got decoded instructions."""
        for regime in self._regimes.values():
            regime.write.clear()

    # --- translation -------------------------------------------------------------------------------------------------
    def translate(self, address: int, access: int, mode: int, sum_: bool = False, mxr: bool = False) -> int:
        """The physical address. Raises Trap with the page fault or access fault of this kind of access."""
        if mode == _M or self.satp >> SATP_MODE_SHIFT == SATP_BARE:
            return address
        return self._walk(address, access, mode, sum_, mxr)

    def _walk(self, address: int, access: int, mode: int, sum_: bool, mxr: bool) -> int:
        """The algorithm of 4.3.2, its steps numbered as there."""
        self.walks += 1
        fault = PAGE_FAULT[access]
        if address >> CANONICAL not in (0, (1 << 64 - CANONICAL) - 1):
            raise Trap(fault, address)
        ram64, ram_offset = self.space.ram64, self.space.ram_offset
        table = (self.satp & SATP_PPN) << PAGE_SHIFT  # 1
        for level in range(LEVELS - 1, -1, -1):
            shift = PAGE_SHIFT + VPN_BITS * level
            at = ram_offset(table + (address >> shift & (1 << VPN_BITS) - 1) * 8)  # 2
            if at is None:
                raise Trap(ACCESS_FAULT[access], address)
            pte = ram64[at >> 3]
            if not pte & PTE_V or pte & (PTE_R | PTE_W) == PTE_W or pte & PTE_RESERVED:  # 3
                raise Trap(fault, address)
            table = (pte >> PTE_PPN_SHIFT & PTE_PPN) << PAGE_SHIFT
            if not pte & (PTE_R | PTE_X):  # 4: a pointer to the next level
                if pte & (PTE_U | PTE_A | PTE_D):
                    raise Trap(fault, address)
                continue
            granted = pte | PTE_R if mxr and pte & PTE_X else pte  # 5
            wrong_mode = not pte & PTE_U if mode == _U else pte & PTE_U and (access == _FETCH or not sum_)
            within = (1 << shift) - 1
            if wrong_mode or not granted & _NEEDED[access] or table & within:  # 6: a misaligned superpage
                raise Trap(fault, address)
            wanted = pte | PTE_A | (PTE_D if access == _STORE else 0)  # 7
            if wanted != pte:
                ram64[at >> 3] = wanted
                self.code.note_store(at, 8)
            return table | address & within  # 8
        raise Trap(fault, address)

    # --- loads and stores that found no page in the tables -----------------------------------------------------------
    def load(self, regime: Regime, address: int, size: int) -> int:
        """`size` bytes at a virtual address, unsigned. Raises Trap."""
        end = (address & OFFSET_MASK) + size - PAGE_SIZE
        if end > 0:  # the part in the next page counts from its start, in the trap too
            first = size - end
            low = self.load_part(regime, address, first)
            return low | self.load_part(regime, address + first & 0xFFFF_FFFF_FFFF_FFFF, end) << 8 * first
        return self.load_part(regime, address, size)

    def load_part(self, regime: Regime, address: int, size: int) -> int:
        """As `load`, of bytes in one page: enters the page when it is RAM."""
        known = regime.read_device.get(address >> PAGE_SHIFT)
        if known is None:
            physical = self.translate(address, _LOAD, regime.data_mode, regime.sum, regime.mxr)
            offset = self.space.ram_offset(physical)
            if offset is not None:
                _enter(regime.read, address, offset)
                return int.from_bytes(self.space.ram8[offset : offset + size], "little")
            _enter(regime.read_device, address, physical)
        else:
            physical = known + address
        try:
            return self.space.read_device(physical, size)
        except NobodyThere:
            raise Trap(ACCESS_FAULT[_LOAD], address) from None

    def store(self, regime: Regime, address: int, size: int, value: int) -> None:
        """Stores the low `size` bytes of `value`. Raises Trap, and then nothing is stored; CodeChanged."""
        end = (address & OFFSET_MASK) + size - PAGE_SIZE
        value &= (1 << 8 * size) - 1
        if end <= 0:
            if self._store_part(regime, address, self._writable(regime, address), size, value):
                raise CodeChanged
            return
        first = size - end
        second = address + first & 0xFFFF_FFFF_FFFF_FFFF
        places = self._writable(regime, address), self._writable(regime, second)
        for place, part in zip(places, (address, second), strict=True):
            if self.space.ram_offset(place) is None and not self.space.is_device(place):
                raise Trap(ACCESS_FAULT[_STORE], part)  # before a byte is stored
        changed = self._store_part(regime, address, places[0], first, value & (1 << 8 * first) - 1)
        if self._store_part(regime, second, places[1], end, value >> 8 * first) or changed:
            raise CodeChanged

    def _writable(self, regime: Regime, address: int) -> int:
        """The physical address a store goes to."""
        known = regime.write_device.get(address >> PAGE_SHIFT)
        if known is not None:
            return known + address
        return self.translate(address, _STORE, regime.data_mode, regime.sum, regime.mxr)

    def _store_part(self, regime: Regime, address: int, physical: int, size: int, value: int) -> bool:
        """Stores bytes in one page. True when they were decoded instructions."""
        offset = self.space.ram_offset(physical)
        if offset is None:
            _enter(regime.write_device, address, physical)
            try:
                self.space.write_device(physical, size, value)
            except NobodyThere:
                raise Trap(ACCESS_FAULT[_STORE], address) from None
            return False
        self.space.ram8[offset : offset + size] = value.to_bytes(size, "little")
        if self.code.is_code(offset):
            return self.code.note_store(offset, size)
        _enter(regime.write, address, offset)
        return False

    def atomic_offset(self, regime: Regime, address: int, size: int, access: int) -> int:
        """Where in RAM an atomic works (8.2, 8.4). Raises Trap: misaligned, not permitted, or not RAM."""
        if address & size - 1:
            raise Trap(MISALIGNED[access], address)
        known = (regime.write if access == _STORE else regime.read).get(address >> PAGE_SHIFT)
        if known is not None:
            return known + address
        physical = self.translate(address, access, regime.data_mode, regime.sum, regime.mxr)
        offset = self.space.ram_offset(physical)
        if offset is None:
            raise Trap(ACCESS_FAULT[access], address)
        if access == _LOAD:
            _enter(regime.read, address, offset)
        elif not self.code.is_code(offset):
            _enter(regime.write, address, offset)
        return offset


def _enter(table: dict[int, int], address: int, place: int) -> None:
    """From now on the page is known: it is at `place` in RAM, or in the physical address space for a device's."""
    if len(table) >= MAX_ENTRIES:
        table.clear()
    table[address >> PAGE_SHIFT] = place - address
