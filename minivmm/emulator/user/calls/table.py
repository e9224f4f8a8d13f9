"""The table that system calls enter themselves into, and what they have in common."""

from __future__ import annotations

import os
from collections.abc import Callable

from minivmm.emulator.user.abi import SystemCall

Call = Callable[..., int]
CALLS: dict[int, tuple[Call, int]] = {}
"""Function and number of arguments, by number."""


def system_call(*numbers: SystemCall) -> Callable[[Call], Call]:
    """Enters the function under these numbers."""

    def enter(function: Call) -> Call:
        count = function.__code__.co_argcount - 1
        CALLS.update(dict.fromkeys(map(int, numbers), (function, count)))
        return function

    return enter


def signed(value: int) -> int:
    """An int argument: the low 32 bits, signed."""
    return (value & 0xFFFF_FFFF ^ 0x8000_0000) - 0x8000_0000


def failure(number: int) -> OSError:
    """What the program gets as -number."""
    return OSError(number, os.strerror(number))
