"""System calls of Linux for riscv64, one function each: enough for musl and glibc to start, and for stdio and files.

A function gets the process and as many of a0 .. a5 as it names, and returns the result; OSError becomes -errno, and a
Trap at an address of the program's -EFAULT. What is not in the table is counted and answered with ENOSYS.
"""

from __future__ import annotations

from minivmm.emulator.user.calls import attributes, files, life, mappings, metadata
from minivmm.emulator.user.calls.table import CALLS

__all__ = ["CALLS", "attributes", "files", "life", "mappings", "metadata"]
