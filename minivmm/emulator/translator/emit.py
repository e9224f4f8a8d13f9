"""What each RISC-V instruction becomes in x86-64, one function each, by the mnemonics of emulator.instructions."""

from __future__ import annotations

from collections.abc import Callable

from minivmm.emulator.decoder import Decoded
from minivmm.emulator.translator import x86
from minivmm.emulator.translator.emitter import RAX, RCX, RDX, Emitter
from minivmm.emulator.translator.registers import HOST, STATE, slot
from minivmm.emulator.translator.sites import Kind
from minivmm.emulator.translator.x86 import Alu, Cond, Reg, Shift, Unary

_M64 = (1 << 64) - 1

Emit = Callable[["Emitter", Decoded], None]
Chained = Callable[[int], bool]
EMIT: dict[str, Emit] = {}


def emits(*names: str) -> Callable[[Emit], Emit]:
    """Registers the function for these instructions."""

    def register(function: Emit) -> Emit:
        EMIT.update(dict.fromkeys(names, function))
        return function

    return register


MAX_READY = 1 << 14  # instructions
_READY: dict[int, bytes] = {}


def emits_alike(*names: str) -> Callable[[Emit], Emit]:
    """As `emits`, where an instruction's code depends on nothing but its own bits and is never left: made once."""

    def register(function: Emit) -> Emit:
        def emit(e: Emitter, d: Decoded) -> None:
            code = _READY.get(d.raw)
            if code is not None:
                e.code += code
                return
            start = len(e.code)
            function(e, d)
            if len(_READY) >= MAX_READY:
                _READY.clear()
            _READY[d.raw] = bytes(e.code[start:])

        return emits(*names)(emit)

    return register


_ALU = {"add": Alu.ADD, "sub": Alu.SUB, "and": Alu.AND, "or": Alu.OR, "xor": Alu.XOR}
_ALU_IMM = {"andi": Alu.AND, "ori": Alu.OR, "xori": Alu.XOR}
_NEUTRAL = (Alu.ADD, Alu.OR, Alu.XOR)  # with 0 they leave the other operand as it is
_WORD = {"addw": Alu.ADD, "subw": Alu.SUB}
_SHIFT = {"sl": Shift.SHL, "sr": Shift.SHR}


@emits("fence")
def _nothing(_e: Emitter, _d: Decoded) -> None:
    """One hart, and devices that see memory as it is."""


@emits("lui", "auipc")
def _upper(e: Emitter, d: Decoded) -> None:
    if d.rd:
        _constant(e, d.rd, d.imm + (e.pc if d.name == "auipc" else 0))


def _constant(e: Emitter, rd: int, value: int) -> None:
    value &= _M64
    host = HOST.get(rd)
    if host is not None:
        e.put(x86.mov_imm(host, value))
    elif value < 1 << 31 or value >= (1 << 64) - (1 << 31):
        e.put(x86.mov_store_imm32(STATE, slot(rd), value, True))
    else:
        e.put(x86.mov_imm(RAX, value))
        e.commit(rd, RAX)


@emits_alike("addi")
def _addi(e: Emitter, d: Decoded) -> None:
    if not d.rd:
        return
    if not d.rs1:
        _constant(e, d.rd, d.imm)
        return
    own, base = HOST.get(d.rd), HOST.get(d.rs1)
    if d.rd == d.rs1:
        if own is not None:
            e.put(x86.alu_imm(Alu.ADD, own, d.imm))
        else:
            e.put(x86.alu_memory_imm(Alu.ADD, STATE, slot(d.rd), d.imm))
        return
    to = own if own is not None else RAX
    if base is None:
        e.move(to, d.rs1)
        if d.imm:
            e.put(x86.alu_imm(Alu.ADD, to, d.imm))
    elif d.imm:
        e.put(x86.lea(to, base, d.imm))
    elif own is None:
        to = base
    else:
        e.put(x86.mov(to, base))
    e.commit(d.rd, to)


