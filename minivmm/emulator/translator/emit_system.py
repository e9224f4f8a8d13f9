"""The SYSTEM instructions in x86-64: accesses to CSRs that are no more than storage, traps and returns from them.

What is not here, and what is here but turns out to be more than storage - a change of the rules of translation, an
interrupt that becomes enabled - is executed by Python, before which the block is left.
"""

from __future__ import annotations

from minivmm.emulator.csr_table import (
    CSR_TABLE,
    M_INTERRUPTS,
    SSTATUS_VISIBLE,
    Csr,
    Interrupt,
    Status,
    lowest_privilege,
)
from minivmm.emulator.decoder import Decoded
from minivmm.emulator.translator import x86
from minivmm.emulator.translator.csrs import OFFSETS
from minivmm.emulator.translator.emit import Chained
from minivmm.emulator.translator.emitter import RAX, RCX, RDX, Emitter
from minivmm.emulator.translator.registers import STATE
from minivmm.emulator.translator.state import PENDING, RBP_OFFSET, SITE
from minivmm.emulator.translator.x86 import Alu, Cond, Reg
from minivmm.emulator.traps import Cause, Privilege

_M64 = (1 << 64) - 1
_ROWS = {row.number: row for row in CSR_TABLE}
_ACCESSES = ("csrrw", "csrrs", "csrrc", "csrrwi", "csrrsi", "csrrci")

# Registers that are read as they are stored, and among them those that any value is written to, but for some bits.
_READABLE = frozenset(
    {
        *(Csr.STVEC, Csr.SSCRATCH, Csr.SEPC, Csr.SCAUSE, Csr.STVAL, Csr.SCOUNTEREN, Csr.MEDELEG, Csr.MIDELEG, Csr.MIE),
        *(Csr.MTVEC, Csr.MCOUNTEREN, Csr.MSCRATCH, Csr.MEPC, Csr.MCAUSE, Csr.MTVAL),
    }
)
_WRITABLE = frozenset(
    {
        *(Csr.SSCRATCH, Csr.SEPC, Csr.SCAUSE, Csr.STVAL),
        *(Csr.MSCRATCH, Csr.MEPC, Csr.MCAUSE, Csr.MTVAL),
    }
)
# Registers with parts that are storage, and others: a write that changes other bits than these is Python's.
_SUPERVISOR_BITS = int(Status.SIE | Status.SPIE | Status.SPP)
_STATUS_BITS = {Csr.SSTATUS: _SUPERVISOR_BITS, Csr.MSTATUS: _SUPERVISOR_BITS | int(Status.MIE | Status.MPIE)}


def place(name: str) -> int:
    """The displacement from RBP of a CSR."""
    return OFFSETS[name] - RBP_OFFSET


def _writes(d: Decoded) -> bool:
    """Zicsr (chapter 9): CSRRS and CSRRC with x0 or 0 only read."""
    return d.name[4] == "w" or (d.imm if d.name.endswith("i") else d.rs1) != 0


def is_storage(d: Decoded, mode: int) -> bool:
    """Whether this accesses a CSR that is storage, in a mode that may: then the block goes on behind it."""
    if d.name not in _ACCESSES or mode < lowest_privilege(d.csr):
        return False
    return d.csr in (_WRITABLE if _writes(d) else _READABLE) or (not _writes(d) and _is_partly(d, mode))


def _is_partly(d: Decoded, mode: int) -> bool:
    return mode >= lowest_privilege(d.csr) and d.csr in (Csr.SSTATUS, Csr.MSTATUS, Csr.SIE, Csr.MIE)


def _is_satp_write(d: Decoded) -> bool:
    return d.name == "csrrw" and d.csr == Csr.SATP and not d.rd


def system(e: Emitter, d: Decoded, chained: Chained) -> None:
    """Any SYSTEM instruction; the block ends with it unless `is_storage`."""
    mode = e.regime.fetch_mode
    if is_storage(d, mode):
        (_write_storage if _writes(d) else _read)(e, d)
    elif d.name in _ACCESSES and _is_partly(d, mode):
        (_write_status if d.csr in _STATUS_BITS else _write_enabled)(e, d, chained)
    elif d.name in _ACCESSES and d.csr == Csr.SIP and mode != Privilege.U and not d.rd and _writes(d):
        _write_pending(e, d, chained)
    elif d.name == "wfi" and mode == Privilege.S:
        _wait(e, d, chained)
    elif d.name in ("ecall", "ebreak") and e.delivers and mode != Privilege.M:
        cause = Cause.BREAKPOINT if d.name == "ebreak" else Cause(Cause.ECALL_FROM_U + mode)
        e.put(
            x86.mov_store_imm32(STATE, SITE - RBP_OFFSET, e.system_site(d)),
            x86.mov_imm(RAX, 0),
            x86.mov_imm(RCX, cause),
            x86.mov_imm(RDX, e.pc),
        )
        e.to_routine("deliver")
    elif e.delivers and (d.name, mode) in (("sret", Privilege.S), ("mret", Privilege.M)):
        e.put(x86.mov_store_imm32(STATE, SITE - RBP_OFFSET, e.system_site(d)))
        e.to_routine(d.name)
    elif e.delivers and mode != Privilege.U and (d.name == "sfence.vma" or _is_satp_write(d)):
        if d.name != "sfence.vma":
            e.move(RAX, d.rs1)
        e.put(x86.mov_store_imm32(STATE, SITE - RBP_OFFSET, e.system_site(d)))
        e.to_routine("fence" if d.name == "sfence.vma" else "write_satp", opcode=x86.CALL)
        following = e.pc + d.size & _M64
        e.go(x86.JMP, following, chained(following))
    else:
        e.put(x86.mov_store_imm32(STATE, SITE - RBP_OFFSET, e.system_site(d)))
        e.to_exit.append(e.jump(x86.JMP))


