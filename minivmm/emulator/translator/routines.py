"""The routines that blocks jump to, one of each for a regime, made when first needed: looking up a guest address,
taking a trap, returning from one.

A change of mode is a jump into another regime's code. Which one is known when the routine is made: SUM and MXR stay,
and MPRV concerns M-mode alone.
"""

from __future__ import annotations

from collections.abc import Callable

from minivmm.emulator.csr_table import MPP_SHIFT, Interrupt, Status
from minivmm.emulator.translator import x86
from minivmm.emulator.translator.emit_system import place, when_pending
from minivmm.emulator.translator.emitter import RAX, RCX, RDX, Emitter
from minivmm.emulator.translator.registers import BUDGET_REGISTER, STATE
from minivmm.emulator.translator.state import PENDING, RBP_OFFSET, RESERVED, TRAPS
from minivmm.emulator.translator.x86 import Alu, Cond, Shift
from minivmm.emulator.traps import INTERRUPT, Privilege

_SIE, _MIE, _SPIE, _MPIE = int(Status.SIE), int(Status.MIE), int(Status.SPIE), int(Status.MPIE)
_SPP, _MPP, _MPRV, _TSR = int(Status.SPP), int(Status.MPP), int(Status.MPRV), int(Status.TSR)
_SSI = int(Interrupt.SSI)
_STATUS = place("mstatus")

Routine = Callable[[Emitter], None]
ROUTINES: dict[str, Routine] = {}


def _routine(routine: Routine) -> Routine:
    ROUTINES[routine.__name__] = routine
    return routine


@_routine
def dispatch(e: Emitter) -> None:
    """Goes to the guest address in RAX."""
    e.dispatch()


@_routine
def miss(e: Emitter) -> None:
    """What is behind a look-up of RAX in vain."""
    e.miss()


def _drop_reservation(e: Emitter) -> None:
    e.put(x86.mov_store_imm32(STATE, RESERVED - RBP_OFFSET, 0, True))


def _stack_enable(e: Emitter, enable: int, previous: int, cleared: int, mode: int) -> None:
    """mstatus: the enabling bit goes to its `previous` bit, both and `cleared` go, the bits of `mode` come."""
    e.put(
        x86.mov_load(RAX, STATE, _STATUS),
        x86.mov(RCX, RAX, False),
        x86.alu_imm(Alu.AND, RCX, enable, False),
        x86.shift_imm(Shift.SHL, RCX, previous.bit_length() - enable.bit_length(), False),
        x86.alu_imm(Alu.AND, RAX, ~(enable | previous | cleared)),
        x86.alu(Alu.OR, RAX, RCX),
    )
    if mode:
        e.put(x86.alu_imm(Alu.OR, RAX, mode))
    e.put(x86.mov_store(STATE, _STATUS, RAX), x86.alu_memory_imm(Alu.ADD, STATE, TRAPS - RBP_OFFSET, 1))
    _drop_reservation(e)


@_routine
def deliver(e: Emitter) -> None:
    """Hart.trap for an exception from S or U: RCX is the cause, RDX the instruction's address, RAX what *tval gets."""
    mode = e.regime.fetch_mode
    e.put(x86.memory(b"\x0f\xa3", RCX, STATE, place("medeleg")))  # BT
    to_m = e.jump(x86.jcc(Cond.AE))
    for name, register in (("scause", RCX), ("sepc", RDX), ("stval", RAX)):
        e.put(x86.mov_store(STATE, place(name), register))
    _stack_enable(e, _SIE, _SPIE, _SPP, _SPP if mode == Privilege.S else 0)
    e.put(x86.mov_load(RAX, STATE, place("stvec")), x86.alu_imm(Alu.AND, RAX, -4))
    e.to_routine("dispatch", e.regime.successor(Privilege.S))
    e.land(to_m)
    for name, register in (("mcause", RCX), ("mepc", RDX), ("mtval", RAX)):
        e.put(x86.mov_store(STATE, place(name), register))
    _stack_enable(e, _MIE, _MPIE, _MPP, mode << MPP_SHIFT)
    e.put(x86.mov_load(RAX, STATE, place("mtvec")), x86.alu_imm(Alu.AND, RAX, -4))
    e.put(x86.compare_bits_memory(STATE, _STATUS, _MPRV))
    with_mprv = e.jump(x86.jcc(Cond.NE))
    e.to_routine("dispatch", e.regime.successor(Privilege.M))
    e.land(with_mprv)
    e.to_routine("dispatch", e.regime.successor(Privilege.M, mode))


