"""The SYSTEM instructions and FENCE.I: what changes the hart's state beyond its registers, one function each.

Each gets the hart, the decoded instruction and its address, and returns the address to go on at. Each is a block by
itself, so counters are exact when it runs, and whatever it changes holds from the next instruction on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from minivmm.emulator.csr_table import MPP_SHIFT, Status
from minivmm.emulator.decoder import Decoded
from minivmm.emulator.traps import Cause, Privilege, Trap

if TYPE_CHECKING:
    from minivmm.emulator.hart import Hart

Execute = Callable[["Hart", Decoded, int], int]
SYSTEM: dict[str, Execute] = {}

_M64 = (1 << 64) - 1
_U, _S, _M = int(Privilege.U), int(Privilege.S), int(Privilege.M)
# Plain numbers: an IntFlag costs a microsecond an operation.
_SIE, _MIE, _SPIE, _MPIE = int(Status.SIE), int(Status.MIE), int(Status.SPIE), int(Status.MPIE)
_SPP, _MPP, _MPRV = int(Status.SPP), int(Status.MPP), int(Status.MPRV)
_TVM, _TW, _TSR = int(Status.TVM), int(Status.TW), int(Status.TSR)


def _system(*names: str) -> Callable[[Execute], Execute]:
    def register(execute: Execute) -> Execute:
        SYSTEM.update(dict.fromkeys(names, execute))
        return execute

    return register


@_system("ecall")
def ecall(hart: Hart, decoded: Decoded, pc: int) -> int:  # noqa: ARG001
    """3.3.1."""
    raise Trap({_U: Cause.ECALL_FROM_U, _S: Cause.ECALL_FROM_S, _M: Cause.ECALL_FROM_M}[hart.mode])


@_system("ebreak")
def ebreak(hart: Hart, decoded: Decoded, pc: int) -> int:  # noqa: ARG001
    """3.3.1; mtval is 0, as 3.1.16 allows and QEMU has it."""
    raise Trap(Cause.BREAKPOINT)


@_system("fence.i")
def fence_i(hart: Hart, decoded: Decoded, pc: int) -> int:
    """Unprivileged ISA, chapter 3."""
    hart.code.fence()
    return pc + decoded.size & _M64


@_system("csrrw", "csrrs", "csrrc", "csrrwi", "csrrsi", "csrrci")
def csr_access(hart: Hart, decoded: Decoded, pc: int) -> int:
    """Zicsr (chapter 9). CSRRS and CSRRC with x0 or an immediate of 0 only read, CSRRW always writes."""
    name, csrs = decoded.name, hart.csrs
    operand = decoded.imm if name.endswith("i") else hart.x[decoded.rs1]
    kind = name[4]  # r, then w, s or c
    writes = kind == "w" or (decoded.imm if name.endswith("i") else decoded.rs1) != 0
    csrs.check(decoded, hart.mode, writes)
    old = csrs.read(decoded.csr)
    if writes:
        if kind == "w":
            csrs.write(decoded.csr, operand)
        else:
            stored = csrs.stored(decoded.csr)
            csrs.write(decoded.csr, stored | operand if kind == "s" else stored & ~operand)
    if decoded.rd:
        hart.x[decoded.rd] = old
    return pc + decoded.size & _M64


@_system("mret")
def mret(hart: Hart, decoded: Decoded, pc: int) -> int:  # noqa: ARG001
    """3.3.2 and 3.1.6.1: MIE from MPIE, the mode from MPP, which becomes U; MPRV goes when that is less than M."""
    if hart.mode != _M:
        raise Trap(Cause.ILLEGAL_INSTRUCTION, decoded.raw)
    status = hart.csrs.mstatus
    mode = (status & _MPP) >> MPP_SHIFT
    status = status & ~(_MIE | _MPP) | (_MIE if status & _MPIE else 0) | _MPIE
    hart.csrs.mstatus = status if mode == _M else status & ~_MPRV
    hart.enter(mode)
    return hart.csrs.mepc


@_system("sret")
def sret(hart: Hart, decoded: Decoded, pc: int) -> int:  # noqa: ARG001
    """3.3.2 and 4.1.1; illegal in S-mode with TSR (3.1.6.5)."""
    status = hart.csrs.mstatus
    if hart.mode == _U or (hart.mode == _S and status & _TSR):
        raise Trap(Cause.ILLEGAL_INSTRUCTION, decoded.raw)
    mode = _S if status & _SPP else _U
    hart.csrs.mstatus = status & ~(_SIE | _SPP | _MPRV) | (_SIE if status & _SPIE else 0) | _SPIE
    hart.enter(mode)
    return hart.csrs.sepc


@_system("wfi")
def wfi(hart: Hart, decoded: Decoded, pc: int) -> int:
    """3.3.3: illegal in U-mode, and in S-mode with TW. Otherwise the hart waits for an enabled interrupt."""
    if hart.mode == _U or (hart.mode == _S and hart.csrs.mstatus & _TW):
        raise Trap(Cause.ILLEGAL_INSTRUCTION, decoded.raw)
    hart.wait_for_interrupt()
    return pc + decoded.size & _M64


@_system("sfence.vma")
def sfence_vma(hart: Hart, decoded: Decoded, pc: int) -> int:
    """4.2.1: whatever the operands say, every translation goes. Illegal in U-mode, and in S-mode with TVM."""
    if hart.mode == _U or (hart.mode == _S and hart.csrs.mstatus & _TVM):
        raise Trap(Cause.ILLEGAL_INSTRUCTION, decoded.raw)
    hart.mmu.flush()
    return pc + decoded.size & _M64
