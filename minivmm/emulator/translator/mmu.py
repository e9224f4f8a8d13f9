"""The software TLB's other side: what a regime's tables forget is forgotten in translated code's copy of them too."""

from __future__ import annotations

from minivmm.emulator.mmu import Mmu, Regime
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

    __slots__ = ("_mmu", "chains_anywhere", "tables")

    def __init__(
        self, mmu: TranslatingMmu, tables: Tables, fetch_mode: int, data_mode: int, sum_: bool, mxr: bool
    ) -> None:
        super().__init__(fetch_mode, data_mode, sum_, mxr)
        self._mmu = mmu
        self.tables = tables
        self.chains_anywhere = mmu.fixed or fetch_mode == Privilege.M  # M: what is fetched is never translated
        self.read = _Pages(tables, False)
        self.write = _Pages(tables, True)

    def successor(self, mode: int) -> TranslatingRegime:
        """The regime after a change of mode that leaves SUM and MXR as they are, and MPRV off."""
        return self._mmu.regime(mode, mode, self.sum, self.mxr)


class TranslatingMmu(Mmu):
    """An Mmu for a hart that translates."""

    fixed = False
    """Whether code never moves without CodeCache being told: then blocks are chained across pages."""

    def __init__(self, space: AddressSpace, state: State) -> None:
        super().__init__(space)
        self._state = state
        self._known: dict[tuple[int, int, bool, bool], TranslatingRegime] = {}

    def regime(self, fetch_mode: int, data_mode: int, sum_: bool, mxr: bool) -> TranslatingRegime:
        """As Mmu's."""
        key = (fetch_mode, data_mode, sum_, mxr)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._regimes[key] = TranslatingRegime(self, self._state.tables(), *key)
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
        for regime in self._known.values():
            regime.tables.clear_jumps()
