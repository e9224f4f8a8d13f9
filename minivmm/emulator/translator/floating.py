"""The floating-point state of a hart that translates: registers in State, flags and rounding mode as MXCSR has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minivmm.emulator import softfloat
from minivmm.emulator.floating import Floating

if TYPE_CHECKING:
    from minivmm.emulator.translator.hart import TranslatingHart
    from minivmm.emulator.translator.state import State

# MXCSR (SDM vol. 1, figure 10-3): accrued exceptions, their masks, the rounding mode.
_ACCRUED = ((1 << 0, softfloat.NV), (1 << 2, softfloat.DZ), (1 << 3, softfloat.OF), (1 << 4, softfloat.UF))
_EXCEPTIONS = (*_ACCRUED, (1 << 5, softfloat.NX))
_ALL_MASKED = 0x3F << 7
ROUNDING_CONTROL = {softfloat.RNE: 0 << 13, softfloat.RDN: 1 << 13, softfloat.RUP: 2 << 13, softfloat.RTZ: 3 << 13}
"""By rm; what is not there, MXCSR does not have."""
_FLAGS = [sum(flag for bit, flag in _EXCEPTIONS if mxcsr & bit) for mxcsr in range(64)]
_MXCSR = [sum(bit for bit, flag in _EXCEPTIONS if flags & flag) for flags in range(32)]


class TranslatingFloating(Floating):
    """As Floating."""

    def __init__(self, hart: TranslatingHart, state: State) -> None:
        self._state, self._mxcsr, self._control = state, state.mxcsr, state.rounding
        self._mxcsr[0] = _ALL_MASKED
        super().__init__(hart)

    def _make_registers(self) -> tuple[memoryview[int], memoryview[float], memoryview[float]]:
        return self._state.f, self._state.doubles, self._state.singles

    # What the base class has as plain attributes.
    @property
    def flags(self) -> int:
        return _FLAGS[self._mxcsr[0] & 63]

    @flags.setter
    def flags(self, value: int) -> None:
        self._mxcsr[0] = self._mxcsr[0] & ~63 | _MXCSR[value]

    @property
    def rounding(self) -> int:
        return self._rounding

    @rounding.setter
    def rounding(self, value: int) -> None:
        """One that MXCSR does not have is never used by translated code (mmu.FloatingState)."""
        self._rounding = value
        self._control[0] = ROUNDING_CONTROL.get(value, 0)
        self._mxcsr[0] = self._mxcsr[0] & 63 | _ALL_MASKED | self._control[0]

    def close(self) -> None:
        """The registers can still be read."""
        self.f = memoryview(bytearray(self.f)).cast("Q")
