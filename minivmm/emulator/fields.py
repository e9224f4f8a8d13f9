"""Bit fields of instructions: where the bits of an operand lie in an encoding, read and written by one declaration."""

from __future__ import annotations

from typing import NamedTuple


class Piece(NamedTuple):
    """`width` bits: in the instruction from bit `at` up, in the operand's value from bit `to` up."""

    at: int
    width: int
    to: int


class Field:
    """One operand. Immediates of the manuals come in several pieces; bits that no piece holds are 0.

    bias: added to the bits (8 for the registers x8 to x15 of the compressed formats). `bits`: the number of bits of the
    value, from bit 0 up. `mask`: the bits of the instruction that belong to this operand.
    """

    __slots__ = ("_moves", "_sign", "bias", "bits", "mask", "name", "pieces", "signed")

    def __init__(self, name: str, pieces: tuple[Piece, ...], signed: bool, bias: int) -> None:
        self.name, self.pieces, self.signed, self.bias = name, pieces, signed, bias
        self.bits = max(piece.to + piece.width for piece in pieces)
        self.mask = sum((1 << piece.width) - 1 << piece.at for piece in pieces)
        self._sign = 1 << self.bits - 1 if signed else 0
        self._moves = tuple((at, (1 << width) - 1, to) for at, width, to in pieces)

    def extract(self, word: int) -> int:
        """The operand's value in the instruction `word`."""
        value = 0
        for at, mask, to in self._moves:
            value |= (word >> at & mask) << to
        return (value ^ self._sign) - self._sign + self.bias

    def insert(self, value: int) -> int:
        """The bits of an instruction that hold `value`. Raises ValueError for one that does not fit."""
        bits = value - self.bias & (1 << self.bits) - 1
        word = 0
        for at, mask, to in self._moves:
            word |= (bits >> to & mask) << at
        if self.extract(word) != value:
            raise ValueError(f"{self.name} cannot be {value}")
        return word


def field(name: str, *pieces: tuple[int, int, int], signed: bool = False, bias: int = 0) -> Field:
    """A Field from plain (at, width, to) triples."""
    return Field(name, tuple(Piece(*piece) for piece in pieces), signed, bias)
