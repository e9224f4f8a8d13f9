"""What F and D become: scalar SSE, with the guest's rounding mode and flags in MXCSR, which it enters and leaves with.

Where RISC-V and x86 differ the difference is mended or left to Python: a NaN that results becomes the canonical one; a
conversion out of range, a fused NaN and a rounding mode that x86 does not have go out. An instruction with a rounding
mode of its own changes MXCSR for itself.
"""

from __future__ import annotations

from collections.abc import Callable

from minivmm.emulator.decoder import Decoded
from minivmm.emulator.instructions import DYNAMIC, RTZ
from minivmm.emulator.mmu import FloatingState
from minivmm.emulator.softfloat import DOUBLE, SINGLE, Format
from minivmm.emulator.translator import sse, x86
from minivmm.emulator.translator.emit import Emit
from minivmm.emulator.translator.emitter import RAX, RCX, RDX, Emitter
from minivmm.emulator.translator.floating import ROUNDING_CONTROL
from minivmm.emulator.translator.registers import HOST, STATE, floating_slot
from minivmm.emulator.translator.sites import Kind
from minivmm.emulator.translator.sse import XMM0, XMM1, XMM2, Fma, Packed, Sse
from minivmm.emulator.translator.state import OTHER_MXCSR, RBP_OFFSET, ROUNDING
from minivmm.emulator.translator.x86 import Alu, Cond, Reg, Shift, Unary

FLOATING: dict[str, Emit] = {}
"""As emit.EMIT."""


def _emits(*names: str) -> Callable[[Emit], Emit]:
    """Registers the function for these instructions."""

    def register(function: Emit) -> Emit:
        FLOATING.update(dict.fromkeys(names, function))
        return function

    return register


_FORMS: dict[str, Format] = {"s": SINGLE, "d": DOUBLE}
_PREFIX = {32: sse.SINGLE, 64: sse.DOUBLE}
_OTHER = OTHER_MXCSR - RBP_OFFSET
_CONTROL_MASK = ROUNDING_CONTROL[RTZ]
_UPPER = 4  # bytes from a register's place in State to its upper half


def _prefix(form: Format) -> sse.Prefix:
    return _PREFIX[form.bits]


def _form(decoded: Decoded) -> Format:
    return _FORMS[decoded.name.rpartition(".")[2]]


def _rounds(e: Emitter, d: Decoded) -> bool:
    """Whether MXCSR has the instruction's rounding mode, or can get it."""
    return e.regime.floating is FloatingState.ON if d.rm == DYNAMIC else d.rm in ROUNDING_CONTROL


def _rounded(e: Emitter, d: Decoded, *parts: bytes) -> None:
    """Instructions that round, in the instruction's own mode if it has one. Changes RDX."""
    if d.rm == DYNAMIC:
        e.put(*parts)
        return
    e.put(
        sse.store_control(STATE, _OTHER),
        x86.mov_load(RDX, STATE, _OTHER, False),
        x86.alu_imm(Alu.AND, RDX, ~_CONTROL_MASK, False),
        x86.alu_imm(Alu.OR, RDX, ROUNDING_CONTROL[d.rm], False),
        x86.mov_store(STATE, _OTHER, RDX, False),
        sse.load_control(STATE, _OTHER),
        *parts,
        sse.store_control(STATE, _OTHER),
        x86.mov_load(RDX, STATE, _OTHER, False),
        x86.alu_imm(Alu.AND, RDX, ~_CONTROL_MASK, False),
        x86.alu_load(Alu.OR, RDX, STATE, ROUNDING - RBP_OFFSET, False),
        x86.mov_store(STATE, _OTHER, RDX, False),
        sse.load_control(STATE, _OTHER),
    )


# --- registers -------------------------------------------------------------------------------------------------------
def _unboxed(e: Emitter, register: int, otherwise: bytes) -> None:
    """`otherwise` is executed where the register does not hold a boxed single (12.2)."""
    if register in e.boxed:
        return
    e.put(x86.alu_memory_imm(Alu.CMP, STATE, floating_slot(register) + _UPPER, -1, False))
    e.aside(x86.jcc(Cond.NE), otherwise)


