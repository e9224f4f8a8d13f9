"""Which guest registers live in host registers, everywhere in translated code: a jump between blocks moves none.

RAX, RCX and RDX are free for each instruction (multiplication, division and shifts want them), RBP points into State,
R15 is the budget. The rest of the guest's registers are memory operands. The chosen ones are what compilers use most:
the stack pointer and x8 to x15, which the compressed instructions can name.
"""

from __future__ import annotations

from minivmm.emulator.translator.state import F_REGISTERS, RBP_OFFSET
from minivmm.emulator.translator.x86 import Reg

STATE = Reg.RBP
BUDGET_REGISTER = Reg.R15

HOST: dict[int, Reg] = {
    2: Reg.RBX,
    8: Reg.R8,
    9: Reg.R9,
    10: Reg.RDI,
    11: Reg.RSI,
    12: Reg.R10,
    13: Reg.R11,
    14: Reg.R12,
    15: Reg.R13,
    16: Reg.R14,
}
"""The host register of a guest register."""

SAVED = (Reg.RBX, Reg.RBP, Reg.R12, Reg.R13, Reg.R14, Reg.R15)
"""What a function must keep (System V ABI, 3.2.1)."""


def slot(register: int) -> int:
    """The displacement from RBP of a guest register's place in State."""
    return 8 * register - RBP_OFFSET


def floating_slot(register: int) -> int:
    """The same of a floating-point register."""
    return F_REGISTERS + 8 * register - RBP_OFFSET
