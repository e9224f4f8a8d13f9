"""F and D (Unprivileged ISA, chapters 11 and 12) on one hart: its floating-point registers, flags and rounding mode.

The arithmetic is softfloat.py's, exact in every rounding mode and flag. A single is held in a 64-bit register with ones
above it (NaN boxing, 12.2): what is not boxed so is taken for the canonical NaN by every instruction that computes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from minivmm.emulator import softfloat
from minivmm.emulator.decoder import Decoded
from minivmm.emulator.instructions import DYNAMIC
from minivmm.emulator.physical import PAGE_SHIFT
from minivmm.emulator.softfloat import DOUBLE, NX, SINGLE, Format
from minivmm.emulator.traps import Cause, Trap

if TYPE_CHECKING:
    from minivmm.emulator.hart import Hart
    from minivmm.emulator.mmu import Regime

_M64 = (1 << 64) - 1
BOXED = 0xFFFF_FFFF << 32
"""Above a single in its register."""

Operation = Callable[[], None]
Arithmetic = Callable[..., int]

# Two or one operands, and a rounding mode.
_ROUNDED: dict[str, tuple[Arithmetic, int]] = {
    "fadd": (softfloat.add, 2),
    "fsub": (softfloat.subtract, 2),
    "fmul": (softfloat.multiply, 2),
    "fdiv": (softfloat.divide, 2),
    "fsqrt": (softfloat.square_root, 1),
}
# The same to nearest by the host, of two operands whether needed or not.
_HOSTS: dict[str, Callable[[float, float], float]] = {
    "fadd": operator.add,
    "fsub": operator.sub,
    "fmul": operator.mul,
    "fdiv": operator.truediv,
    "fsqrt": lambda value, _: math.sqrt(value),
}
# Magnitudes between which nothing overflows or underflows, as singles and as doubles.
_USUAL = {32: (2.0**-125, 2.0**127), 64: (2.0**-1021, 2.0**1023)}
# What of rs1 and rs3 changes sign before rs1 * rs2 + rs3 (11.6).
_FUSED = {"fmadd": (False, False), "fmsub": (False, True), "fnmsub": (True, False), "fnmadd": (True, True)}
_CHOICES: dict[str, Arithmetic] = {"fmin": softfloat.smallest, "fmax": partial(softfloat.smallest, largest=True)}
_COMPARISONS: dict[str, Callable[..., bool]] = {
    "feq": softfloat.equal,
    "flt": softfloat.less,
    "fle": partial(softfloat.less, or_equal=True),
}
# Bits of the integer, and whether it is signed.
_INTEGERS = {"w": (32, True), "wu": (32, False), "l": (64, True), "lu": (64, False)}
_FORMATS = {"s": SINGLE, "d": DOUBLE}


class Floating:
    """The floating-point state and instructions of one hart."""

    def __init__(self, hart: Hart) -> None:
        self._hart = hart
        self.f, self._doubles, self._singles = self._make_registers()
        self.flags = 0
        """fflags: softfloat's NX .. NV."""
        self.rounding = 0
        """frm, which may be one that there is not."""

    def _make_registers(self) -> tuple[memoryview[int], memoryview[float], memoryview[float]]:
        """The registers as patterns; as doubles; and as singles, each of which is at an even place."""
        registers = memoryview(bytearray(8 * 32))
        return registers.cast("Q"), registers.cast("d"), registers.cast("f")

    def close(self) -> None:
        """Nothing is executed any more."""

    def operation(self, regime: Regime, decoded: Decoded) -> Operation:
        """The function that executes this instruction, one of instructions.FLOATING."""
        name, _, rest = decoded.name.partition(".")
        if not rest:
            access = self._load if name in ("flw", "fld") else self._store
            return access(regime, decoded, 4 if name[2] == "w" else 8)
        if name == "fcvt":
            return self._conversion(decoded, *rest.split("."))
        if name == "fmv":
            return partial(self._move, decoded, rest)
        form = _FORMATS[rest]
        if name in _ROUNDED:
            exact = partial(self._rounded, decoded, form, *_ROUNDED[name])
            return exact if decoded.rm != DYNAMIC else self._quick(decoded, form, _HOSTS[name], exact)
        if name in _FUSED:
            return partial(self._fused, decoded, form, *_FUSED[name])
        if name in _CHOICES:
            return partial(self._choose, decoded, form, _CHOICES[name])
        if name in _COMPARISONS:
            return partial(self._compare, decoded, form, _COMPARISONS[name])
        if name == "fclass":
            return partial(self._classify, decoded, form)
        return partial(self._inject_sign, decoded, form, name)

    # --- registers ---------------------------------------------------------------------------------------------------
    def _get(self, form: Format, register: int) -> int:
        value = self.f[register]
        if form is DOUBLE:
            return value
        return value & 0xFFFF_FFFF if value >= BOXED else SINGLE.canonical

    def _put(self, form: Format, register: int, value: int) -> None:
        self.f[register] = value if form is DOUBLE else value | BOXED

    def _deliver(self, rd: int, value: int) -> None:
        """x[rd] becomes a number, which may be negative."""
        if rd:
            self._hart.x[rd] = value & _M64

    def _mode(self, decoded: Decoded) -> int:
        """How this instruction rounds. Raises Trap for a mode that there is not (11.2)."""
        mode = self.rounding if decoded.rm == DYNAMIC else decoded.rm
        if mode > softfloat.RMM:
            raise Trap(Cause.ILLEGAL_INSTRUCTION, decoded.raw)
        return mode

    # --- memory: 11.5, 12.3 ------------------------------------------------------------------------------------------
    def _load(self, regime: Regime, decoded: Decoded, size: int) -> Operation:
        hart, f, rd, rs1, imm = self._hart, self.f, decoded.rd, decoded.rs1, decoded.imm
        read, load, upper = regime.read, hart.mmu.load, 0 if size == 8 else BOXED
        ram: memoryview[int] = hart.space.ram64 if size == 8 else hart.space.ram32
        shift = size.bit_length() - 1

        def execute() -> None:
            address = hart.x[rs1] + imm & _M64
            try:
                at = read[address >> PAGE_SHIFT] + address
                if at & size - 1:
                    raise KeyError
                f[rd] = ram[at >> shift] | upper
            except KeyError:
                f[rd] = load(regime, address, size) | upper

        return execute

    def _store(self, regime: Regime, decoded: Decoded, size: int) -> Operation:
        hart, f, rs1, rs2, imm = self._hart, self.f, decoded.rs1, decoded.rs2, decoded.imm
        write, store = regime.write, hart.mmu.store
        ram: memoryview[int] = hart.space.ram64 if size == 8 else hart.space.ram32
        shift, mask = size.bit_length() - 1, (1 << 8 * size) - 1

        def execute() -> None:
            address = hart.x[rs1] + imm & _M64
            try:
                at = write[address >> PAGE_SHIFT] + address
                if at & size - 1:
                    raise KeyError
                ram[at >> shift] = f[rs2] & mask
            except KeyError:
                store(regime, address, size, f[rs2])

        return execute

    # --- arithmetic --------------------------------------------------------------------------------------------------
    def _rounded(self, decoded: Decoded, form: Format, compute: Arithmetic, operands: int) -> None:
        mode = self._mode(decoded)
        values = [self._get(form, register) for register in (decoded.rs1, decoded.rs2)[:operands]]
        self._put(form, decoded.rd, compute(form, *values, mode, self))

    def _quick(
        self, decoded: Decoded, form: Format, compute: Callable[[float, float], float], exact: Operation
    ) -> Operation:
        """As `exact`, by the host where that can make no difference: to nearest, an ordinary result, NX set already.

        A single is computed as a double and rounded again, which is the same for these operations (Figueroa 1995).
        """
        rd, rs1, rs2 = decoded.rd, decoded.rs1, decoded.rs2
        f, low, high = self.f, *_USUAL[form.bits]
        numbers, scale = (self._doubles, 1) if form is DOUBLE else (self._singles, 2)

        def execute() -> None:
            if self.flags & NX and not self.rounding and (scale == 1 or (f[rs1] >= BOXED and f[rs2] >= BOXED)):
                try:
                    value = compute(numbers[rs1 * scale], numbers[rs2 * scale])
                except (ArithmeticError, ValueError):  # by zero, of a negative number
                    exact()
                    return
                if low < value < high or -high < value < -low:
                    if scale == 2:
                        f[rd] = BOXED
                    numbers[rd * scale] = value
                    return
            exact()

        return execute

    def _fused(self, decoded: Decoded, form: Format, negate_product: bool, negate_addend: bool) -> None:
        mode = self._mode(decoded)
        one, other, addend = (self._get(form, register) for register in (decoded.rs1, decoded.rs2, decoded.rs3))
        one ^= form.sign if negate_product else 0
        addend ^= form.sign if negate_addend else 0
        self._put(form, decoded.rd, softfloat.fused(form, one, other, addend, mode, self))

    def _choose(self, decoded: Decoded, form: Format, choose: Arithmetic) -> None:
        value = choose(form, self._get(form, decoded.rs1), self._get(form, decoded.rs2), self)
        self._put(form, decoded.rd, value)

    def _compare(self, decoded: Decoded, form: Format, holds: Callable[..., bool]) -> None:
        self._deliver(decoded.rd, holds(form, self._get(form, decoded.rs1), self._get(form, decoded.rs2), self))

    def _classify(self, decoded: Decoded, form: Format) -> None:
        self._deliver(decoded.rd, softfloat.classify(form, self._get(form, decoded.rs1)))

    def _inject_sign(self, decoded: Decoded, form: Format, name: str) -> None:
        """11.7: rs1 with the sign of rs2, its opposite, or that of both together."""
        one, other = self._get(form, decoded.rs1), self._get(form, decoded.rs2)
        if name == "fsgnjn":
            other = ~other
        elif name == "fsgnjx":
            other ^= one
        self._put(form, decoded.rd, one & ~form.sign | other & form.sign)

    # --- moves and conversions ---------------------------------------------------------------------------------------
    def _move(self, decoded: Decoded, kind: str) -> None:
        """11.7, 12.5: bits as they are, boxed or not."""
        match kind:
            case "x.d":
                self._deliver(decoded.rd, self.f[decoded.rs1])
            case "x.w":
                low = self.f[decoded.rs1] & 0xFFFF_FFFF
                self._deliver(decoded.rd, (low ^ 1 << 31) - (1 << 31))
            case "d.x":
                self.f[decoded.rd] = self._hart.x[decoded.rs1]
            case _:
                self.f[decoded.rd] = self._hart.x[decoded.rs1] & 0xFFFF_FFFF | BOXED

    def _conversion(self, decoded: Decoded, to: str, source: str) -> Operation:
        if to in _INTEGERS:
            return partial(self._to_integer, decoded, _FORMATS[source], *_INTEGERS[to])
        if source in _INTEGERS:
            return partial(self._from_integer, decoded, _FORMATS[to], *_INTEGERS[source])
        return partial(self._convert, decoded, _FORMATS[to], _FORMATS[source])

    def _to_integer(self, decoded: Decoded, form: Format, bits: int, signed: bool) -> None:
        lowest, highest = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        value = softfloat.to_integer(form, self._get(form, decoded.rs1), lowest, highest, self._mode(decoded), self)
        if bits == 32:  # the result of fcvt.wu too is sign-extended
            value = (value & 0xFFFF_FFFF ^ 1 << 31) - (1 << 31)
        self._deliver(decoded.rd, value)

    def _from_integer(self, decoded: Decoded, form: Format, bits: int, signed: bool) -> None:
        value = self._hart.x[decoded.rs1] & (1 << bits) - 1
        if signed:
            value = (value ^ 1 << bits - 1) - (1 << bits - 1)
        self._put(form, decoded.rd, softfloat.from_integer(form, value, self._mode(decoded), self))

    def _convert(self, decoded: Decoded, to: Format, form: Format) -> None:
        mode = self._mode(decoded)
        self._put(to, decoded.rd, softfloat.convert(to, form, self._get(form, decoded.rs1), mode, self))