# --- CSRs ---------------------------------------------------------------------------------------------------------
def _read(e: Emitter, d: Decoded) -> None:
    if not d.rd:
        return
    if d.csr in _STATUS_BITS:
        e.put(x86.mov_load(RAX, STATE, place("mstatus")))
        if d.csr == Csr.SSTATUS:
            e.put(x86.mov_imm(RCX, SSTATUS_VISIBLE), x86.alu(Alu.AND, RAX, RCX))
    elif d.csr == Csr.SIE:
        e.put(x86.mov_load(RAX, STATE, place("mie")), x86.alu_load(Alu.AND, RAX, STATE, place("mideleg")))
    else:
        e.put(x86.mov_load(RAX, STATE, place(_ROWS[d.csr].name)))
    e.commit(d.rd, RAX)


def _operand(e: Emitter, d: Decoded, to: Reg) -> None:
    if d.name.endswith("i"):
        e.put(x86.mov_imm(to, d.imm))
    else:
        e.move(to, d.rs1)


def _write_storage(e: Emitter, d: Decoded) -> None:
    row = _ROWS[d.csr]
    _operand(e, d, RCX)
    e.put(x86.mov_load(RAX, STATE, place(row.name)))
    if d.name[4] == "s":
        e.put(x86.alu(Alu.OR, RCX, RAX))
    elif d.name[4] == "c":
        e.put(x86.unary(x86.Unary.NOT, RCX), x86.alu(Alu.AND, RCX, RAX))
    if row.writable != _M64:
        e.put(x86.alu_imm(Alu.AND, RCX, row.writable - (1 << 64)))
    e.put(x86.mov_store(STATE, place(row.name), RCX))
    if d.rd:
        e.commit(d.rd, RAX)


def _changes(e: Emitter, d: Decoded) -> None:
    """RCX, the operand, becomes the bits it would change in RAX, writable or not. Changes RDX."""
    _operand(e, d, RCX)
    if d.name[4] == "w":
        e.put(x86.alu(Alu.XOR, RCX, RAX))
    elif d.name[4] == "c":
        e.put(x86.alu(Alu.AND, RCX, RAX))
    else:
        e.put(x86.mov(RDX, RAX), x86.unary(x86.Unary.NOT, RDX), x86.alu(Alu.AND, RCX, RDX))


def when_pending(e: Emitter, enabled: bytes) -> int:
    """A jump for when an interrupt in mie is pending. `enabled`: RDX and with what is enabled. Changes RDX."""
    e.put(
        x86.mov_load(RDX, STATE, PENDING - RBP_OFFSET),
        x86.alu_load(Alu.OR, RDX, STATE, place("mip")),
        enabled,
    )
    return e.jump(x86.jcc(Cond.NE))


def _end(e: Emitter, d: Decoded, chained: Chained, interrupted: int) -> None:
    """On to the next instruction, or by the jump `interrupted` to where interrupts are looked at."""
    following = e.pc + d.size & _M64
    e.go(x86.JMP, following, chained(following))
    number = e.attend_site(following)

    def stub() -> None:
        e.land(interrupted)
        e.put(x86.mov_store_imm32(STATE, SITE - RBP_OFFSET, number))
        if e.regime.fetch_mode == Privilege.S and e.delivers:
            e.put(x86.mov_imm(RDX, following))
            e.to_routine("interrupt")
        else:
            e.to_exit.append(e.jump(x86.JMP))

    e.stub(stub)


def _write_status(e: Emitter, d: Decoded, chained: Chained) -> None:
    """Bits of mstatus that neither choose a regime nor are of modes that do not exist."""
    own = _STATUS_BITS[Csr(d.csr)]
    writable = _ROWS[d.csr].writable
    e.put(x86.mov_load(RAX, STATE, place("mstatus")))
    _changes(e, d)
    e.put(x86.alu_imm(Alu.AND, RCX, writable), x86.compare_bits(RCX, writable & ~own))
    _other_rules(e, d, e.jump(x86.jcc(Cond.NE)))
    _change_status(e, d)
    _end_enabled(e, d, chained, x86.compare_bits(RCX, _enabling(e)))