def _get(e: Emitter, form: Format, to: int, register: int) -> None:
    """An XMM register becomes a guest register, of which a single is to be boxed."""
    e.put(sse.load(_prefix(form), to, STATE, floating_slot(register)))
    if form is SINGLE:
        _unboxed(e, register, x86.mov_imm(RAX, SINGLE.canonical) + sse.from_general(to, RAX, False))


def _get_bits(e: Emitter, form: Format, to: Reg, register: int) -> None:
    """As _get, into a general register."""
    e.put(x86.mov_load(to, STATE, floating_slot(register), form is DOUBLE))
    if form is SINGLE:
        _unboxed(e, register, x86.mov_imm(to, SINGLE.canonical))


def _box(e: Emitter, form: Format, register: int) -> None:
    """What a single needs above it."""
    if form is DOUBLE:
        e.boxed.discard(register)
    elif register not in e.boxed:
        e.put(x86.mov_store_imm32(STATE, floating_slot(register) + _UPPER, -1))
        e.boxed.add(register)


def _put(e: Emitter, form: Format, register: int, source: int = XMM0) -> None:
    e.put(sse.store(_prefix(form), STATE, floating_slot(register), source))
    _box(e, form, register)


def _put_bits(e: Emitter, form: Format, register: int, source: Reg) -> None:
    e.put(x86.mov_store(STATE, floating_slot(register), source, form is DOUBLE))
    _box(e, form, register)


def _canonical(e: Emitter, form: Format) -> None:
    """XMM0 becomes the canonical NaN if it is any (11.3)."""
    e.put(sse.compare(_prefix(form), XMM0, XMM0, True))
    e.aside(x86.jcc(Cond.P), x86.mov_imm(RAX, form.canonical) + sse.from_general(XMM0, RAX, form is DOUBLE))


def _by_python(e: Emitter, d: Decoded) -> None:
    e.resume(e.call(x86.JMP, d))
    if d.instruction.format.syntax.startswith("f"):
        e.boxed.discard(d.rd)


