"""CSRs and LR's reservation where translated code sees them too: in State. Python's side of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minivmm.emulator.atomics import Atomics
from minivmm.emulator.csr import CsrFile
from minivmm.emulator.translator.state import CSRS, RESERVED, RESERVED_VALUE

if TYPE_CHECKING:
    from minivmm.emulator.translator.hart import TranslatingHart

SHARED = (
    *("mstatus", "medeleg", "mideleg", "mie", "mip", "mtvec", "mscratch", "mepc", "mcause", "mtval", "mcounteren"),
    *("stvec", "sscratch", "sepc", "scause", "stval", "scounteren"),
)
"""The attributes of CsrFile that are words of State."""
OFFSETS = {name: CSRS + 8 * index for index, name in enumerate(SHARED)}
"""Their offsets in bytes."""

FOUR_BYTES, EIGHT_BYTES = 1, 2  # in the low bits of RESERVED


class SharedCsrs(CsrFile):
    """A CsrFile whose SHARED registers are in State."""

    def __init__(self, hart: TranslatingHart) -> None:
        self._state = hart.state
        super().__init__(hart)

    def read_mip(self) -> int:
        """As CsrFile's; translated code remembers what the devices said."""
        lines = self._hart.interrupt_lines()
        self._state.pending[0] = lines
        return self.mip | lines


def _word(name: str) -> property:
    index = OFFSETS[name] >> 3

    def get(csrs: SharedCsrs) -> int:
        return csrs._state.words[index]

    def put(csrs: SharedCsrs, value: int) -> None:
        csrs._state.words[index] = value

    return property(get, put)


for _name in SHARED:
    setattr(SharedCsrs, _name, _word(_name))


class SharedAtomics(Atomics):
    """Atomics whose reservation is in State."""

    def __init__(self, hart: TranslatingHart) -> None:
        self._words = hart.state.words
        self._ram = hart.space.ram.host_address
        super().__init__(hart)

    @property
    def reserved(self) -> tuple[int, int, int] | None:
        """As Atomics'."""
        key = self._words[RESERVED >> 3]
        if not key:
            return None
        return (key & ~3) - self._ram, 4 if key & FOUR_BYTES else 8, self._words[RESERVED_VALUE >> 3]

    @reserved.setter
    def reserved(self, value: tuple[int, int, int] | None) -> None:
        if value is None:
            self._words[RESERVED >> 3] = 0
            return
        offset, size, loaded = value
        self._words[RESERVED >> 3] = self._ram + offset + (FOUR_BYTES if size == 4 else EIGHT_BYTES)
        self._words[RESERVED_VALUE >> 3] = loaded
