"""Sv39 in x86-64: what Mmu does for pages that are there and pages that are not (Privileged 1.12, 4.3).

A page that is not in the TLB is walked here and entered. What is not permitted is delivered to the guest. The rest is
Python's: devices, misaligned accesses, accessed and dirty bits to be set, malformed tables, pages with translated code.

A flush empties the TLB by the log of its entries. Translated code stays when each page that some comes from still is
where it was, which is walked here too; if one is not, Python flushes everything.
"""

from __future__ import annotations

from minivmm.emulator.csr_table import SATP_MODE_SHIFT, SATP_SV39, Status
from minivmm.emulator.mmu import CANONICAL, LEVELS, PTE_A, PTE_D, PTE_R, PTE_U, PTE_V, PTE_W, PTE_X, VPN_BITS
from minivmm.emulator.physical import PAGE_SHIFT, RAM_BASE
from minivmm.emulator.translator import state, x86
from minivmm.emulator.translator.emit_system import place
from minivmm.emulator.translator.emitter import INDEX_MASK, MISS_AT, PAGE_MASK, RAX, RCX, RDX, Emitter
from minivmm.emulator.translator.registers import BUDGET_REGISTER, STATE
from minivmm.emulator.translator.routines import Routine
from minivmm.emulator.translator.state import RBP_OFFSET
from minivmm.emulator.translator.x86 import Alu, Cond, Reg, Shift
from minivmm.emulator.traps import PAGE_FAULT, Access, Privilege

R8, R9, R10 = Reg.R8, Reg.R9, Reg.R10
_LEAF, _ABSENT, _ODD = 0, 1, 2  # what a walk ends in
_PPN_BITS, _RESERVED_SHIFT = 44, 54
_TVM = int(Status.TVM)


def _at(offset: int) -> int:
    return offset - RBP_OFFSET


def _to_ram_offset(e: Emitter, register: Reg, temporary: Reg) -> int:
    """A physical address becomes an offset in RAM; a jump for when it is none."""
    e.put(
        x86.mov_imm(temporary, RAM_BASE),
        x86.alu(Alu.SUB, register, temporary),
        x86.mov_imm(temporary, e.host.size),
        x86.alu(Alu.CMP, register, temporary),
    )
    return e.jump(x86.jcc(Cond.AE))


