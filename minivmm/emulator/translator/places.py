"""A TLB entry for each load and store: the page it went to last, which most often is the page it goes to next.

That takes three instructions less than a look-up in the TLB, and no load whose address is computed. Who flushes the TLB
must empty them all (state.State.clear_tlb). Python does; a machine's code, which flushes by itself, does not: only that
of a process has them.
"""

from __future__ import annotations

from minivmm.emulator.translator import x86
from minivmm.emulator.translator.emitter import INDEX_MASK, RAX, RCX, RDX, Emitter
from minivmm.emulator.translator.registers import STATE
from minivmm.emulator.translator.routines import Routine
from minivmm.emulator.translator.state import RBP_OFFSET
from minivmm.emulator.translator.x86 import Alu, Cond, Reg, Shift

R8 = Reg.R8


def _from_tlb(e: Emitter, table_at: int, miss: str) -> None:
    """Called with an address in RAX, what is compared of it in RDX, the entry's displacement from RBP in RCX, and
    emitter.MISS behind the call. The entry is made what the TLB has, and RCX what is to be added to the address."""
    entry = table_at - RBP_OFFSET
    e.put(
        x86.push(R8),
        x86.mov(R8, RAX, False),
        x86.shift_imm(Shift.SHR, R8, 8, False),
        x86.alu_imm(Alu.AND, R8, INDEX_MASK, False),
        x86.indexed(b"\x3b", RDX, STATE, R8, entry),  # CMP
    )
    unknown = e.jump(x86.jcc(Cond.NE))
    e.put(
        x86.mov_load_indexed(R8, STATE, R8, entry + 8),
        x86.indexed(b"\x89", RDX, STATE, RCX, 0),  # MOV
        x86.indexed(b"\x89", R8, STATE, RCX, 8),
        x86.mov(RCX, R8),
        x86.pop(R8),
        x86.RET,
    )
    e.land(unknown)
    e.put(x86.pop(R8))
    e.to_routine(miss)


def load_place(e: Emitter) -> None:
    """For a load."""
    _from_tlb(e, e.tables.read_at, "load_miss")


def store_place(e: Emitter) -> None:
    """For a store."""
    _from_tlb(e, e.tables.write_at, "store_miss")


PLACES: dict[str, Routine] = {routine.__name__: routine for routine in (load_place, store_place)}
"""As routines.ROUTINES."""
