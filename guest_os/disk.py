"""The disk of the blk-seq and blk-rand workloads: every word tells where it is, so a wrong read cannot pass.

The 8-byte little-endian word at byte offset `o` holds `o * 0x9E3779B97F4A7C15 mod 2^64 XOR 0x76746b`
(workloads/blk.c computes the same).
"""

from __future__ import annotations

import sys
from array import array
from itertools import islice
from pathlib import Path

WORD = 8
_MULTIPLIER = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, Knuth's multiplicative hash
_MARK = 0x76746B  # "vtk"
_MASK = (1 << 64) - 1
_CHUNK = 1 << 20


def disk_pattern(offset: int) -> int:
    """The word at byte `offset`, a multiple of 8."""
    return (offset * _MULTIPLIER & _MASK) ^ _MARK


def write_disk(path: str | Path, size: int) -> None:
    """Writes a patterned disk of `size` bytes, every block of it allocated. Raises ValueError when `size` is not a
    positive multiple of 512 (a sector), OSError when the file cannot be written."""
    if size <= 0 or size % 512:
        raise ValueError(f"a disk of {size} bytes: the size must be a positive multiple of 512")
    with open(path, "wb") as disk:
        for start in range(0, size, _CHUNK):
            words = array("Q", _pattern_words(start, min(_CHUNK, size - start) // WORD))
            if sys.byteorder == "big":
                words.byteswap()
            disk.write(words)


def _pattern_words(start: int, count: int) -> list[int]:
    """`count` words from byte offset `start`. About 0.1 us a word."""
    step = WORD * _MULTIPLIER
    first = start * _MULTIPLIER
    return [(value & _MASK) ^ _MARK for value in islice(range(first, first + count * step, step), count)]
