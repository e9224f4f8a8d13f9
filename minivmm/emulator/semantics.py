"""What each instruction does, one line each, and how a line becomes something to call.

The lines are Python. In them `x` are the registers (unsigned; x[rd] for rd = 0 is a place nobody reads), `rd rs1 rs2
imm` the operands, `pc` the instruction's address and `following` the next one's. M, W, SIGN, SIGN_W stand for 2^64 - 1,
2^32 - 1, 2^63 and 2^31. `(v ^ SIGN) - SIGN` is v as a signed number; comparing v ^ SIGN compares signed numbers.

A line is compiled once, as the body of a function inside a factory; executing an instruction calls the function that
the factory made for its operands. That is all the preparation there is: one call an instruction, its operands in the
function's cells.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from textwrap import indent

# x[rd] becomes this, modulo 2^64.
VALUES = {
    "lui": "imm",
    "auipc": "pc + imm",
    "addi": "x[rs1] + imm",
    "slti": "(x[rs1] ^ SIGN) - SIGN < imm",
    "sltiu": "x[rs1] < (imm & M)",
    "xori": "x[rs1] ^ imm",
    "ori": "x[rs1] | imm",
    "slli": "x[rs1] << imm",
    "srai": "(x[rs1] ^ SIGN) - SIGN >> imm",
    "add": "x[rs1] + x[rs2]",
    "sub": "x[rs1] - x[rs2]",
    "sll": "x[rs1] << (x[rs2] & 63)",
    "slt": "(x[rs1] ^ SIGN) < (x[rs2] ^ SIGN)",
    "sltu": "x[rs1] < x[rs2]",
    "sra": "(x[rs1] ^ SIGN) - SIGN >> (x[rs2] & 63)",
    "mul": "x[rs1] * x[rs2]",
    "mulh": "((x[rs1] ^ SIGN) - SIGN) * ((x[rs2] ^ SIGN) - SIGN) >> 64",
    "mulhsu": "((x[rs1] ^ SIGN) - SIGN) * x[rs2] >> 64",
    "div": "quotient((x[rs1] ^ SIGN) - SIGN, (x[rs2] ^ SIGN) - SIGN)",
    "divu": "quotient(x[rs1], x[rs2])",
    "rem": "remainder((x[rs1] ^ SIGN) - SIGN, (x[rs2] ^ SIGN) - SIGN)",
    "remu": "remainder(x[rs1], x[rs2])",
}

# x[rd] becomes this, which is in range as it is.
UNSIGNED_VALUES = {
    "andi": "x[rs1] & imm",
    "srli": "x[rs1] >> imm",
    "xor": "x[rs1] ^ x[rs2]",
    "srl": "x[rs1] >> (x[rs2] & 63)",
    "or": "x[rs1] | x[rs2]",
    "and": "x[rs1] & x[rs2]",
    "mulhu": "x[rs1] * x[rs2] >> 64",
}

# x[rd] becomes this modulo 2^32, sign-extended (5.2).
WORD_VALUES = {
    "addiw": "x[rs1] + imm",
    "slliw": "x[rs1] << imm",
    "srliw": "(x[rs1] & W) >> imm",
    "sraiw": "((x[rs1] & W) ^ SIGN_W) - SIGN_W >> imm",
    "addw": "x[rs1] + x[rs2]",
    "subw": "x[rs1] - x[rs2]",
    "sllw": "x[rs1] << (x[rs2] & 31)",
    "srlw": "(x[rs1] & W) >> (x[rs2] & 31)",
    "sraw": "((x[rs1] & W) ^ SIGN_W) - SIGN_W >> (x[rs2] & 31)",
    "mulw": "x[rs1] * x[rs2]",
    "divw": "quotient(((x[rs1] & W) ^ SIGN_W) - SIGN_W, ((x[rs2] & W) ^ SIGN_W) - SIGN_W)",
    "divuw": "quotient(x[rs1] & W, x[rs2] & W)",
    "remw": "remainder(((x[rs1] & W) ^ SIGN_W) - SIGN_W, ((x[rs2] & W) ^ SIGN_W) - SIGN_W)",
    "remuw": "remainder(x[rs1] & W, x[rs2] & W)",
}

# The branch is taken when this holds.
CONDITIONS = {
    "beq": "x[rs1] == x[rs2]",
    "bne": "x[rs1] != x[rs2]",
    "blt": "(x[rs1] ^ SIGN) < (x[rs2] ^ SIGN)",
    "bge": "(x[rs1] ^ SIGN) >= (x[rs2] ^ SIGN)",
    "bltu": "x[rs1] < x[rs2]",
    "bgeu": "x[rs1] >= x[rs2]",
}

# RAM as an array of such elements, their size, and whether they are to be taken modulo 2^64 (signed ones).
LOADS = {
    "lb": ("signed8", 1, True),
    "lh": ("signed16", 2, True),
    "lw": ("signed32", 4, True),
    "ld": ("ram64", 8, False),
    "lbu": ("ram8", 1, False),
    "lhu": ("ram16", 2, False),
    "lwu": ("ram32", 4, False),
}
STORES = {"sb": ("ram8", 1), "sh": ("ram16", 2), "sw": ("ram32", 4), "sd": ("ram64", 8)}

# What an AMO stores (8.4), from the value in memory and that of rs2: unsigned, signed where it matters.
ATOMICS: dict[str, Callable[[int, int], int]] = {
    "amoswap": lambda _, operand: operand,
    "amoadd": lambda old, operand: old + operand,
    "amoxor": lambda old, operand: old ^ operand,
    "amoand": lambda old, operand: old & operand,
    "amoor": lambda old, operand: old | operand,
    "amomin": min,
    "amomax": max,
    "amominu": min,
    "amomaxu": max,
}
SIGNED_ATOMICS = ("amomin", "amomax")

STATEMENTS = {
    **{name: f"x[rd] = ({value}) & M" for name, value in VALUES.items()},
    **{name: f"x[rd] = {value}" for name, value in UNSIGNED_VALUES.items()},
    **{name: f"x[rd] = ((({value}) & W) ^ SIGN_W) - SIGN_W & M" for name, value in WORD_VALUES.items()},
    **{name: f"return target if {condition} else following" for name, condition in CONDITIONS.items()},
    "jal": "x[rd] = following\nreturn target",
    "jalr": "to = x[rs1] + imm & M & ~1\nx[rd] = following\nreturn to",
    "fence": "pass",  # one hart, and devices that see memory as it is: nothing is ever out of order
}
for _name, (_view, _size, _signed) in LOADS.items():
    _element = f"{_view}[at >> {_size.bit_length() - 1}]" if _size > 1 else f"{_view}[at]"
    _slow = f"load(regime, address, {_size})"
    if _signed:
        _element += " & M"
        _slow = f"({_slow} ^ {1 << 8 * _size - 1}) - {1 << 8 * _size - 1} & M"
    _check = f"    if at & {_size - 1}:\n        raise KeyError\n" if _size > 1 else ""
    STATEMENTS[_name] = (
        "address = x[rs1] + imm & M\n"
        f"try:\n    at = read[address >> 12] + address\n{_check}    x[rd] = {_element}\n"
        f"except KeyError:\n    x[rd] = {_slow}"
    )
for _name, (_view, _size) in STORES.items():
    _element = f"{_view}[at >> {_size.bit_length() - 1}]" if _size > 1 else f"{_view}[at]"
    _value = "x[rs2]" if _size == 8 else f"x[rs2] & {(1 << 8 * _size) - 1}"
    _check = f"    if at & {_size - 1}:\n        raise KeyError\n" if _size > 1 else ""
    STATEMENTS[_name] = (
        "address = x[rs1] + imm & M\n"
        f"try:\n    at = write[address >> 12] + address\n{_check}    {_element} = {_value}\n"
        f"except KeyError:\n    store(regime, address, {_size}, x[rs2])"
    )

ENDS_BLOCK = frozenset({*CONDITIONS, "jal", "jalr"})
"""Whose function returns where to go on; that of the others returns nothing."""

Operation = Callable[[], "int | None"]
Factory = Callable[..., Operation]

CELLS = (
    "rd, rs1, rs2, imm, pc, following, target, x, regime, read, write, load, store, "
    "ram8, ram16, ram32, ram64, signed8, signed16, signed32, quotient, remainder"
)
"""What a line may name: the factory's parameters."""

