"""Control-register, EFER and RFLAGS bits, under the SDM's names.

Plain numbers in named groups and not enumerations: the boot path combines them for every machine, and an IntFlag
costs a millisecond to define and a microsecond to combine.
"""

from __future__ import annotations


class Cr0:
    """SDM 3A 2.5."""

    PE = 1 << 0
    MP = 1 << 1
    TS = 1 << 3
    ET = 1 << 4
    NE = 1 << 5
    WP = 1 << 16
    AM = 1 << 18
    PG = 1 << 31


class Cr4:
    """SDM 3A 2.5."""

    PAE = 1 << 5
    PGE = 1 << 7
    OSFXSR = 1 << 9
    OSXMMEXCPT = 1 << 10
    OSXSAVE = 1 << 18


class Xcr0:
    """State components (SDM 1 13.1)."""

    X87 = 1 << 0
    SSE = 1 << 1
    AVX = 1 << 2
    AVX512 = 7 << 5  # opmask, the upper halves of ZMM0-15, and ZMM16-31: all of them or none


class Efer:
    """SDM 3A 2.2.1."""

    SCE = 1 << 0
    LME = 1 << 8
    LMA = 1 << 10
    NXE = 1 << 11


RFLAGS_RESERVED = 1 << 1  # always one
RFLAGS_IF = 1 << 9