# --- memory ----------------------------------------------------------------------------------------------------------
@_emits("flw", "fld")
def _load(e: Emitter, d: Decoded) -> None:
    form = SINGLE if d.name == "flw" else DOUBLE
    site, base, displacement = e.operand(e.tables.read_at, d, form.bits // 8, Kind.LOAD)
    site.name, site.register = d.name, d.rd
    e.put(x86.mov_load_indexed(RAX, base, RCX, displacement, form is DOUBLE))
    e.put(x86.mov_store(STATE, floating_slot(d.rd), RAX, form is DOUBLE))
    if form is SINGLE:
        e.boxed.discard(d.rd)  # also what Python loads is boxed, and both come by the same way from here
    _box(e, form, d.rd)
    e.resume(site)


@_emits("fsw", "fsd")
def _store(e: Emitter, d: Decoded) -> None:
    size = 4 if d.name == "fsw" else 8
    site, base, displacement = e.operand(e.tables.write_at, d, size, Kind.STORE)
    site.name, site.register = d.name, d.rs2
    e.put(x86.mov_load(RDX, STATE, floating_slot(d.rs2), size == 8))
    e.put(x86.store_indexed(size, base, RCX, displacement, RDX))
    e.resume(site)


# --- arithmetic ------------------------------------------------------------------------------------------------------
_BINARY = {"fadd": Sse.ADD, "fsub": Sse.SUB, "fmul": Sse.MUL, "fdiv": Sse.DIV}


@_emits(*(f"{name}.{letter}" for name in _BINARY for letter in _FORMS))
def _binary(e: Emitter, d: Decoded) -> None:
    if not _rounds(e, d):
        _by_python(e, d)
        return
    form, operation = _form(d), _BINARY[d.name[:4]]
    _get(e, form, XMM0, d.rs1)
    if form is DOUBLE or d.rs2 in e.boxed:
        _rounded(e, d, sse.operate_load(_prefix(form), operation, XMM0, STATE, floating_slot(d.rs2)))
    else:
        _get(e, form, XMM1, d.rs2)
        _rounded(e, d, sse.operate(_prefix(form), operation, XMM0, XMM1))
    _canonical(e, form)
    _put(e, form, d.rd)


@_emits("fsqrt.s", "fsqrt.d")
def _square_root(e: Emitter, d: Decoded) -> None:
    if not _rounds(e, d):
        _by_python(e, d)
        return
    form = _form(d)
    _get(e, form, XMM0, d.rs1)
    _rounded(e, d, sse.operate(_prefix(form), Sse.SQRT, XMM0, XMM0))
    _canonical(e, form)
    _put(e, form, d.rd)


# RISC-V names what happens to the sum, x86 what happens to the product.
_FUSED = {"fmadd": Fma.MADD, "fmsub": Fma.MSUB, "fnmsub": Fma.NMADD, "fnmadd": Fma.NMSUB}


@_emits(*(f"{name}.{letter}" for name in _FUSED for letter in _FORMS))
def _fused(e: Emitter, d: Decoded) -> None:
    form = _form(d)
    if not _rounds(e, d) or "fma" not in sse.features():
        _by_python(e, d)
        return
    _get(e, form, XMM0, d.rs1)
    _get(e, form, XMM1, d.rs2)
    _get(e, form, XMM2, d.rs3)
    _rounded(e, d, sse.fused(_prefix(form), _FUSED[d.name.partition(".")[0]], XMM0, XMM1, XMM2))
    # 11.6: infinity times zero plus a quiet NaN is invalid, but not on x86.
    e.put(sse.compare(_prefix(form), XMM0, XMM0, True))
    site = e.call(x86.jcc(Cond.P), d)
    _put(e, form, d.rd)
    e.resume(site)


@_emits("fmin.s", "fmin.d", "fmax.s", "fmax.d")
def _choose(e: Emitter, d: Decoded) -> None:
    form, least = _form(d), d.name.startswith("fmin")
    _get(e, form, XMM0, d.rs1)
    _get(e, form, XMM1, d.rs2)
    e.put(sse.compare(_prefix(form), XMM0, XMM1, True))
    site = e.call(x86.jcc(Cond.P), d)
    different = e.jump(x86.jcc(Cond.NE))
    e.put(sse.bitwise(Packed.OR if least else Packed.AND, XMM0, XMM1))  # alike, or zeros of both signs
    end = e.jump(x86.JMP)
    e.land(different)
    e.put(sse.operate(_prefix(form), Sse.MIN if least else Sse.MAX, XMM0, XMM1))
    e.land(end)
    _put(e, form, d.rd)
    e.resume(site)


@_emits("feq.s", "feq.d", "flt.s", "flt.d", "fle.s", "fle.d")
def _compare(e: Emitter, d: Decoded) -> None:
    form, kind = _form(d), d.name[:3]
    _get(e, form, XMM0, d.rs1)
    _get(e, form, XMM1, d.rs2)
    if kind == "feq":
        e.put(sse.compare(_prefix(form), XMM0, XMM1, True))
        e.put(x86.setcc(Cond.E, RAX), x86.setcc(Cond.NP, RCX), x86.alu(Alu.AND, RAX, RCX, False))
    else:  # the other way round, for unordered is `below`
        e.put(sse.compare(_prefix(form), XMM1, XMM0, False))
        e.put(x86.setcc(Cond.A if kind == "flt" else Cond.AE, RAX))
    if d.rd:
        e.put(x86.movzx8(RAX, RAX))
        e.commit(d.rd, RAX)


# --- signs and bits --------------------------------------------------------------------------------------------------
@_emits("fsgnj.s", "fsgnj.d", "fsgnjn.s", "fsgnjn.d", "fsgnjx.s", "fsgnjx.d")
def _inject_sign(e: Emitter, d: Decoded) -> None:
    form, name = _form(d), d.name.partition(".")[0]
    wide, sign = form is DOUBLE, form.bits - 1
    _get_bits(e, form, RAX, d.rs1)
    if d.rs1 == d.rs2:  # fmv, fneg, fabs
        if name == "fsgnjn":
            e.put(x86.bit_complement(RAX, sign, wide))
        elif name == "fsgnjx":
            e.put(x86.bit_reset(RAX, sign, wide))
    else:
        _get_bits(e, form, RCX, d.rs2)
        if name == "fsgnjn":
            e.put(x86.unary(Unary.NOT, RCX, wide))
        e.put(x86.shift_imm(Shift.SHR, RCX, sign, wide), x86.shift_imm(Shift.SHL, RCX, sign, wide))
        if name == "fsgnjx":
            e.put(x86.alu(Alu.XOR, RAX, RCX, wide))
        else:
            e.put(x86.bit_reset(RAX, sign, wide), x86.alu(Alu.OR, RAX, RCX, wide))
    _put_bits(e, form, d.rd, RAX)


@_emits("fmv.x.w", "fmv.x.d")
def _move_out(e: Emitter, d: Decoded) -> None:
    if d.rd:
        own = HOST.get(d.rd)
        to = own if own is not None else RAX
        opcode = b"\x8b" if d.name == "fmv.x.d" else b"\x63"  # MOV, MOVSXD
        e.put(x86.memory(opcode, to, STATE, floating_slot(d.rs1)))
        e.commit(d.rd, to)


@_emits("fmv.w.x", "fmv.d.x")
def _move_in(e: Emitter, d: Decoded) -> None:
    _put_bits(e, SINGLE if d.name == "fmv.w.x" else DOUBLE, d.rd, e.source(d.rs1, RAX))


# --- conversions -----------------------------------------------------------------------------------------------------
@_emits("fcvt.s.d", "fcvt.d.s")
def _convert(e: Emitter, d: Decoded) -> None:
    form, to = (DOUBLE, SINGLE) if d.name == "fcvt.s.d" else (SINGLE, DOUBLE)
    if not _rounds(e, d):
        _by_python(e, d)
        return
    _get(e, form, XMM0, d.rs1)
    _rounded(e, d, sse.operate(_prefix(form), Sse.CVT, XMM0, XMM0))
    _canonical(e, to)
    _put(e, to, d.rd)


@_emits(*(f"fcvt.{kind}.{letter}" for kind in ("w", "wu", "l", "lu") for letter in _FORMS))
def _to_integer(e: Emitter, d: Decoded) -> None:
    """What the integer cannot hold goes to Python, before anything has set a flag that would be wrong (11.7)."""
    form, kind = _form(d), d.name.split(".")[1]
    wide, signed, truncates = kind[0] == "l", len(kind) == 1, d.rm == RTZ
    if not (truncates or _rounds(e, d)):
        _by_python(e, d)
        return
    _get(e, form, XMM0, d.rs1)
    if not signed:  # below the bound also when rounded up; not negative, infinite or no number
        bound = form.bias + (63 if wide else 32 if truncates else 31)
        e.put(sse.to_general(RAX, XMM0, form is DOUBLE), x86.shift_imm(Shift.SHR, RAX, form.fraction, form is DOUBLE))
        e.put(x86.alu_imm(Alu.CMP, RAX, bound, False))
        site = e.call(x86.jcc(Cond.AE), d)
    convert = sse.to_integer(_prefix(form), RAX, XMM0, wide or not signed, truncates)
    if truncates:
        e.put(convert)
    else:
        _rounded(e, d, convert)
    if signed:  # the lowest number there is stands for: not to be held
        e.put(x86.alu_imm(Alu.CMP, RAX, 1, wide))
        site = e.call(x86.jcc(Cond.O), d)
    if d.rd:
        if not wide:
            e.put(x86.movsxd(RAX, RAX))
        e.commit(d.rd, RAX)
    e.resume(site)


@_emits(*(f"fcvt.{letter}.{kind}" for kind in ("w", "wu", "l", "lu") for letter in _FORMS))
def _from_integer(e: Emitter, d: Decoded) -> None:
    _, to, kind = d.name.split(".")
    form = _FORMS[to]
    wide, signed = kind[0] == "l", len(kind) == 1
    if not _rounds(e, d):
        _by_python(e, d)
        return
    e.move(RAX, d.rs1, wide)
    site = None
    if wide and not signed:
        e.put(x86.compare_zero(RAX, RAX))
        site = e.call(x86.jcc(Cond.S), d)
    convert = sse.from_integer(_prefix(form), XMM0, RAX, wide or not signed)
    e.put(sse.clear(XMM0))
    if form is DOUBLE and not wide:  # exact
        e.put(convert)
    else:
        _rounded(e, d, convert)
    _put(e, form, d.rd)
    if site is not None:
        e.resume(site)


@_emits("fclass.s", "fclass.d")
def _classify(e: Emitter, d: Decoded) -> None:
    _by_python(e, d)