@emits_alike(*_ALU_IMM)
def _alu_imm(e: Emitter, d: Decoded) -> None:
    if not d.rd:
        return
    own = HOST.get(d.rd)
    if own is None and d.rd == d.rs1:
        e.put(x86.alu_memory_imm(_ALU_IMM[d.name], STATE, slot(d.rd), d.imm))
        return
    to = own if own is not None else RAX
    if d.name == "andi" and d.imm == 255 and (base := HOST.get(d.rs1)) is not None:
        e.put(x86.movzx8(to, base))
        e.commit(d.rd, to)
        return
    if d.rd != d.rs1:
        e.move(to, d.rs1)
    if d.name == "xori" and d.imm == -1:
        e.put(x86.unary(Unary.NOT, to))
    else:
        e.put(x86.alu_imm(_ALU_IMM[d.name], to, d.imm))
    e.commit(d.rd, to)


@emits_alike(*_ALU)
def _binary(e: Emitter, d: Decoded) -> None:
    if not d.rd:
        return
    operation, own = _ALU[d.name], HOST.get(d.rd)
    left, right = HOST.get(d.rs1), HOST.get(d.rs2)
    if not d.rs1 and operation in _NEUTRAL:  # mv, of which compressed code is full
        e.copy(d.rd, d.rs2)
    elif own is None:
        if d.rd == d.rs1 and right is not None:
            e.put(x86.memory(bytes((operation << 3 | 1,)), right, STATE, slot(d.rd)))
            return
        e.move(RAX, d.rs1)
        e.alu(operation, RAX, d.rs2)
        e.commit(d.rd, RAX)
    elif d.rd == d.rs1:
        e.alu(operation, own, d.rs2)
    elif d.rd == d.rs2:
        if operation is not Alu.SUB:
            e.alu(operation, own, d.rs1)
        elif not d.rs1:
            e.put(x86.unary(Unary.NEG, own))
        else:
            e.move(RAX, d.rs1)
            e.put(x86.alu(operation, RAX, own), x86.mov(own, RAX))
    elif operation is Alu.ADD and left is not None and right is not None:
        e.put(x86.lea_indexed(own, left, right))
    else:
        e.move(own, d.rs1)
        if d.rs2 or operation is Alu.AND:
            e.alu(operation, own, d.rs2)


@emits_alike("addiw")
def _addiw(e: Emitter, d: Decoded) -> None:
    if not d.rd:
        return
    own, base = HOST.get(d.rd), HOST.get(d.rs1)
    to = own if own is not None else RAX
    if d.imm == 0 and d.rs1:
        e.put(x86.movsxd(to, base) if base is not None else x86.memory(b"\x63", to, STATE, slot(d.rs1)))
    else:
        if base is not None:
            e.put(x86.lea(RAX, base, d.imm, False))
        else:
            e.move(RAX, d.rs1, False)
            e.put(x86.alu_imm(Alu.ADD, RAX, d.imm, False))
        e.put(x86.movsxd(to, RAX))
    e.commit(d.rd, to)


def _deliver_word(e: Emitter, rd: int, host: Reg) -> None:
    """x[rd] becomes the low half of a host register, sign-extended."""
    own = HOST.get(rd)
    to = own if own is not None else RAX
    e.put(x86.movsxd(to, host))
    e.commit(rd, to)


@emits_alike(*_WORD)
def _word(e: Emitter, d: Decoded) -> None:
    if not d.rd:
        return
    own = HOST.get(d.rd)
    if own is not None and d.rd == d.rs1:
        e.alu(_WORD[d.name], own, d.rs2, False)
        e.put(x86.movsxd(own, own))
        return
    e.move(RAX, d.rs1, False)
    e.alu(_WORD[d.name], RAX, d.rs2, False)
    _deliver_word(e, d.rd, RAX)


def _shift_of(name: str) -> Shift:
    return Shift.SAR if name.startswith("sra") else _SHIFT[name[:2]]


@emits_alike("slli", "srli", "srai")
def _shift_imm(e: Emitter, d: Decoded) -> None:
    if not d.rd:
        return
    own = HOST.get(d.rd)
    to = own if own is not None else RAX
    if d.rd != d.rs1 or own is None:
        e.move(to, d.rs1)
    if d.imm:
        e.put(x86.shift_imm(_shift_of(d.name), to, d.imm))
    e.commit(d.rd, to)