def walk(e: Emitter) -> None:
    """Called with an address in RAX: how it ends in ECX; for a leaf, RDX is the entry and R8 the physical page.

    Changes R9. Leaves are accessed and aligned; what else is not as it should be is odd.
    """
    odd = []
    e.put(
        x86.mov(RCX, RAX),
        x86.shift_imm(Shift.SHL, RCX, 63 - CANONICAL),
        x86.shift_imm(Shift.SAR, RCX, 63 - CANONICAL),
        x86.alu(Alu.CMP, RCX, RAX),
    )
    odd.append(e.jump(x86.jcc(Cond.NE)))
    e.put(
        x86.mov_load(R8, STATE, _at(state.SATP)),
        x86.mov(RCX, R8),
        x86.shift_imm(Shift.SHR, RCX, SATP_MODE_SHIFT),
        x86.alu_imm(Alu.CMP, RCX, SATP_SV39, False),
    )
    odd.append(e.jump(x86.jcc(Cond.NE)))
    e.put(
        x86.shift_imm(Shift.SHL, R8, 64 - _PPN_BITS),
        x86.shift_imm(Shift.SHR, R8, 64 - _PPN_BITS - PAGE_SHIFT),
        x86.mov_imm(RCX, PAGE_SHIFT + VPN_BITS * (LEVELS - 1)),
    )
    level = len(e.code)  # R8: the table's address; CL: the bits below this level's index
    odd.append(_to_ram_offset(e, R8, RDX))
    e.put(
        x86.mov(RDX, RAX),
        x86.shift_cl(Shift.SHR, RDX),
        x86.alu_imm(Alu.AND, RDX, (1 << VPN_BITS) - 1, False),
        x86.shift_imm(Shift.SHL, RDX, 3, False),
        x86.mov_imm(R9, e.host.ram),
        x86.alu(Alu.ADD, R9, R8),
        x86.indexed(b"\x8b", RDX, R9, RDX, 0),  # MOV: the entry
        x86.compare_bits(RDX, PTE_V),
    )
    absent = e.jump(x86.jcc(Cond.E))
    e.put(x86.mov(R9, RDX), x86.shift_imm(Shift.SHR, R9, _RESERVED_SHIFT))
    odd.append(e.jump(x86.jcc(Cond.NE)))
    e.put(
        x86.mov(R8, RDX),
        x86.shift_imm(Shift.SHR, R8, 10),
        x86.shift_imm(Shift.SHL, R8, PAGE_SHIFT),
        x86.compare_bits(RDX, PTE_R | PTE_X),
    )
    leaf = e.jump(x86.jcc(Cond.NE))
    e.put(x86.compare_bits(RDX, PTE_W | PTE_U | PTE_A | PTE_D))
    odd.append(e.jump(x86.jcc(Cond.NE)))
    e.put(x86.alu_imm(Alu.SUB, RCX, VPN_BITS, False), x86.alu_imm(Alu.CMP, RCX, PAGE_SHIFT, False))
    _back(e, x86.jcc(Cond.GE), level)
    odd.append(e.jump(x86.JMP))

    e.land(leaf)
    e.put(
        x86.mov(R9, RDX, False),
        x86.alu_imm(Alu.AND, R9, PTE_R | PTE_W, False),
        x86.alu_imm(Alu.CMP, R9, PTE_W, False),
    )
    odd.append(e.jump(x86.jcc(Cond.E)))
    e.put(x86.compare_bits(RDX, PTE_A))
    odd.append(e.jump(x86.jcc(Cond.E)))
    e.put(
        x86.mov_imm(R9, -1),
        x86.shift_cl(Shift.SHL, R9),
        x86.unary(x86.Unary.NOT, R9),
        x86.compare_zero(R8, R9),
    )
    odd.append(e.jump(x86.jcc(Cond.NE)))
    e.put(
        x86.alu(Alu.AND, R9, RAX),
        x86.alu_imm(Alu.AND, R9, PAGE_MASK),
        x86.alu(Alu.OR, R8, R9),
        x86.mov_imm(RCX, _LEAF),
        x86.RET,
    )
    e.land(absent)
    e.put(x86.mov_imm(RCX, _ABSENT), x86.RET)
    for at in odd:
        e.land(at)
    e.put(x86.mov_imm(RCX, _ODD), x86.RET)


def _back(e: Emitter, opcode: bytes, to: int) -> None:
    """A jump to a place behind us."""
    at = e.jump(opcode)
    e.code[at : at + 4] = (to - at - 4).to_bytes(4, "little", signed=True)


def _miss(e: Emitter, access: Access) -> None:
    """Called with an address in RAX and what host_address() compares of it in RDX, with emitter.MISS behind the call.

    Returns when the page is in the TLB, with its index in RCX.
    """
    odd, refused, early = [], [], []
    regime, stores = e.regime, access is Access.STORE
    if e.delivers and regime.data_mode != Privilege.M:
        e.put(x86.compare_bits(RDX, ~PAGE_MASK))  # misaligned
        early.append(e.jump(x86.jcc(Cond.NE)))
        e.put(x86.push(R8), x86.push(R9), x86.alu_memory_imm(Alu.ADD, STATE, _at(state.WALKS), 1))
        e.to_routine("walk", opcode=x86.CALL)
        e.put(x86.alu_imm(Alu.CMP, RCX, _ABSENT, False))
        refused.append(e.jump(x86.jcc(Cond.E)))
        odd.append(e.jump(x86.jcc(Cond.A)))
        if regime.data_mode == Privilege.U or not regime.sum:
            e.put(x86.compare_bits(RDX, PTE_U))
            refused.append(e.jump(x86.jcc(Cond.E if regime.data_mode == Privilege.U else Cond.NE)))
        e.put(x86.compare_bits(RDX, PTE_W if stores else PTE_R | PTE_X if regime.mxr else PTE_R))
        refused.append(e.jump(x86.jcc(Cond.E)))
        if stores:
            e.put(x86.compare_bits(RDX, PTE_D))
            odd.append(e.jump(x86.jcc(Cond.E)))
        odd.append(_to_ram_offset(e, R8, RCX))
        if stores:
            e.put(
                x86.mov(R9, R8),
                x86.shift_imm(Shift.SHR, R9, PAGE_SHIFT),
                x86.mov_imm(RCX, e.host.code_map),
                x86.indexed(b"\x0f\xb6", RCX, RCX, R9, 0, False),  # MOVZX
                x86.compare_zero(RCX, RCX, False),
            )
            odd.append(e.jump(x86.jcc(Cond.NE)))
        _enter(e, regime.tables.write_at if stores else regime.tables.read_at)
        e.put(x86.pop(R9), x86.pop(R8), x86.RET)

        for at in refused:
            e.land(at)
        if regime.fetch_mode != Privilege.M:
            e.put(
                x86.pop(R9),
                x86.pop(R8),
                x86.pop(RDX),
                x86.mov_load(RCX, RDX, MISS_AT + 4, False),
                x86.alu(Alu.ADD, BUDGET_REGISTER, RCX),
                x86.mov_imm(RCX, PAGE_FAULT[access]),
                x86.mov_load(RDX, RDX, MISS_AT + 8),
            )
            e.to_routine("deliver")
        for at in odd:
            e.land(at)
        e.put(x86.pop(R9), x86.pop(R8))
    for at in early:
        e.land(at)
    e.put(
        x86.pop(RDX),
        x86.mov_load(RCX, RDX, MISS_AT, False),
        x86.mov_store(STATE, _at(state.SITE), RCX, False),
        x86.mov_store(STATE, _at(state.ADDRESS), RAX),
    )
    e.to_exit.append(e.jump(x86.JMP))


