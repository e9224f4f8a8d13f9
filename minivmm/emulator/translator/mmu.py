"""The software TLB's other side: what a regime's tables forget is forgotten in translated code's copy of them too."""

from __future__ import annotations

from minivmm.emulator.mmu import FloatingState, Mmu, Regime
from minivmm.emulator.physical import AddressSpace
from minivmm.emulator.translator.state import State, Tables
from minivmm.emulator.traps import Privilege


class _Pages(dict[int, int]):
    """Regime.read or .write; whoever clears it clears the TLB."""

    def __init__(self, tables: Tables, is_write: bool) -> None:
        super().__init__()
        self._clear_copy = tables.clear_write if is_write else tables.clear_read

    def clear(self) -> None:
        """All of it, here and there."""
        if self:  # the copy has no more than is here
            super().clear()
            self._clear_copy()


class TranslatingRegime(Regime):
    """A regime whose tables translated code reads."""

    __slots__ = ("chains_anywhere", "number", "tables")

    def __init__(
        self,
        tables: Tables,
        number: int,
        fixed: bool,
        fetch_mode: int,
        data_mode: int,
        sum_: bool,
        mxr: bool,
        floating: FloatingState,
    ) -> None:
        super().__init__(fetch_mode, data_mode, sum_, mxr, floating)
        self.tables = tables
        self.number = number
        self.chains_anywhere = fixed or fetch_mode == Privilege.M  # M: what is fetched is never translated
        self.read = _Pages(tables, False)
        self.write = _Pages(tables, True)


class TranslatingMmu(Mmu):
    """An Mmu for a hart that translates."""

    fixed = False
    """Whether code never moves without CodeCache being told: then blocks are chained across pages."""

    def __init__(self, space: AddressSpace, state: State) -> None:
        super().__init__(space)
        self._state = state
        self._translating: list[TranslatingRegime] = []

    def regime(self, fetch_mode: int, data_mode: int, sum_: bool, mxr: bool, floating: FloatingState) -> Regime:
        """As Mmu's."""
        key = (fetch_mode, data_mode, sum_, mxr, floating)
        found = self._regimes.get(key)
        if found is None:
            made = TranslatingRegime(self._state.tables(), len(self._translating), self.fixed, *key)
            self._translating.append(made)
            found = self._regimes[key] = made
        return found

    def flush(self) -> None:
        """As Mmu's, and no jump finds its way."""
        super().flush()
        self._clear_jumps()

    def forget_blocks(self) -> None:
        """As Mmu's, and no jump finds its way."""
        super().forget_blocks()
        self._clear_jumps()

    def _clear_jumps(self) -> None:
        for regime in self._translating:
            regime.tables.clear_jumps()