_CONSTANTS = {"M": (1 << 64) - 1, "W": (1 << 32) - 1, "SIGN": 1 << 63, "SIGN_W": 1 << 31}
_CONSTANT = re.compile(r"\b(M|W|SIGN|SIGN_W)\b")


@cache
def factory(name: str) -> Factory:
    """Makes, from the values of CELLS, the function that executes one instruction with this mnemonic."""
    body = _CONSTANT.sub(lambda match: str(_CONSTANTS[match.group()]), STATEMENTS[name])
    function = name.replace(".", "_") + "_"  # `and` and `or` are taken
    source = f"def make({CELLS}):\n    def {function}():\n{indent(body, ' ' * 8)}\n    return {function}\n"
    scope: dict[str, Factory] = {}
    exec(compile(source, f"<semantics of {name}>", "exec"), scope)
    return scope["make"]


def quotient(dividend: int, divisor: int) -> int:
    """DIV (7.2, table 7.1): rounds towards zero; all ones for a division by zero; overflow wraps."""
    if not divisor:
        return -1
    magnitude = abs(dividend) // abs(divisor)
    return magnitude if (dividend < 0) == (divisor < 0) else -magnitude


def remainder(dividend: int, divisor: int) -> int:
    """REM (7.2): has the dividend's sign; the dividend for a division by zero."""
    if not divisor:
        return dividend
    magnitude = abs(dividend) % abs(divisor)
    return -magnitude if dividend < 0 else magnitude
