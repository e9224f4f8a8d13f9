"""The control and status registers, declared once (Privileged 1.12, table 2.2 to 2.5): number, name, what may change.

Bits 9:8 of the number are the lowest privilege that may access the register, bits 11:10 = 11 make it read-only (2.1).
`writable` are the bits a write changes; the others are WARL fields with one legal value, which `reset` gives. What
has a rule of its own beyond that is in csr.py.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import NamedTuple

ALL = 0xFFFF_FFFF_FFFF_FFFF
READ_ONLY = 0


class Csr(IntEnum):
    """CSR numbers."""

    FFLAGS, FRM, FCSR = 0x001, 0x002, 0x003
    CYCLE, TIME, INSTRET = 0xC00, 0xC01, 0xC02
    SSTATUS, SIE, STVEC, SCOUNTEREN, SENVCFG = 0x100, 0x104, 0x105, 0x106, 0x10A
    SSCRATCH, SEPC, SCAUSE, STVAL, SIP, SATP = 0x140, 0x141, 0x142, 0x143, 0x144, 0x180
    MVENDORID, MARCHID, MIMPID, MHARTID, MCONFIGPTR = 0xF11, 0xF12, 0xF13, 0xF14, 0xF15
    MSTATUS, MISA, MEDELEG, MIDELEG, MIE, MTVEC, MCOUNTEREN = 0x300, 0x301, 0x302, 0x303, 0x304, 0x305, 0x306
    MENVCFG, MCOUNTINHIBIT = 0x30A, 0x320
    MSCRATCH, MEPC, MCAUSE, MTVAL, MIP = 0x340, 0x341, 0x342, 0x343, 0x344
    MCYCLE, MINSTRET = 0xB00, 0xB02


class Status(IntFlag):
    """mstatus (3.1.6, figure 3.7). No vector state and no extensions' own: VS and XS are 0."""

    SIE = 1 << 1
    MIE = 1 << 3
    SPIE = 1 << 5
    MPIE = 1 << 7
    SPP = 1 << 8
    MPP = 3 << 11
    FS = 3 << 13
    MPRV = 1 << 17
    SUM = 1 << 18
    MXR = 1 << 19
    TVM = 1 << 20
    TW = 1 << 21
    TSR = 1 << 22
    UXL = 3 << 32
    SXL = 3 << 34
    SD = 1 << 63


MPP_SHIFT = 11
UXL_64, SXL_64 = 2 << 32, 2 << 34
# Plain numbers: an IntFlag costs a microsecond a test.
SSTATUS_WRITABLE = int(Status.SIE | Status.SPIE | Status.SPP | Status.FS | Status.SUM | Status.MXR)
MSTATUS_WRITABLE = SSTATUS_WRITABLE | int(
    Status.MIE | Status.MPIE | Status.MPP | Status.MPRV | Status.TVM | Status.TW | Status.TSR
)
SSTATUS_VISIBLE = SSTATUS_WRITABLE | int(Status.UXL | Status.SD)

MISA = 2 << 62 | sum(1 << ord(letter) - ord("A") for letter in "ACDFIMSU")  # 3.1.1: MXL = 64 bits, and the extensions


class Interrupt(IntFlag):
    """Bits of mip and mie (3.1.9)."""

    SSI = 1 << 1
    MSI = 1 << 3
    STI = 1 << 5
    MTI = 1 << 7
    SEI = 1 << 9
    MEI = 1 << 11


S_INTERRUPTS = int(Interrupt.SSI | Interrupt.STI | Interrupt.SEI)
M_INTERRUPTS = S_INTERRUPTS | int(Interrupt.MSI | Interrupt.MTI | Interrupt.MEI)

# Every exception that exists here and does not come from M-mode itself (3.1.8): all but 11, 10 and 14.
DELEGABLE = 0b1011_0011_1111_1111
COUNTERS = 0b111  # cycle, time, instret
FIOM = 1  # menvcfg, senvcfg: fences here order everything, so the bit is storage
SATP_ASID = 0xFFFF << 44
SATP_PPN = (1 << 44) - 1
SATP_MODE_SHIFT, SATP_BARE, SATP_SV39 = 60, 0, 8