@_routine
def interrupt(e: Emitter) -> None:
    """Hart.look_at_interrupts in S-mode, where something pending is let in: RDX is the address to come back to.

    Only for software's own interrupt; SITE is one at which Python looks at the others.
    """
    e.put(x86.mov_load(RAX, STATE, PENDING - RBP_OFFSET), x86.alu_load(Alu.AND, RAX, STATE, place("mie")))
    e.to_exit.append(e.jump(x86.jcc(Cond.NE)))
    e.put(
        x86.mov_load(RAX, STATE, place("mip")),
        x86.alu_load(Alu.AND, RAX, STATE, place("mie")),
        x86.mov(RCX, RAX),
        x86.alu_load(Alu.AND, RCX, STATE, place("mideleg")),
        x86.alu(Alu.CMP, RAX, RCX),
    )
    e.to_exit.append(e.jump(x86.jcc(Cond.NE)))
    e.put(x86.alu_imm(Alu.CMP, RAX, _SSI))
    e.to_exit.append(e.jump(x86.jcc(Cond.NE)))
    code = _SSI.bit_length() - 1
    e.put(
        x86.alu_imm(Alu.SUB, BUDGET_REGISTER, 1),  # as every trap
        x86.mov_imm(RCX, INTERRUPT | code),
        x86.mov_store(STATE, place("scause"), RCX),
        x86.mov_store(STATE, place("sepc"), RDX),
        x86.mov_store_imm32(STATE, place("stval"), 0, True),
    )
    _stack_enable(e, _SIE, _SPIE, _SPP, _SPP)
    e.put(
        x86.mov_load(RAX, STATE, place("stvec")),
        x86.mov(RCX, RAX),
        x86.alu_imm(Alu.AND, RAX, -4),
        x86.compare_bits(RCX, 1),  # MODE: vectored
    )
    direct = e.jump(x86.jcc(Cond.E))
    e.put(x86.alu_imm(Alu.ADD, RAX, 4 * code))
    e.land(direct)
    e.to_routine("dispatch")


def _unstack_enable(e: Emitter, enable: int, previous: int, cleared: int) -> None:
    """mstatus, in RAX: the enabling bit comes from its `previous` bit, which becomes 1, `cleared` go. RDX: the old."""
    e.put(
        x86.mov(RDX, RAX, False),
        x86.mov(RCX, RAX, False),
        x86.alu_imm(Alu.AND, RCX, previous, False),
        x86.shift_imm(Shift.SHR, RCX, previous.bit_length() - enable.bit_length(), False),
        x86.alu_imm(Alu.AND, RAX, ~(enable | cleared)),
        x86.alu(Alu.OR, RAX, RCX),
        x86.alu_imm(Alu.OR, RAX, previous),
        x86.mov_store(STATE, _STATUS, RAX),
    )
    _drop_reservation(e)


def _go_where(e: Emitter, address: str, supervisor: int) -> None:
    """To the address in a CSR, in S-mode when this bit was set in what RDX has of mstatus, else in U-mode."""
    e.put(x86.mov_load(RAX, STATE, place(address)), x86.compare_bits(RDX, supervisor))
    to_u = e.jump(x86.jcc(Cond.E))
    e.to_routine("dispatch", e.regime.successor(Privilege.S))
    e.land(to_u)
    e.to_routine("dispatch", e.regime.successor(Privilege.U))


@_routine
def sret(e: Emitter) -> None:
    """system.sret, from S-mode; SITE is one that does the same in Python, where an interrupt waits for it."""
    e.to_exit.append(when_pending(e, x86.alu_load(Alu.AND, RDX, STATE, place("mie"))))
    e.put(x86.mov_load(RAX, STATE, _STATUS), x86.compare_bits(RAX, _TSR))
    e.to_exit.append(e.jump(x86.jcc(Cond.NE)))
    _unstack_enable(e, _SIE, _SPIE, _SPP | _MPRV)
    _go_where(e, "sepc", _SPP)


@_routine
def mret(e: Emitter) -> None:
    """system.mret to S or U; SITE is one that does the same in Python, and that returns to M."""
    e.to_exit.append(when_pending(e, x86.alu_load(Alu.AND, RDX, STATE, place("mie"))))
    e.put(
        x86.mov_load(RAX, STATE, _STATUS),
        x86.mov(RCX, RAX, False),
        x86.alu_imm(Alu.AND, RCX, _MPP, False),
        x86.alu_imm(Alu.CMP, RCX, _MPP, False),
    )
    e.to_exit.append(e.jump(x86.jcc(Cond.E)))
    _unstack_enable(e, _MIE, _MPIE, _MPP | _MPRV)
    _go_where(e, "mepc", int(Privilege.S) << MPP_SHIFT)
