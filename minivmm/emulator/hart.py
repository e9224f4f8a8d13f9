"""A RISC-V hart: registers, modes and traps, and the loop that executes decoded blocks.

One instruction is one call of the function its decoding made (semantics.py, system.py, atomics.py). The loop knows how
many instructions are behind it only at the end of a block; where one stops halfway, the list iterator says how far it
got, so a trap is exact and costs the others nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

from minivmm.emulator.assembly import ABI_NAMES, FLOATING_NAMES
from minivmm.emulator.atomics import Atomics
from minivmm.emulator.code import Block, CodeCache
from minivmm.emulator.csr import CsrFile
from minivmm.emulator.csr_table import MPP_SHIFT, Interrupt, Status
from minivmm.emulator.floating import Floating
from minivmm.emulator.instructions import RMM
from minivmm.emulator.mmu import FloatingState, Mmu
from minivmm.emulator.physical import RAM_BASE, AddressSpace
from minivmm.emulator.semantics import Operation
from minivmm.emulator.traps import INTERRUPT, Cause, CodeChanged, Privilege, Trap
from minivmm.outcome import EndOfRun, Outcome

_U, _S, _M = int(Privilege.U), int(Privilege.S), int(Privilege.M)
_MIE, _SIE, _MPIE, _SPIE = int(Status.MIE), int(Status.SIE), int(Status.MPIE), int(Status.SPIE)
_MPP, _SPP, _MPRV, _SUM, _MXR, _FS = (
    int(Status.MPP),
    int(Status.SPP),
    int(Status.MPRV),
    int(Status.SUM),
    int(Status.MXR),
    int(Status.FS),
)
# 3.1.9: the order in which simultaneous interrupts are taken.
_PRIORITY = tuple(
    bit.bit_length() - 1
    for bit in map(int, (Interrupt.MEI, Interrupt.MSI, Interrupt.MTI, Interrupt.SEI, Interrupt.SSI, Interrupt.STI))
)
_VECTORED = 1  # mtvec.MODE (3.1.7)


class Hart:
    """Hart 0. `lines` are the interrupts the devices hold up, as bits of mip; `time` reads mtime."""

    slice = 2000
    """Instructions between two looks at what the world wants: about a millisecond."""

    def __init__(self, space: AddressSpace, lines: Callable[[], int], time: Callable[[], int]) -> None:
        self.space = space
        self.interrupt_lines = lines
        self.time = time
        self.x = [0] * 33
        """The registers; the last is where x0's new values go."""
        self.pc = RAM_BASE
        self.mode = _M
        self.waiting = False
        """In wfi, with no enabled interrupt pending when last looked."""
        self.traps = 0
        """Exceptions and interrupts taken."""
        self.attended = 0
        """How often a slice was ended for interrupts to be looked at."""
        self._goal = self._left = 0
        self.mmu = self._make_mmu()
        self.csrs = self._make_csrs()
        self.code = self.mmu.code = self._make_code()
        self.atomics = self._make_atomics()
        self.floating = self._make_floating()
        self.rules_changed()

    def _make_mmu(self) -> Mmu:
        return Mmu(self.space)

    def _make_csrs(self) -> CsrFile:
        return CsrFile(self)

    def _make_code(self) -> CodeCache:
        return CodeCache(self, self.space)

    def _make_atomics(self) -> Atomics:
        return Atomics(self)

    def _make_floating(self) -> Floating:
        return Floating(self)

    @property
    def figures(self) -> dict[str, int]:
        """What executing took beyond what every hart counts, by name."""
        return {}

    def architectural_state(self) -> dict[str, int]:
        """All that a program could tell of the hart, by name: what every engine must agree on (emulator.lockstep)."""
        return {
            "pc": self.pc,
            **dict(zip(ABI_NAMES, self.x, strict=False)),
            **dict(zip(FLOATING_NAMES, self.floating.f, strict=True)),
            "mode": self.mode,
            "waiting": int(self.waiting),
            "retired": self.retired,
            "traps": self.traps,
            "reservation": self.atomics.reservation,
            **self.csrs.state(),
        }

    def close(self) -> None:
        """Gives back what the host gave; it executes nothing any more."""

    # --- what instructions ask for -----------------------------------------------------------------------------------
    @property
    def retired(self) -> int:
        """Instructions executed: exact between blocks."""
        return self._goal - self._left

    def attend(self) -> None:
        """Ends the slice with this block: interrupts are to be looked at."""
        self.attended += 1
        self._goal -= self._left
        self._left = 0

    def rules_changed(self) -> None:
        """mstatus, frm or the mode changed: which tables translate, and which interrupts are enabled."""
        status = self.csrs.mstatus
        data_mode = self.mode
        if status & _MPRV and self.mode == _M:
            data_mode = (status & _MPP) >> MPP_SHIFT
        floating = FloatingState.OFF
        if status & _FS:
            floating = FloatingState.ON if self.floating.rounding < RMM else FloatingState.UNUSUAL
        self.regime = self.mmu.regime(self.mode, data_mode, bool(status & _SUM), bool(status & _MXR), floating)
        self.attend()

    def enter(self, mode: int) -> None:
        """Changes the privilege mode."""
        self.mode = mode
        self.atomics.drop_reservation()
        self.rules_changed()

    def wait_for_interrupt(self) -> None:
        """wfi: nothing more is executed until an interrupt that is enabled in mie is pending (3.3.3)."""
        if not self.csrs.mie & self.csrs.read_mip():
            self.waiting = True
        self.attend()

    # --- traps -------------------------------------------------------------------------------------------------------
    def pending_interrupt(self) -> int | None:
        """The interrupt to take now, or None (3.1.6.1, 3.1.9)."""
        csrs = self.csrs
        pending = csrs.mie & csrs.read_mip()
        if not pending:
            return None
        for_m = pending & ~csrs.mideleg
        if for_m and (self.mode < _M or csrs.mstatus & _MIE):
            return next(code for code in _PRIORITY if for_m >> code & 1)
        for_s = pending & csrs.mideleg
        if for_s and (self.mode < _S or (self.mode == _S and csrs.mstatus & _SIE)):
            return next(code for code in _PRIORITY if for_s >> code & 1)
        return None

    def trap(self, pc: int, cause: int, tval: int = 0, *, interrupt: bool = False) -> None:
        """Enters the handler (3.1.6.1, 3.1.8): in S-mode where that is delegated and the trap comes from S or U.

        Raises EndOfRun for an exception in M-mode's handler at its first instruction: it would come for ever.
        """
        csrs, self.traps, self.pc = self.csrs, self.traps + 1, pc
        delegated = (csrs.mideleg if interrupt else csrs.medeleg) >> cause & 1
        code = cause | INTERRUPT if interrupt else cause
        status = csrs.mstatus
        if delegated and self.mode <= _S:
            csrs.scause, csrs.sepc, csrs.stval = code, pc, tval
            vector = csrs.stvec
            status = status & ~(_SPIE | _SPP) | (_SPIE if status & _SIE else 0) | (_SPP if self.mode == _S else 0)
            csrs.mstatus = status & ~_SIE
            mode = _S
        else:
            vector = csrs.mtvec
            if self.mode == _M and pc == vector & ~3 and not interrupt:
                raise EndOfRun(
                    Outcome.TRIPLE_FAULT,
                    f"{Cause(cause).name.lower().replace('_', ' ')} at the trap handler's first instruction, "
                    f"mtvec {vector:#x}: it would come for ever",
                )
            csrs.mcause, csrs.mepc, csrs.mtval = code, pc, tval
            status = status & ~(_MPIE | _MPP) | (_MPIE if status & _MIE else 0) | self.mode << MPP_SHIFT
            csrs.mstatus = status & ~_MIE
            mode = _M
        self.pc = (vector & ~3) + (4 * cause if interrupt and vector & _VECTORED else 0)
        self.enter(mode)

    def look_at_interrupts(self) -> bool:
        """Takes a pending interrupt. False while the hart waits for one."""
        if self.waiting:
            if not self.csrs.mie & self.csrs.read_mip():
                return False
            self.waiting = False
        code = self.pending_interrupt()
        if code is not None:
            self.trap(self.pc, code, interrupt=True)
        return True

    # --- execution ---------------------------------------------------------------------------------------------------
    # Cost: 0.2 to 0.5 us an instruction. Guarded by benchmarks of `interpret`. Nothing is allocated but an iterator a
    # block, and the numbers themselves.
    def execute(self, count: int) -> None:
        """Executes about `count` instructions: whole blocks, fewer when interrupts are to be looked at.

        Raises EndOfRun when a device ends the machine; everything else a guest does becomes a trap of its own.
        """
        self._goal += count - self._left
        self._left = count
        pc = self.pc
        find = self.code.find
        block: Block
        iterator: Iterator[Operation]
        while self._left > 0:
            try:
                while self._left > 0:
                    try:
                        block = cast(Block, self.regime.blocks[pc])
                    except KeyError:
                        block = find(self.regime, pc)
                    iterator = iter(block.operations)
                    for operation in iterator:
                        pc = operation()  # type: ignore[assignment]  # the last one returns where to go on
                    self._left -= block.count
            except Trap as trap:
                done = _done(block, iterator)
                self._left -= done
                self.trap(block.addresses[done], trap.cause, trap.tval)
                pc = self.pc
            except CodeChanged:
                done = _done(block, iterator) + 1
                self._left -= done
                pc = block.addresses[done] if done < block.count else block.end
            except EndOfRun:
                done = _done(block, iterator)
                self._left -= done + 1
                self.pc = block.addresses[done]
                raise
        self.pc = pc

    def step(self) -> None:
        """Executes one instruction, or takes its exception."""
        blocks, pc = self.regime.blocks, self.pc
        known = blocks.get(pc)
        single = blocks[pc] = self.code.single(self.regime, pc)
        try:
            self.execute(1)
        finally:
            if blocks.get(pc) is single:  # else all were forgotten, for a reason
                del blocks[pc]
                if known is not None:
                    blocks[pc] = known


def _done(block: Block, iterator: Iterator[Operation]) -> int:
    """How many instructions of the block were executed before the one that raised."""
    left: int = iterator.__length_hint__()  # type: ignore[attr-defined]  # list iterators have it
    return len(block.operations) - left - 1
