"""A hart that executes translated code, and Python where translated code stops."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import cast

from minivmm.emulator.atomics import Atomics
from minivmm.emulator.code import MAX_BLOCK, Block, CodeCache
from minivmm.emulator.csr import CsrFile
from minivmm.emulator.decoder import Decoded
from minivmm.emulator.floating import BOXED, Floating
from minivmm.emulator.hart import Hart
from minivmm.emulator.mmu import Mmu
from minivmm.emulator.physical import PAGE_SHIFT, AddressSpace
from minivmm.emulator.system import SYSTEM
from minivmm.emulator.translator.code import TranslatedBlock, TranslatedCode
from minivmm.emulator.translator.csrs import SharedAtomics, SharedCsrs
from minivmm.emulator.translator.floating import TranslatingFloating
from minivmm.emulator.translator.mmu import TranslatingMmu, TranslatingRegime
from minivmm.emulator.translator.sites import Kind, Site
from minivmm.emulator.translator.state import State
from minivmm.emulator.traps import Cause, CodeChanged, Trap
from minivmm.outcome import EndOfRun

_M64 = (1 << 64) - 1
_ECALL = (Cause.ECALL_FROM_U, Cause.ECALL_FROM_S, 0, Cause.ECALL_FROM_M)  # by mode
_SIZE = {"b": 1, "h": 2, "w": 4, "d": 8}


class TranslatingHart(Hart):
    """Hart 0, by dynamic translation. Raises HostError when the host gives no executable memory."""

    slice = 1_000_000
    buffer_size = 32 << 20
    """Bytes for machine code: a guest instruction takes about 35 of them, with its stubs."""
    delivers = True
    """Whether translated code takes exceptions, and returns, by itself; else each is a call of `trap`."""

    def __init__(self, space: AddressSpace, lines: Callable[[], int], time_: Callable[[], int]) -> None:
        self.state = State()
        self._ram = space.ram.host_address
        self.translating = 0.0
        """Seconds of processor time spent making blocks."""
        self.exits = 0
        """How often translated code was left."""
        super().__init__(space, lines, time_)
        self.x = cast("list[int]", self.state.x)

    def _make_mmu(self) -> Mmu:
        return TranslatingMmu(self.space, self.state)

    def _make_csrs(self) -> CsrFile:
        return SharedCsrs(self)

    def _make_atomics(self) -> Atomics:
        return SharedAtomics(self)

    def _make_floating(self) -> Floating:
        return TranslatingFloating(self, self.state)

    def _make_code(self) -> CodeCache:
        return TranslatedCode(self, self.space, self.buffer_size)

    @property
    def figures(self) -> dict[str, int]:
        """As Hart's: machine code made, jumps chained, times it was left, microseconds spent translating."""
        code = cast(TranslatedCode, self.code)
        return {
            "bytes": code.translated_bytes,
            "chained": code.chained,
            "left": self.exits,
            "translating_us": int(self.translating * 1e6),
        }

    def execute(self, count: int) -> None:
        """As Hart.execute."""
        self._goal += count - self._left
        self._left = count
        pc = self.pc
        while self._left > 0:
            block = self._find(pc)
            if type(block) is not TranslatedBlock:
                pc = self._interpret(cast(Block, block))
            elif self._left >= block.count:
                pc = self._run(block)
            else:  # more than was asked for, rather than nothing; what is left is taken back, or it had no end
                extra = block.count - self._left
                self._grant(extra)
                pc = self._run(block)
                self._grant(-min(extra, max(self._left, 0)))
        self.pc = pc

    def _grant(self, count: int) -> None:
        """So many more instructions."""
        self._goal += count
        self._left += count

    def _find(self, pc: int) -> Block | TranslatedBlock:
        block = self.regime.blocks.get(pc)
        if block is None:
            started = time.thread_time()
            block = self.code.find(self.regime, pc)
            self.translating += time.thread_time() - started
        return cast("Block | TranslatedBlock", block)

    def _interpret(self, block: Block) -> int:
        """A block of one instruction that is not translated. Returns where to go on."""
        pc = block.addresses[0]
        try:
            for operation in block.operations:
                pc = operation()  # type: ignore[assignment]
        except Trap as trap:
            self.trap(block.addresses[0], trap.cause, trap.tval)
            return self.pc
        except CodeChanged:
            pc = block.end
        except EndOfRun:
            self._left -= 1
            self.pc = block.addresses[0]
            raise
        self._left -= block.count
        return pc

    # Cost: about 3 us each time translated code is left.
    def _run(self, block: TranslatedBlock) -> int:
        """Executes translated code from a block on; returns where to go on when that is for others to say."""
        code, state = cast(TranslatedCode, self.code), self.state
        enter, sites, budget, number = code.enter, code.sites, state.budget, state.site
        traps, stale = state.traps, state.stale
        regime = self.regime
        budget[0] = self._left
        address = block.entry
        while True:
            enter(state.address, address)
            self.exits += 1
            site = sites[number[0]]
            kind, self._left = site.kind, budget[0]
            if site.regime is not regime:  # translated code took a trap, or returned from one
                regime = self.regime = site.regime
                self.mode = regime.fetch_mode
            if stale[0]:
                cast(TranslatingMmu, self.mmu).forget_pages()
                stale[0] = 0
            if traps[0]:  # each came off the budget as if it were an instruction
                self.traps += traps[0]
                self._goal -= traps[0]
                traps[0] = 0
            if kind is Kind.SYSTEM:
                self._left += site.block.count - site.index
                pc = self._system(site)
                following = self._find(pc) if self._left >= MAX_BLOCK else None
                if type(following) is not TranslatedBlock:
                    return pc
                regime = self.regime
                budget[0] = self._left
                address = following.entry
                continue
            if kind is Kind.ATTEND:
                self._left += site.block.count - site.index - 1
                self.attend()
                return site.following
            if kind is Kind.CHAIN or kind is Kind.JUMP:
                pc = site.target if kind is Kind.CHAIN else state.target[0]
                flushed = code.flushed
                following = self._find(pc)
                if type(following) is not TranslatedBlock:
                    return pc
                if kind is Kind.JUMP:
                    site.regime.tables.enter_jump(pc, following.entry)
                elif code.flushed == flushed:
                    code.chain(site, following)
                address = following.entry
            elif kind is Kind.BUDGET:
                if self._left > 0:
                    self.attend()
                return site.pc
            else:
                self._left += site.block.count  # as at the block's start, like the interpreter's
                try:
                    self._slow(site)
                except Trap as trap:
                    self._left -= site.index
                    self.trap(site.pc, trap.cause, trap.tval)
                    return self.pc
                except CodeChanged:
                    self._left -= site.index + 1
                    return site.following
                except EndOfRun:
                    self._left -= site.index + 1
                    self.pc = site.pc
                    raise
                budget[0] = self._left - site.block.count
                address = site.resume

    def _system(self, site: Site) -> int:
        """A SYSTEM instruction; everything before it is done and counted. Returns where to go on."""
        decoded = cast(Decoded, site.decoded)
        if decoded.name == "ecall":
            self.trap(site.pc, _ECALL[self.mode])
            return self.pc
        if site.operation is None:
            site.operation = partial(SYSTEM[decoded.name], self, decoded, site.pc)
        try:
            pc = site.operation()
        except Trap as trap:
            self.trap(site.pc, trap.cause, trap.tval)
            return self.pc
        except EndOfRun:
            self._left -= 1
            self.pc = site.pc
            raise
        self._left -= 1
        return cast(int, pc)

    def _slow(self, site: Site) -> None:
        """Does what translated code could not. Raises Trap, CodeChanged, EndOfRun."""
        address, name, regime = self.state.fault[0], site.name, site.regime
        if site.kind is Kind.LOAD:
            size = _SIZE[name[2] if name[0] == "f" else name[1]]
            value = self.mmu.load(regime, address, size)
            if name[0] == "f":
                self.floating.f[site.register] = value if size == 8 else value | BOXED
            elif site.register:
                if len(name) == 2:  # no u: sign-extended
                    sign = 1 << 8 * size - 1
                    value = (value ^ sign) - sign & _M64
                self.x[site.register] = value
            self._enter(regime.read, regime.tables.read_at, address, regime)
        elif site.kind is Kind.STORE:
            size = _SIZE[name[2] if name[0] == "f" else name[1]]
            self.mmu.store(regime, address, size, (self.floating.f if name[0] == "f" else self.x)[site.register])
            self._enter(regime.write, regime.tables.write_at, address, regime)
        elif site.kind is Kind.CALL:
            if site.operation is None:
                site.operation = self.floating.operation(regime, cast(Decoded, site.decoded))
            site.operation()
        else:
            decoded = cast(Decoded, site.decoded)
            if site.operation is None:
                site.operation = self.atomics.operation(regime, decoded)
            site.operation()
            if decoded.name[:2] == "lr":
                self._enter(regime.read, regime.tables.read_at, address, regime)
            else:
                self._enter(regime.write, regime.tables.write_at, address, regime)

    def _enter(self, pages: dict[int, int], table_at: int, address: int, regime: TranslatingRegime) -> None:
        """What the Mmu knows about a page, translated code is to know too."""
        delta = pages.get(address >> PAGE_SHIFT)
        if delta is not None:
            regime.tables.enter(table_at, address, self._ram + delta)

    def close(self) -> None:
        """As Hart's; the registers can still be read."""
        self.x = list(self.x)
        self.floating.close()
        cast(TranslatedCode, self.code).close()
