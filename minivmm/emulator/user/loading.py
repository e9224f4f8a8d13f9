"""A program into memory, as Linux does it (fs/binfmt_elf.c): segments, stack, arguments, auxiliary vector.

Nothing in the file is believed: an address that cannot be is refused, or is one that the program will not get far with.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

from minivmm.boot.elf import ET_DYN, PT_INTERP, PT_LOAD, Elf
from minivmm.emulator.user.abi import Aux, Prot
from minivmm.emulator.user.memory import STACK_TOP, NoMemory, ProcessMemory
from minivmm.errors import ImageError
from minivmm.memory import PAGE_SIZE

STACK_SIZE = 8 << 20  # bytes
PIE_BASE = 0x20_0000_0000
ARGUMENTS_MAX = 128 << 10  # bytes of arguments and environment
IDENTITY = 1000  # user and group
CLOCK_TICKS = 100  # a second
EXTENSIONS = "IMAFDC"
RANDOM_SIZE = 16  # bytes: AT_RANDOM
_M64 = (1 << 64) - 1
_SEGMENT_RIGHTS = ((4, Prot.READ), (2, Prot.WRITE), (1, Prot.EXEC))  # p_flags: PF_R, PF_W, PF_X


class Start(NamedTuple):
    """Where a program starts."""

    pc: int
    sp: int


def load(
    memory: ProcessMemory, elf: Elf, name: str, arguments: Sequence[str], environment: Sequence[str], random: bytes
) -> Start:
    """name: what the program is called by; arguments: argv; random: RANDOM_SIZE bytes. Raises ImageError."""
    if not elf.is_64:
        raise ImageError(elf.path, "is for 32-bit RISC-V: only 64-bit programs are run")
    if any(segment.type == PT_INTERP for segment in elf.segments):
        raise ImageError(elf.path, "is dynamically linked", remedy="link it with -static")
    bias = PIE_BASE if elf.header.type == ET_DYN else 0
    try:
        _load_segments(memory, elf, bias)
        memory.map(STACK_TOP - STACK_SIZE, STACK_SIZE, Prot.READ | Prot.WRITE)
        sp = _push_start(memory, elf, bias, [*arguments, *environment, name], len(arguments), random)
    except NoMemory:
        raise ImageError(elf.path, "does not fit into memory", remedy="--mem 2G") from None
    return Start(elf.header.entry + bias & _M64, sp)


def _load_segments(memory: ProcessMemory, elf: Elf, bias: int) -> None:
    end = 0
    for segment in elf.loads:
        start = segment.vaddr + bias
        if start + segment.memsz > STACK_TOP - STACK_SIZE:
            raise ImageError(elf.path, f"a segment at {start:#x} does not fit the address space")
        low = start & ~(PAGE_SIZE - 1)
        high = start + segment.memsz + PAGE_SIZE - 1 & ~(PAGE_SIZE - 1)
        memory.map(low, high - low, Prot(sum(right for bit, right in _SEGMENT_RIGHTS if segment.flags & bit)))
        memory.force(start, elf.segment_bytes(segment))
        end = max(end, high)
    if not end:
        raise ImageError(elf.path, "has nothing to load")
    memory.brk_start = memory.brk_end = end


def _push_start(memory: ProcessMemory, elf: Elf, bias: int, texts: list[str], count: int, random: bytes) -> int:
    """argc, argv, envp and the auxiliary vector at the top of the stack; returns the stack pointer.

    texts: `count` arguments, the environment, and the name.
    """
    at = STACK_TOP
    addresses: list[int] = []
    for text in texts:
        data = os.fsencode(text) + b"\0"
        at -= len(data)
        if STACK_TOP - at > ARGUMENTS_MAX:
            raise ImageError(elf.path, "its arguments are too long")
        memory.force(at, data)
        addresses.append(at)
    at -= len(random)
    memory.force(at, random)
    first = next(segment for segment in elf.segments if segment.type == PT_LOAD)
    vector = {
        Aux.PHDR: first.vaddr - first.offset + elf.header.phoff + bias,
        Aux.PHENT: elf.header.phentsize,
        Aux.PHNUM: elf.header.phnum,
        Aux.PAGESZ: PAGE_SIZE,
        Aux.BASE: 0,
        Aux.FLAGS: 0,
        Aux.ENTRY: elf.header.entry + bias,
        Aux.UID: IDENTITY,
        Aux.EUID: IDENTITY,
        Aux.GID: IDENTITY,
        Aux.EGID: IDENTITY,
        Aux.HWCAP: sum(1 << ord(letter) - ord("A") for letter in EXTENSIONS),
        Aux.CLKTCK: CLOCK_TICKS,
        Aux.SECURE: 0,
        Aux.RANDOM: at,
        Aux.EXECFN: addresses[-1],
        Aux.NULL: 0,
    }
    words = [count, *addresses[:count], 0, *addresses[count:-1], 0]
    words += [word & _M64 for pair in vector.items() for word in pair]
    at = (at & ~15) - 8 * len(words) & ~15
    memory.force(at, struct.pack(f"<{len(words)}Q", *words))
    return at
