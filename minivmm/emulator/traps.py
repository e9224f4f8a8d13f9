"""Exceptions and interrupts by number (Privileged 1.12, table 3.6), and how they travel through the interpreter."""

from __future__ import annotations

from enum import IntEnum


class Privilege(IntEnum):
    """Privilege modes (1.2)."""

    U = 0
    S = 1
    M = 3


class Cause(IntEnum):
    """Exception codes in mcause and scause."""

    INSTRUCTION_ADDRESS_MISALIGNED = 0  # never here: with the C extension every target is aligned
    INSTRUCTION_ACCESS_FAULT = 1
    ILLEGAL_INSTRUCTION = 2
    BREAKPOINT = 3
    LOAD_ADDRESS_MISALIGNED = 4
    LOAD_ACCESS_FAULT = 5
    STORE_ADDRESS_MISALIGNED = 6
    STORE_ACCESS_FAULT = 7
    ECALL_FROM_U = 8
    ECALL_FROM_S = 9
    ECALL_FROM_M = 11
    INSTRUCTION_PAGE_FAULT = 12
    LOAD_PAGE_FAULT = 13
    STORE_PAGE_FAULT = 15


INTERRUPT = 1 << 63  # of mcause: the code is an interrupt's


class Access(IntEnum):
    """What an access is for: decides the permission it needs and the exception it ends in."""

    FETCH = 0
    LOAD = 1
    STORE = 2  # also of an AMO


PAGE_FAULT = (Cause.INSTRUCTION_PAGE_FAULT, Cause.LOAD_PAGE_FAULT, Cause.STORE_PAGE_FAULT)
MISALIGNED = (
    Cause.INSTRUCTION_ADDRESS_MISALIGNED,
    Cause.LOAD_ADDRESS_MISALIGNED,
    Cause.STORE_ADDRESS_MISALIGNED,
)
ACCESS_FAULT = (Cause.INSTRUCTION_ACCESS_FAULT, Cause.LOAD_ACCESS_FAULT, Cause.STORE_ACCESS_FAULT)


class Trap(Exception):
    """The instruction could not be executed: it has changed nothing, and the hart takes the exception."""

    def __init__(self, cause: Cause, tval: int = 0) -> None:
        super().__init__(cause, tval)
        self.cause = cause
        self.tval = tval


class CodeChanged(Exception):
    """The store that just completed overwrote decoded instructions: what follows is to be fetched anew."""
