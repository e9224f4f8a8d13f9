"""Decoded code: runs of instructions made ready to execute, kept by physical page until somebody writes there.

A block goes from an address to the first jump, the end of its page or MAX_BLOCK instructions. It is made once for a
regime and a virtual address, and found again after a change of address space as long as the page still holds the same
bytes. A store by the hart into decoded bytes is seen at once (as on QEMU); one by a device at the next FENCE.I.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from minivmm.emulator.decoder import Decoded, IllegalInstruction, decode, is_compressed
from minivmm.emulator.instructions import DYNAMIC, FLOATING, RMM
from minivmm.emulator.physical import PAGE_SHIFT, AddressSpace
from minivmm.emulator.semantics import ENDS_BLOCK, STATEMENTS, Operation, factory, quotient, remainder
from minivmm.emulator.system import SYSTEM
from minivmm.emulator.traps import Access, Cause, Trap
from minivmm.memory import PAGE_SIZE

if TYPE_CHECKING:
    from minivmm.emulator.hart import Hart
    from minivmm.emulator.mmu import Regime

MAX_BLOCK = 64  # instructions
MAX_INSTRUCTIONS = 1 << 19  # decoded at once, about 300 MB of ours; then all is forgotten
OFFSET_MASK = PAGE_SIZE - 1
_M64 = (1 << 64) - 1
_WHOLE_PAGE = (1 << (PAGE_SIZE >> 1)) - 1


class Block:
    """Functions to call in order; the last returns the address to go on at."""

    __slots__ = ("addresses", "count", "end", "operations")

    def __init__(self, operations: list[Operation], addresses: list[int], end: int) -> None:
        self.operations = operations
        self.addresses = addresses  # of each instruction
        self.count = len(addresses)  # instructions: less than operations by one where the end is no jump
        self.end = end  # the address after the last instruction


class CodePage:
    """What has been decoded of one page of RAM."""

    __slots__ = ("blocks", "bytes", "covered", "generation")

    def __init__(self, contents: bytes, generation: int) -> None:
        self.blocks: dict[tuple[Regime, int], Block] = {}
        self.bytes = contents
        self.covered = 0  # bit n: the parcel at byte 2 * n is part of a decoded instruction
        self.generation = generation


class CodeCache:
    """Finds and makes blocks for one hart."""

    def __init__(self, hart: Hart, space: AddressSpace) -> None:
        self._hart, self._space, self._mmu = hart, space, hart.mmu
        self._pages: dict[int, CodePage] = {}  # by page of RAM
        self._generation = 0
        self._held = 0
        self.made = 0
        """Blocks decoded so far."""
        self.decoded = 0
        """Instructions decoded so far."""
        self.invalidated = 0
        """Pages whose decoded code was overwritten."""
        self.longest = MAX_BLOCK
        """Instructions in a block that is made from now on."""
        self.flushed = 0
        """How often all decoded code was forgotten because it was too much."""

    # --- who writes into code ----------------------------------------------------------------------------------------
    def is_code(self, offset: int) -> bool:
        """Whether the page of this offset in RAM has decoded instructions."""
        return offset >> PAGE_SHIFT in self._pages

    def note_store(self, offset: int, size: int) -> bool:
        """Bytes in RAM were written, all in one page. True when they were decoded, and are not any more."""
        page = self._pages.get(offset >> PAGE_SHIFT)
        if page is None:
            return False
        first = (offset & OFFSET_MASK) >> 1
        last = (offset + size - 1 & OFFSET_MASK) >> 1
        if not page.covered >> first & (1 << last - first + 1) - 1:
            page.bytes = b""  # no longer what was decoded from: not to be compared with
            return False
        del self._pages[offset >> PAGE_SHIFT]
        self._mmu.forget_blocks()
        self.invalidated += 1
        return True

    def forget(self) -> None:
        """All decoded code goes; what is needed is decoded again."""
        self._pages.clear()
        self._mmu.forget_blocks()
        self._held = 0
        self.flushed += 1

    def fence(self) -> None:
        """FENCE.I: what devices wrote counts from now on. Pages are compared when they are next needed."""
        self._generation += 1
        self._mmu.forget_blocks()

    # --- blocks ------------------------------------------------------------------------------------------------------
    def find(self, regime: Regime, pc: int) -> Block:
        """The block at `pc`, made if need be. A fetch that faults is a block too, which traps and is not kept."""
        try:
            offset = self._locate(regime, pc)
            page = self._page(offset)
            block = page.blocks.get((regime, pc))
            if block is None:
                block = self._make(regime, pc, offset, self.longest)
                if block.end - pc <= PAGE_SIZE - (offset & OFFSET_MASK):
                    page.blocks[regime, pc] = block
        except Trap as trap:
            return Block([partial(_raise, trap.cause, trap.tval)], [pc], pc)
        regime.blocks[pc] = block
        return block

    def single(self, regime: Regime, pc: int) -> Block:
        """A block of the one instruction at `pc`, decoded whatever the engine, kept nowhere."""
        try:
            offset = self._locate(regime, pc)
            self._page(offset)
            return CodeCache._make(self, regime, pc, offset, 1)
        except Trap as trap:
            return Block([partial(_raise, trap.cause, trap.tval)], [pc], pc)

    def _locate(self, regime: Regime, pc: int) -> int:
        """Where in RAM the instruction at `pc` is. Raises Trap."""
        offset = self._space.ram_offset(self._mmu.translate(pc, Access.FETCH, regime.fetch_mode))
        if offset is None:
            raise Trap(Cause.INSTRUCTION_ACCESS_FAULT, pc)
        return offset

    def _page(self, offset: int) -> CodePage:
        """The page's decoded code, none of it out of date."""
        number = offset >> PAGE_SHIFT
        page = self._pages.get(number)
        if page is not None and page.generation == self._generation:
            return page
        start = number << PAGE_SHIFT
        contents = bytes(self._space.ram8[start : start + PAGE_SIZE])
        if page is not None and page.bytes == contents:
            page.generation = self._generation
            return page
        if self._held >= MAX_INSTRUCTIONS:
            self.forget()
        page = self._pages[number] = CodePage(contents, self._generation)
        self._mmu.forget_writable()
        return page

    def _make(self, regime: Regime, pc: int, offset: int, limit: int) -> Block:
        """Decodes from `pc`, which is at `offset` in RAM. Raises Trap when the first instruction cannot be fetched."""
        operations: list[Operation] = []
        addresses: list[int] = []
        start, page_end = offset, (offset | OFFSET_MASK) + 1
        bound = self._bound(regime)
        ended = False
        self.made += 1
        while not ended and len(addresses) < limit and offset < page_end:
            try:
                decoded = self.decode(regime, pc, offset, page_end)
            except (Trap, IllegalInstruction) as error:
                if addresses:
                    break  # what comes first is executed first
                if isinstance(error, Trap):
                    raise
                # mtval gets the bits (3.1.16).
                self._cover(offset, offset + error.size, 1)
                illegal = partial(_raise, Cause.ILLEGAL_INSTRUCTION, error.bits)
                return Block([illegal], [pc], pc + error.size & _M64)
            name, size = decoded.name, decoded.size
            alone = name in SYSTEM
            if addresses and (alone or offset + size > page_end):
                break  # a block of its own: counters are exact there, and one page's blocks stay in it
            following = pc + size & _M64
            if name in STATEMENTS:
                rd, imm = decoded.rd or SINK, decoded.imm
                operation = factory(name)(rd, decoded.rs1, decoded.rs2, imm, pc, following, pc + imm & _M64, *bound)
            elif alone:
                operation = partial(SYSTEM[name], self._hart, decoded, pc)
            elif name in FLOATING:
                operation = self._hart.floating.operation(regime, decoded)
            else:
                operation = self._hart.atomics.operation(regime, decoded)
            operations.append(operation)
            addresses.append(pc)
            pc = following
            offset += size
            ended = alone or name in ENDS_BLOCK
        self._cover(start, offset, len(addresses))
        if not ended:
            operations.append(partial(int, pc))  # returns pc
        return Block(operations, addresses, pc)

    def _bound(self, regime: Regime) -> tuple[object, ...]:
        """What every line of semantics.py may use, in the order of its CELLS, after the operands."""
        space, mmu = self._space, self._mmu
        return (
            self._hart.x,
            regime,
            regime.read,
            regime.write,
            mmu.load,
            mmu.store,
            space.ram8,
            space.ram16,
            space.ram32,
            space.ram64,
            space.signed8,
            space.signed16,
            space.signed32,
            quotient,
            remainder,
        )

    def decode(self, regime: Regime, pc: int, offset: int, page_end: int) -> Decoded:
        """The instruction at `pc`. Raises Trap, IllegalInstruction; that also where there is no floating point now."""
        decoded = decode(self._fetch(regime, pc, offset, page_end))
        if decoded.name in FLOATING and (not regime.floating or RMM < decoded.rm < DYNAMIC):
            raise IllegalInstruction(decoded.raw, decoded.size)
        return decoded

    def _fetch(self, regime: Regime, pc: int, offset: int, page_end: int) -> int:
        """The bits at `pc`, the second parcel only where there is one. Raises Trap with that parcel's address."""
        low = int(self._space.ram16[offset >> 1])
        if is_compressed(low):
            return low
        at = offset + 2
        if at == page_end:
            second = pc + 2 & _M64
            there = self._space.ram_offset(self._mmu.translate(second, Access.FETCH, regime.fetch_mode))
            if there is None:
                raise Trap(Cause.INSTRUCTION_ACCESS_FAULT, second)
            self._page(there).covered |= 1
            at = there
        return low | self._space.ram16[at >> 1] << 16

    def _cover(self, start: int, end: int, count: int) -> None:
        """Marks the bytes of `count` instructions, from `start` to `end` in RAM, as decoded; to the page's end only."""
        self.decoded += count
        self._held += count
        page = self._pages[start >> PAGE_SHIFT]
        parcels = (1 << (end - start >> 1)) - 1 << ((start & OFFSET_MASK) >> 1)
        page.covered |= parcels & _WHOLE_PAGE


SINK = 32
"""Where x0's new values go: a place in the list of registers that nobody reads."""


def _raise(cause: Cause, tval: int) -> None:
    raise Trap(cause, tval)