@emits_alike("slliw", "srliw", "sraiw")
def _shift_imm_word(e: Emitter, d: Decoded) -> None:
    if not d.rd:
        return
    own = HOST.get(d.rd)
    to = own if own is not None else RAX
    if d.rd != d.rs1 or own is None:
        e.move(to, d.rs1, False)
    if d.imm:
        e.put(x86.shift_imm(_shift_of(d.name), to, d.imm, False))
    if d.imm and d.name == "srliw":  # not negative, and 32 bits clear the upper half
        e.commit(d.rd, to)
    else:
        _deliver_word(e, d.rd, to)


@emits_alike("sll", "srl", "sra", "sllw", "srlw", "sraw")
def _shift(e: Emitter, d: Decoded) -> None:
    if not d.rd:
        return
    wide = not d.name.endswith("w")
    e.move(RCX, d.rs2, False)
    e.move(RAX, d.rs1, wide)
    e.put(x86.shift_cl(_shift_of(d.name), RAX, wide))  # modulo 64 or 32, as in RISC-V
    if wide:
        e.commit(d.rd, RAX)
    else:
        _deliver_word(e, d.rd, RAX)


@emits_alike("slt", "sltu", "slti", "sltiu")
def _set(e: Emitter, d: Decoded) -> None:
    if not d.rd:
        return
    condition = Cond.B if "u" in d.name else Cond.L
    if d.name in ("slti", "sltiu"):
        e.put(x86.alu_imm(Alu.CMP, e.source(d.rs1, RAX), d.imm))
    else:
        e.alu(Alu.CMP, e.source(d.rs1, RAX), d.rs2)
    e.put(x86.setcc(condition, RCX), x86.movzx8(RAX, RCX))
    e.commit(d.rd, RAX)


@emits_alike("mul", "mulw")
def _multiply(e: Emitter, d: Decoded) -> None:
    if not d.rd:
        return
    wide, own = d.name == "mul", HOST.get(d.rd)
    if wide and own is not None and d.rd in (d.rs1, d.rs2):
        factor = d.rs2 if d.rd == d.rs1 else d.rs1
        e.put(x86.imul(own, e.source(factor, RAX)))
        return
    e.move(RAX, d.rs1, wide)
    other = HOST.get(d.rs2)
    if other is not None:
        e.put(x86.imul(RAX, other, wide))
    elif d.rs2:
        e.put(x86.imul_load(RAX, STATE, slot(d.rs2), wide))
    else:
        e.put(x86.mov_imm(RAX, 0))
    if wide:
        e.commit(d.rd, RAX)
    else:
        _deliver_word(e, d.rd, RAX)


@emits_alike("mulh", "mulhu", "mulhsu")
def _multiply_high(e: Emitter, d: Decoded) -> None:
    if not d.rd:
        return
    e.move(RAX, d.rs1)
    e.move(RCX, d.rs2)
    e.put(x86.unary(Unary.IMUL if d.name == "mulh" else Unary.MUL, RCX))
    if d.name == "mulhsu":  # rs1 as unsigned is rs1 + 2^64 where it is negative: so much too much, by rs2
        e.move(RAX, d.rs1)
        e.put(x86.shift_imm(Shift.SAR, RAX, 63), x86.alu(Alu.AND, RAX, RCX), x86.alu(Alu.SUB, RDX, RAX))
    e.commit(d.rd, RDX)


@emits_alike("div", "divu", "rem", "remu", "divw", "divuw", "remw", "remuw")
def _divide(e: Emitter, d: Decoded) -> None:
    """7.2, table 7.1: division by zero gives all ones, and the dividend as the remainder; overflow wraps."""
    if not d.rd:
        return
    wide, signed, quotient = not d.name.endswith("w"), "u" not in d.name, d.name.startswith("div")
    e.move(RAX, d.rs1, wide)
    e.move(RCX, d.rs2, wide)
    e.put(x86.compare_zero(RCX, RCX, wide))
    zero = e.jump(x86.jcc(Cond.E))
    ends = []
    if signed:  # by -1: IDIV would trap on overflow
        e.put(x86.alu_imm(Alu.CMP, RCX, -1, wide))
        ordinary = e.jump(x86.jcc(Cond.NE))
        e.put(x86.unary(Unary.NEG, RAX, wide), x86.mov_imm(RDX, 0))
        ends.append(e.jump(x86.JMP))
        e.land(ordinary)
        e.put(x86.cqo(wide), x86.unary(Unary.IDIV, RCX, wide))
    else:
        e.put(x86.mov_imm(RDX, 0), x86.unary(Unary.DIV, RCX, wide))
    ends.append(e.jump(x86.JMP))
    e.land(zero)
    e.put(x86.mov(RDX, RAX), x86.mov_imm(RAX, -1))
    for end in ends:
        e.land(end)
    if wide:
        e.commit(d.rd, RAX if quotient else RDX)
    else:
        _deliver_word(e, d.rd, RAX if quotient else RDX)