def _change_status(e: Emitter, d: Decoded) -> None:
    """RCX, what changes of mstatus, which is in RAX, becomes the new value. Changes RAX and RDX."""
    e.put(x86.alu(Alu.XOR, RCX, RAX), x86.mov_store(STATE, place("mstatus"), RCX))
    if d.rd:
        if d.csr == Csr.SSTATUS:
            e.put(x86.mov_imm(RDX, SSTATUS_VISIBLE), x86.alu(Alu.AND, RAX, RDX))
        e.commit(d.rd, RAX)


def _other_rules(e: Emitter, d: Decoded, at: int) -> None:
    """Where the jump `at` goes: RCX says what a write changes. SUM alone, in S-mode, is a jump into another regime."""
    number, following = e.system_site(d), e.pc + d.size & _M64
    if e.regime.fetch_mode != Privilege.S or not e.delivers:
        e.leave_when(at, number)
        return

    def stub() -> None:
        e.land(at)
        e.put(x86.alu_imm(Alu.CMP, RCX, int(Status.SUM)))
        others = e.jump(x86.jcc(Cond.NE))
        _change_status(e, d)
        e.put(x86.mov_imm(RAX, following))
        e.to_routine("dispatch", e.regime.with_other_sum())
        e.land(others)
        e.put(x86.mov_store_imm32(STATE, SITE - RBP_OFFSET, number))
        e.to_exit.append(e.jump(x86.JMP))

    e.stub(stub)


def _enabling(e: Emitter) -> int:
    """The bits of mstatus without which no change of another CSR brings an interrupt in this mode."""
    return int(Status.SIE) if e.regime.fetch_mode == Privilege.S else int(Status.SIE | Status.MIE)


def _write_enabled(e: Emitter, d: Decoded, chained: Chained) -> None:
    """mie, and sie, which is the part of it that is delegated."""
    e.put(x86.mov_load(RAX, STATE, place("mie")))
    _changes(e, d)
    if d.csr == Csr.MIE:
        e.put(x86.alu_imm(Alu.AND, RCX, M_INTERRUPTS))
    else:
        e.put(x86.alu_load(Alu.AND, RCX, STATE, place("mideleg")))
    e.put(x86.alu(Alu.XOR, RCX, RAX), x86.mov_store(STATE, place("mie"), RCX))
    if d.rd:
        if d.csr == Csr.SIE:
            e.put(x86.alu_load(Alu.AND, RAX, STATE, place("mideleg")))
        e.commit(d.rd, RAX)
    _end_enabled(e, d, chained)


def _write_pending(e: Emitter, d: Decoded, chained: Chained) -> None:
    """sip, of which SSIP alone can be written, if it is delegated (4.1.3)."""
    e.put(x86.mov_load(RAX, STATE, place("mip")))
    _changes(e, d)
    e.put(
        x86.alu_imm(Alu.AND, RCX, int(Interrupt.SSI)),
        x86.alu_load(Alu.AND, RCX, STATE, place("mideleg")),
        x86.alu(Alu.XOR, RCX, RAX),
        x86.mov_store(STATE, place("mip"), RCX),
    )
    _end_enabled(e, d, chained)


def _end_enabled(e: Emitter, d: Decoded, chained: Chained, enabled: bytes | None = None) -> None:
    """The end of a write that may let in an interrupt. enabled: the test whether mstatus does, if it is another one."""
    e.put(enabled or x86.compare_bits_memory(STATE, place("mstatus"), _enabling(e)))
    none = e.jump(x86.jcc(Cond.E))
    interrupted = when_pending(e, x86.alu_load(Alu.AND, RDX, STATE, place("mie")))
    e.land(none)
    _end(e, d, chained, interrupted)


def _wait(e: Emitter, d: Decoded, chained: Chained) -> None:
    """wfi in S-mode, at once over when software's interrupt is pending and not let in (3.3.3)."""
    number = e.system_site(d)
    e.put(x86.compare_bits_memory(STATE, place("mstatus"), int(Status.TW | Status.SIE)))
    e.leave_when(e.jump(x86.jcc(Cond.NE)), number)
    e.put(
        x86.mov_load(RAX, STATE, place("mip")),
        x86.alu_load(Alu.AND, RAX, STATE, place("mie")),
        x86.alu_load(Alu.AND, RAX, STATE, place("mideleg")),
    )
    e.leave_when(e.jump(x86.jcc(Cond.E)), number)
    following = e.pc + d.size & _M64
    e.go(x86.JMP, following, chained(following))
