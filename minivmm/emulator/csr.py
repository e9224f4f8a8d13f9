"""Reading and writing control and status registers: the rules that are not a mask (Privileged 1.12, chapters 3 and 4).

Plain registers are attributes of CsrFile with the manual's names; csr_table.py says which bits of them a write changes.
A register with a rule of its own has `read_NAME` or `write_NAME`, and is found by that.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING

from minivmm.emulator.csr_table import (
    ALL,
    CSR_TABLE,
    MPP_SHIFT,
    READ_ONLY,
    SATP_ASID,
    SATP_BARE,
    SATP_MODE_SHIFT,
    SATP_PPN,
    SATP_SV39,
    SSTATUS_VISIBLE,
    SSTATUS_WRITABLE,
    Csr,
    CsrRow,
    Interrupt,
    Status,
    is_read_only,
    lowest_privilege,
)
from minivmm.emulator.decoder import Decoded
from minivmm.emulator.traps import Cause, Privilege, Trap

if TYPE_CHECKING:
    from minivmm.emulator.hart import Hart

_S, _M = int(Privilege.S), int(Privilege.M)
_SSI, _MPP, _TVM = int(Interrupt.SSI), int(Status.MPP), int(Status.TVM)
_FS, _SD = int(Status.FS), int(Status.SD)


class CsrFile:
    """The CSRs of one hart."""

    def __init__(self, hart: Hart) -> None:
        self._hart = hart
        # What the hart's own code looks at, by name; the rest of the table's registers follow.
        self.mstatus = self.medeleg = self.mideleg = self.mie = self.mip = self.mtvec = self.stvec = 0
        self.mepc = self.mcause = self.mtval = self.sepc = self.scause = self.stval = 0
        self.mcounteren = self.scounteren = 0
        self._read: dict[int, Callable[[], int]] = {}
        self._write: dict[int, Callable[[int], None]] = {}
        for row in CSR_TABLE:
            setattr(self, row.name, row.reset)
            self._read[row.number] = getattr(self, f"read_{row.name}", None) or self._reader(row)
            self._write[row.number] = getattr(self, f"write_{row.name}", None) or self._writer(row)

    def _reader(self, row: CsrRow) -> Callable[[], int]:
        name = row.name
        return lambda: int(getattr(self, name))

    def _writer(self, row: CsrRow) -> Callable[[int], None]:
        name, writable, fixed = row.name, row.writable, row.reset & ~row.writable
        return lambda value: setattr(self, name, value & writable | fixed)

    def check(self, decoded: Decoded, mode: int, writes: bool) -> None:
        """Raises Trap when the access is an illegal instruction: no such register, no privilege, read-only."""
        number = decoded.csr
        refused = (
            number not in self._read
            or mode < lowest_privilege(number)
            or (writes and is_read_only(number))
            or (number <= Csr.FCSR and not self.mstatus & _FS)  # 3.1.6.6
            or (number == Csr.SATP and mode == _S and self.mstatus & _TVM)  # 3.1.6.5
            or (number >> 5 == Csr.CYCLE >> 5 and not self._counter_enabled(number & 31, mode))
        )
        if refused:
            raise Trap(Cause.ILLEGAL_INSTRUCTION, decoded.raw)

    def _counter_enabled(self, index: int, mode: int) -> bool:
        """3.1.11: M lets S read a counter, and S lets U."""
        enabled = ALL if mode == _M else self.mcounteren if mode == _S else self.mcounteren & self.scounteren
        return bool(enabled >> index & 1)

    def read(self, number: int) -> int:
        """The register's value. It exists: see `check`."""
        return self._read[number]()

    def stored(self, number: int) -> int:
        """What CSRRS and CSRRC start from: the same but for the PLIC's part of SEIP, which is not kept (3.1.9)."""
        return self.mip if number == Csr.MIP else self.read(number)

    def write(self, number: int, value: int) -> None:
        """Changes what may be changed."""
        self._write[number](value & ALL)

    def state(self) -> dict[str, int]:
        """What can change, by name. `time` is not in it: it is the machine's."""
        found: dict[str, int] = dict(zip(_STORED, _stored(self), strict=True))
        found |= {"mip": self.read_mip(), "satp": self._hart.mmu.satp, "fcsr": self.read_fcsr()}
        return found

    # --- status ------------------------------------------------------------------------------------------------------
    def write_mstatus(self, value: int) -> None:
        """MPP holds a mode that exists (3.1.6.1); FS is Off or Dirty, for nobody looks who writes there (3.1.6.6)."""
        if (value & _MPP) >> MPP_SHIFT == 2:
            value = value & ~_MPP | self.mstatus & _MPP
        value = value & _MSTATUS.writable | _MSTATUS.reset
        self.mstatus = value | _FS | _SD if value & _FS else value
        self._hart.rules_changed()

    def read_sstatus(self) -> int:
        """4.1.1: a view of mstatus."""
        return self.mstatus & SSTATUS_VISIBLE

    def write_sstatus(self, value: int) -> None:
        """As write_mstatus, of what S-mode sees."""
        self.write_mstatus(self.mstatus & ~SSTATUS_WRITABLE | value & SSTATUS_WRITABLE)

    # --- floating point (Unprivileged ISA, 11.2) ---------------------------------------------------------------------
    def read_fflags(self) -> int:
        """NV, DZ, OF, UF, NX."""
        return self._hart.floating.flags

    def write_fflags(self, value: int) -> None:
        """Other bits are ignored."""
        self._hart.floating.flags = value & 0x1F

    def read_frm(self) -> int:
        """The dynamic rounding mode."""
        return self._hart.floating.rounding

    def write_frm(self, value: int) -> None:
        """It may be one that there is not: who rounds by it is illegal then."""
        self._hart.floating.rounding = value & 7
        self._hart.rules_changed()

    def read_fcsr(self) -> int:
        """frm, fflags."""
        return self.read_frm() << 5 | self.read_fflags()

    def write_fcsr(self, value: int) -> None:
        """frm, fflags."""
        self.write_fflags(value)
        self.write_frm(value >> 5)

    # --- interrupts --------------------------------------------------------------------------------------------------
    def read_mip(self) -> int:
        """What software set, and what the devices hold up now."""
        return self.mip | self._hart.interrupt_lines()

    def write_mip(self, value: int) -> None:
        """3.1.9: MSIP, MTIP and MEIP are the devices'."""
        self.mip = value & _MIP.writable
        self._hart.attend()

    def write_mie(self, value: int) -> None:
        """3.1.9."""
        self.mie = value & _MIE.writable
        self._hart.attend()

    def write_mideleg(self, value: int) -> None:
        """3.1.8."""
        self.mideleg = value & _MIDELEG.writable
        self._hart.attend()

    def read_sip(self) -> int:
        """4.1.3: of mip, what is delegated."""
        return self.read_mip() & self.mideleg

    def write_sip(self, value: int) -> None:
        """4.1.3: only SSIP, and that if delegated."""
        own = _SSI & self.mideleg
        self.write_mip(self.mip & ~own | value & own)

    def read_sie(self) -> int:
        """4.1.3: of mie, what is delegated."""
        return self.mie & self.mideleg

    def write_sie(self, value: int) -> None:
        """4.1.3."""
        self.write_mie(self.mie & ~self.mideleg | value & self.mideleg)

    # --- trap vectors and translation --------------------------------------------------------------------------------
    def write_mtvec(self, value: int) -> None:
        """3.1.7: direct or vectored; a write with another mode changes nothing."""
        if value & 3 < 2:
            self.mtvec = value

    def write_stvec(self, value: int) -> None:
        """4.1.2, as mtvec."""
        if value & 3 < 2:
            self.stvec = value

    def read_satp(self) -> int:
        """4.1.11."""
        return self._hart.mmu.satp

    def write_satp(self, value: int) -> None:
        """4.1.11: bare or Sv39; a write with another mode changes nothing."""
        mode = value >> SATP_MODE_SHIFT
        if mode in (SATP_BARE, SATP_SV39):
            self._hart.mmu.satp = value & (SATP_ASID | SATP_PPN) | mode << SATP_MODE_SHIFT
            self._hart.mmu.flush()

    # --- counters: instructions, and cycles that are the same ---------------------------------------------------------
    def read_cycle(self) -> int:
        """3.1.10."""
        return self._hart.retired + self.cycle_offset & ALL

    def read_instret(self) -> int:
        """3.1.10."""
        return self._hart.retired + self.instret_offset & ALL

    def read_time(self) -> int:
        """The CLINT's mtime."""
        return self._hart.time()

    cycle_offset = instret_offset = 0
    read_mcycle, read_minstret = read_cycle, read_instret

    def write_mcycle(self, value: int) -> None:
        """The next instruction reads `value` (3.1.10: the write takes effect after this one has retired)."""
        self.cycle_offset = value - self._hart.retired - 1

    def write_minstret(self, value: int) -> None:
        """As write_mcycle."""
        self.instret_offset = value - self._hart.retired - 1


_ROWS = {row.number: row for row in CSR_TABLE}
_MSTATUS, _MIP, _MIE, _MIDELEG = _ROWS[Csr.MSTATUS], _ROWS[Csr.MIP], _ROWS[Csr.MIE], _ROWS[Csr.MIDELEG]
_STORED = (
    "cycle_offset",
    "instret_offset",
    *(row.name for row in CSR_TABLE if row.writable != READ_ONLY and not hasattr(CsrFile, f"read_{row.name}")),
)
"""Attributes of CsrFile that hold a register, or what it is made of."""
_stored = attrgetter(*_STORED)
