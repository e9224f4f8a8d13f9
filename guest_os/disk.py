"""The disk of the blk-seq and blk-rand workloads: every word tells where it is, so a wrong read cannot pass.

The 8-byte little-endian word at byte offset `o` holds `o * 0x9E3779B97F4A7C15 mod 2^64 XOR 0x76746b`
(workloads/blk.c computes the same).
"""

from __future__ import annotations

from pathlib import Path

_MULTIPLIER = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, Knuth's multiplicative hash
_MARK = 0x76746B  # "vtk"
_MASK = (1 << 64) - 1
_SECTOR = 512
_CHUNK = 1 << 20
_LANE = 16  # bytes: two words, so that a sum of two words has room


def disk_pattern(offset: int) -> int:
    """The word at byte `offset`, a multiple of 8."""
    return (offset * _MULTIPLIER & _MASK) ^ _MARK


def write_disk(path: str | Path, size: int) -> None:
    """Writes a patterned disk of `size` bytes, every block of it allocated; about 5 ms a MiB. Raises ValueError when
    `size` is not a positive multiple of 512 (a sector), OSError when the file cannot be written.

    A chunk is one big integer with a word in each lane, so that one addition computes all of them."""
    if size <= 0 or size % _SECTOR:
        raise ValueError(f"a disk of {size} bytes: the size must be a positive multiple of {_SECTOR}")
    lanes = _CHUNK // _LANE
    ones = _lanes([1] * lanes)
    low_halves = ones * _MASK
    marks = ones * (_MARK | _MARK << 64)
    first = _lanes([lane * _LANE * _MULTIPLIER & _MASK for lane in range(lanes)])
    with open(path, "wb") as disk:
        for start in range(0, size, _CHUNK):
            even = first + ones * (start * _MULTIPLIER & _MASK) & low_halves
            odd = even + ones * (8 * _MULTIPLIER & _MASK) & low_halves
            words = (even | odd << 64) ^ marks
            disk.write(words.to_bytes(_CHUNK, "little")[: size - start])


def _lanes(values: list[int]) -> int:
    return int.from_bytes(b"".join(value.to_bytes(_LANE, "little") for value in values), "little")
