"""The signal that gets a vCPU out of KVM_RUN."""

from __future__ import annotations

import ctypes
import signal
from functools import cache

KICK = signal.SIGRTMIN
"""Nothing handles it: it only has to arrive."""


@cache
def accept_kicks() -> None:
    """Gives KICK a handler that does nothing, so that it interrupts a system call instead of ending the process. Once.

    In C and not by signal.signal, which only the main thread may call and which would wake the main thread at every
    kick: the handler is libc's `abs`, which takes an int and touches nothing.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(KICK, ctypes.cast(libc.abs, ctypes.c_void_p))