_LOAD_SIZE = {"lb": 1, "lh": 2, "lw": 4, "ld": 8, "lbu": 1, "lhu": 2, "lwu": 4}
_STORE_SIZE = {"sb": 1, "sh": 2, "sw": 4, "sd": 8}


@emits(*_LOAD_SIZE)
def _load(e: Emitter, d: Decoded) -> None:
    site, base, displacement = e.operand(e.tables.read_at, d, _LOAD_SIZE[d.name], Kind.LOAD)
    site.name, site.register = d.name, d.rd
    own = HOST.get(d.rd)
    to = own if own is not None else RAX
    e.put(x86.load_indexed(d.name, to, base, RCX, displacement))
    if d.rd:
        e.commit(d.rd, to)
    e.resume(site)


@emits(*_STORE_SIZE)
def _store(e: Emitter, d: Decoded) -> None:
    site, base, displacement = e.operand(e.tables.write_at, d, _STORE_SIZE[d.name], Kind.STORE)
    site.name, site.register = d.name, d.rs2
    e.put(x86.store_indexed(_STORE_SIZE[d.name], base, RCX, displacement, e.source(d.rs2, RDX)))
    e.resume(site)


_CONDITION = {"beq": Cond.E, "bne": Cond.NE, "blt": Cond.L, "bge": Cond.GE, "bltu": Cond.B, "bgeu": Cond.AE}


def end_branch(e: Emitter, d: Decoded, chained: Chained) -> None:
    """A conditional branch ends the block."""
    taken, following = e.pc + d.imm & _M64, e.pc + d.size & _M64
    e.compare(d.rs1, d.rs2)
    e.go(x86.jcc(_CONDITION[d.name]), taken, chained(taken))
    e.go(x86.JMP, following, chained(following))


def end_turn(e: Emitter, d: Decoded) -> None:
    """A conditional branch back to the block's start, where the next turn follows."""
    e.compare(d.rs1, d.rs2)
    e.go_early(x86.jcc(Cond(_CONDITION[d.name] ^ 1)), e.pc + d.size & _M64)


def end_jump(e: Emitter, d: Decoded, chained: Chained) -> None:
    """JAL ends the block."""
    if d.rd:
        _constant(e, d.rd, e.pc + d.size)
    target = e.pc + d.imm & _M64
    e.go(x86.JMP, target, chained(target))


def end_indirect(e: Emitter, d: Decoded, _chained: Chained) -> None:
    """JALR ends the block."""
    base = HOST.get(d.rs1)
    if base is not None:
        e.put(x86.lea(RAX, base, d.imm))
    else:
        e.move(RAX, d.rs1)
        if d.imm:
            e.put(x86.alu_imm(Alu.ADD, RAX, d.imm))
    e.put(x86.alu_imm(Alu.AND, RAX, -2))
    if d.rd:
        host = HOST.get(d.rd)
        value = e.pc + d.size & _M64
        if host is not None or value < 1 << 31 or value >= (1 << 64) - (1 << 31):
            _constant(e, d.rd, value)
        else:
            e.put(x86.mov_imm(RCX, value), x86.mov_store(STATE, slot(d.rd), RCX))
    e.dispatch()


ENDS: dict[str, Callable[[Emitter, Decoded, Chained], None]] = {
    **dict.fromkeys(_CONDITION, end_branch),
    "jal": end_jump,
    "jalr": end_indirect,
}