def _enter(e: Emitter, table_at: int) -> None:
    """Enters the page of RAX, which is at the offset R8 in RAM; RCX becomes the entry's index. Changes RDX, R8, R9."""
    e.put(
        x86.mov_imm(RCX, e.host.ram),
        x86.alu(Alu.ADD, R8, RCX),
        x86.mov(R9, RAX),
        x86.alu_imm(Alu.AND, R9, PAGE_MASK),
        x86.alu(Alu.SUB, R8, R9),
        x86.mov(RCX, RAX, False),
        x86.shift_imm(Shift.SHR, RCX, 8, False),
        x86.alu_imm(Alu.AND, RCX, INDEX_MASK, False),
        x86.indexed(b"\x89", R9, STATE, RCX, _at(table_at)),  # MOV
        x86.indexed(b"\x89", R8, STATE, RCX, _at(table_at) + 8),
        x86.mov_load(RDX, STATE, _at(state.TLB_COUNT), False),
        x86.alu_imm(Alu.CMP, RDX, state.LOG_ENTRIES, False),
    )
    full = e.jump(x86.jcc(Cond.AE))
    e.put(
        x86.lea(R9, RCX, _at(table_at), False),
        x86.mov(R8, RDX, False),
        x86.shift_imm(Shift.SHL, R8, 2, False),
        x86.indexed(b"\x89", R9, STATE, R8, _at(state.TLB_LOG), False),
        x86.alu_memory_imm(Alu.ADD, STATE, _at(state.TLB_COUNT), 1),
    )
    e.land(full)


def load_miss(e: Emitter) -> None:
    """For loads and LR."""
    _miss(e, Access.LOAD)


def store_miss(e: Emitter) -> None:
    """For stores, SC and the AMOs."""
    _miss(e, Access.STORE)


