"""Why ring 3 was left."""

from __future__ import annotations

from typing import NamedTuple


class Vector:
    """Exceptions (SDM 3A table 6-1)."""

    DE = 0
    DB = 1
    NMI = 2
    BP = 3
    OF = 4
    UD = 6
    NM = 7
    DF = 8
    TS = 10
    NP = 11
    SS = 12
    GP = 13
    PF = 14
    MF = 16
    AC = 17
    MC = 18
    XM = 19
    CP = 21
    VC = 29
    SX = 30


WITH_ERROR_CODE = frozenset(
    {Vector.DF, Vector.TS, Vector.NP, Vector.SS, Vector.GP, Vector.PF, Vector.AC, Vector.CP, Vector.VC, Vector.SX}
)


class Trap(NamedTuple):
    """An exception. RIP is on the instruction for a fault, past it for a trap (#BP, #DB of a step)."""

    vector: int
    error_code: int  # 0 for a vector without one
    address: int  # CR2 of a page fault, else 0
    rip: int


class SoftwareInterrupt(NamedTuple):
    """`int vector`, whichever the vector. `rip` is the instruction's; the registers' RIP is past it."""

    vector: int
    rip: int


class SystemCall(NamedTuple):
    """`syscall`. The registers' RIP is past it (RCX has it too), and RFLAGS are the caller's (R11 has them too)."""

    rip: int  # past the instruction


class PortAccess(NamedTuple):
    """`in` or `out` of ring 3 at an open port. RIP is past it; an `in` waits for `DeprivilegedCpu.answer`."""

    port: int
    size: int  # bytes an access
    is_write: bool
    data: bytes  # what was written: one access, or several for `rep outs`; as long as an answer must be


class MmioAccess(NamedTuple):
    """An access to a machine address without memory. A read waits for `DeprivilegedCpu.answer`."""

    address: int  # machine
    is_write: bool
    data: bytes


class Interrupted(NamedTuple):
    """A kick or another signal came. Nothing of the guest is lost: run again."""


class Stopped(NamedTuple):
    """KVM cannot go on with this vCPU."""

    reason: str


Event = Trap | SoftwareInterrupt | SystemCall | PortAccess | MmioAccess | Interrupted | Stopped