class CsrRow(NamedTuple):
    """One register. Bits outside `writable` keep the value of `reset`."""

    number: int
    name: str
    writable: int = READ_ONLY
    reset: int = 0


CSR_TABLE: tuple[CsrRow, ...] = (
    CsrRow(Csr.FFLAGS, "fflags"),
    CsrRow(Csr.FRM, "frm"),
    CsrRow(Csr.FCSR, "fcsr"),
    CsrRow(Csr.CYCLE, "cycle"),
    CsrRow(Csr.TIME, "time"),
    CsrRow(Csr.INSTRET, "instret"),
    CsrRow(Csr.SSTATUS, "sstatus", SSTATUS_WRITABLE),
    CsrRow(Csr.SIE, "sie", S_INTERRUPTS),
    CsrRow(Csr.STVEC, "stvec", ALL),
    CsrRow(Csr.SCOUNTEREN, "scounteren", COUNTERS),
    CsrRow(Csr.SENVCFG, "senvcfg", FIOM),
    CsrRow(Csr.SSCRATCH, "sscratch", ALL),
    CsrRow(Csr.SEPC, "sepc", ALL - 1),
    CsrRow(Csr.SCAUSE, "scause", ALL),
    CsrRow(Csr.STVAL, "stval", ALL),
    CsrRow(Csr.SIP, "sip", int(Interrupt.SSI)),
    CsrRow(Csr.SATP, "satp", ALL),
    CsrRow(Csr.MVENDORID, "mvendorid"),
    CsrRow(Csr.MARCHID, "marchid"),
    CsrRow(Csr.MIMPID, "mimpid"),
    CsrRow(Csr.MHARTID, "mhartid"),
    CsrRow(Csr.MCONFIGPTR, "mconfigptr"),
    CsrRow(Csr.MSTATUS, "mstatus", MSTATUS_WRITABLE, UXL_64 | SXL_64),
    CsrRow(Csr.MISA, "misa", READ_ONLY, MISA),
    CsrRow(Csr.MEDELEG, "medeleg", DELEGABLE),
    CsrRow(Csr.MIDELEG, "mideleg", S_INTERRUPTS),
    CsrRow(Csr.MIE, "mie", M_INTERRUPTS),
    CsrRow(Csr.MTVEC, "mtvec", ALL),
    CsrRow(Csr.MCOUNTEREN, "mcounteren", COUNTERS),
    CsrRow(Csr.MENVCFG, "menvcfg", FIOM),
    CsrRow(Csr.MCOUNTINHIBIT, "mcountinhibit"),
    CsrRow(Csr.MSCRATCH, "mscratch", ALL),
    CsrRow(Csr.MEPC, "mepc", ALL - 1),
    CsrRow(Csr.MCAUSE, "mcause", ALL),
    CsrRow(Csr.MTVAL, "mtval", ALL),
    CsrRow(Csr.MIP, "mip", S_INTERRUPTS),
    CsrRow(Csr.MCYCLE, "mcycle", ALL),
    CsrRow(Csr.MINSTRET, "minstret", ALL),
    # Physical memory protection with no entry at all (3.7): all of it reads as 0, and S and U reach all memory.
    *(CsrRow(0x3A0 + index, f"pmpcfg{index}") for index in range(0, 16, 2)),
    *(CsrRow(0x3B0 + index, f"pmpaddr{index}") for index in range(64)),
    # Hardware performance counters that count nothing (3.1.10).
    *(CsrRow(0xC00 + index, f"hpmcounter{index}") for index in range(3, 32)),
    *(CsrRow(0xB00 + index, f"mhpmcounter{index}") for index in range(3, 32)),
    *(CsrRow(0x320 + index, f"mhpmevent{index}") for index in range(3, 32)),
)

CSR_NAMES = {row.number: row.name for row in CSR_TABLE}
CSR_NUMBERS = {row.name: row.number for row in CSR_TABLE}


def lowest_privilege(number: int) -> int:
    """Who may access the register (2.1)."""
    return number >> 8 & 3


def is_read_only(number: int) -> bool:
    """Whether a write is an illegal instruction (2.1)."""
    return number >> 10 == 3