def flush(e: Emitter) -> None:
    """Called to flush the TLB: ECX is 0 when that was all there was to do. Changes RAX and RDX."""
    odd, moved = [], []
    e.put(
        x86.mov_store_imm32(STATE, _at(state.STALE), 1, True),
        x86.mov_load(RCX, STATE, _at(state.TLB_COUNT), False),
        x86.alu_imm(Alu.CMP, RCX, state.LOG_ENTRIES, False),
    )
    odd.append(e.jump(x86.jcc(Cond.AE)))
    entry = len(e.code)
    e.put(x86.alu_imm(Alu.SUB, RCX, 1, False))
    done = e.jump(x86.jcc(Cond.S))
    e.put(
        x86.mov(RDX, RCX, False),
        x86.shift_imm(Shift.SHL, RDX, 2, False),
        x86.indexed(b"\x8b", RDX, STATE, RDX, _at(state.TLB_LOG), False),
        x86.indexed_imm(STATE, RDX, 0, -1),
    )
    _back(e, x86.JMP, entry)
    e.land(done)
    e.put(
        x86.mov_store_imm32(STATE, _at(state.TLB_COUNT), 0, True),
        *(x86.push(register) for register in (R8, R9, R10)),
        x86.mov_load(R10, STATE, _at(state.FETCH_COUNT), False),
        x86.alu_imm(Alu.CMP, R10, state.FETCH_ENTRIES, False),
    )
    moved.append(e.jump(x86.jcc(Cond.AE)))
    page = len(e.code)
    e.put(x86.alu_imm(Alu.SUB, R10, 1, False))
    all_there = e.jump(x86.jcc(Cond.S))
    e.put(
        x86.mov(RCX, R10, False),
        x86.shift_imm(Shift.SHL, RCX, 4, False),
        x86.indexed(b"\x8b", RAX, STATE, RCX, _at(state.FETCH_LOG)),  # its bit 0 is the mode
    )
    e.to_routine("walk", opcode=x86.CALL)
    e.put(x86.compare_zero(RCX, RCX, False))
    moved.append(e.jump(x86.jcc(Cond.NE)))
    e.put(x86.compare_bits(RDX, PTE_X))
    moved.append(e.jump(x86.jcc(Cond.E)))
    e.put(  # PTE_U is not the mode's bit
        x86.shift_imm(Shift.SHR, RDX, PTE_U.bit_length() - 1, False),
        x86.alu(Alu.XOR, RDX, RAX, False),
        x86.compare_bits(RDX, 1),
    )
    moved.append(e.jump(x86.jcc(Cond.E)))
    e.put(
        x86.mov(RCX, R10, False),
        x86.shift_imm(Shift.SHL, RCX, 4, False),
        x86.indexed(b"\x3b", R8, STATE, RCX, _at(state.FETCH_LOG) + 8),  # CMP
    )
    _back(e, x86.jcc(Cond.E), page)
    for at in moved:
        e.land(at)
    e.put(*(x86.pop(register) for register in (R10, R9, R8)))
    for at in odd:
        e.land(at)
    e.put(x86.mov_imm(RCX, 1), x86.RET)
    e.land(all_there)
    e.put(*(x86.pop(register) for register in (R10, R9, R8)), x86.mov_imm(RCX, 0), x86.RET)


def _refuse_tvm(e: Emitter) -> list[int]:
    """Jumps for when S-mode may not (3.1.6.5)."""
    if e.regime.fetch_mode == Privilege.M:
        return []
    e.put(x86.compare_bits_memory(STATE, place("mstatus"), _TVM))
    return [e.jump(x86.jcc(Cond.NE))]


def _leave(e: Emitter, places: list[int]) -> None:
    """For Python to do all of it, at SITE."""
    for at in places:
        e.land(at)
    e.put(x86.pop(RDX))
    e.to_exit.append(e.jump(x86.JMP))


def fence(e: Emitter) -> None:
    """system.sfence_vma, called."""
    odd = _refuse_tvm(e)
    e.to_routine("flush", opcode=x86.CALL)
    e.put(x86.compare_zero(RCX, RCX, False))
    odd.append(e.jump(x86.jcc(Cond.NE)))
    e.put(x86.RET)
    _leave(e, odd)


def write_satp(e: Emitter) -> None:
    """CsrFile.write_satp from Sv39 to Sv39, called with the new value in RAX."""
    odd = _refuse_tvm(e)
    for value in (x86.mov(RCX, RAX), x86.mov_load(RCX, STATE, _at(state.SATP))):
        e.put(
            value,
            x86.shift_imm(Shift.SHR, RCX, SATP_MODE_SHIFT),
            x86.alu_imm(Alu.CMP, RCX, SATP_SV39, False),
        )
        odd.append(e.jump(x86.jcc(Cond.NE)))
    e.put(
        x86.mov_load(RCX, STATE, _at(state.SATP)),
        x86.mov_store(STATE, _at(state.OLD_SATP), RCX),
        x86.mov_store(STATE, _at(state.SATP), RAX),
    )
    e.to_routine("flush", opcode=x86.CALL)
    e.put(x86.compare_zero(RCX, RCX, False))
    moved = e.jump(x86.jcc(Cond.NE))
    e.put(x86.RET)
    e.land(moved)
    e.put(x86.mov_load(RCX, STATE, _at(state.OLD_SATP)), x86.mov_store(STATE, _at(state.SATP), RCX))
    _leave(e, odd)


MISSES: dict[str, Routine] = {
    routine.__name__: routine for routine in (walk, load_miss, store_miss, flush, fence, write_satp)
}
"""As routines.ROUTINES."""
