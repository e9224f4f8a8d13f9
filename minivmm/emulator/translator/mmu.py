"""The Mmu of a hart that translates: what is forgotten here is forgotten in translated code's tables too."""

from __future__ import annotations

from minivmm.emulator.mmu import OFFSET_MASK, FloatingState, Mmu, Regime
from minivmm.emulator.physical import AddressSpace
from minivmm.emulator.translator.state import SATP, WALKS, State, Tables
from minivmm.emulator.traps import Access, Privilege


class TranslatingRegime(Regime):
    """A regime whose tables translated code reads."""

    __slots__ = ("_mmu", "chains_anywhere", "tables")

    def __init__(
        self,
        mmu: TranslatingMmu,
        tables: Tables,
        fetch_mode: int,
        data_mode: int,
        sum_: bool,
        mxr: bool,
        floating: FloatingState,
    ) -> None:
        super().__init__(fetch_mode, data_mode, sum_, mxr, floating)
        self._mmu = mmu
        self.tables = tables
        self.chains_anywhere = mmu.fixed or fetch_mode == Privilege.M  # M: what is fetched is never translated

    def successor(self, mode: int, data_mode: int | None = None) -> TranslatingRegime:
        """The regime after a change of mode alone. data_mode: with MPRV, in M-mode."""
        return self._mmu.regime(mode, mode if data_mode is None else data_mode, self.sum, self.mxr, self.floating)

    def with_other_sum(self) -> TranslatingRegime:
        """The regime after SUM, and nothing else, became what it is not."""
        return self._mmu.regime(self.fetch_mode, self.data_mode, not self.sum, self.mxr, self.floating)


class TranslatingMmu(Mmu):
    """An Mmu for a hart that translates."""

    fixed = False
    """Whether code never moves without CodeCache being told: then blocks are chained across pages."""

    def __init__(self, space: AddressSpace, state: State) -> None:
        self._state = state
        super().__init__(space)
        self._known: dict[tuple[int, int, bool, bool, FloatingState], TranslatingRegime] = {}

    @property
    def satp(self) -> int:
        """As Mmu's."""
        return self._state.words[SATP >> 3]

    @satp.setter
    def satp(self, value: int) -> None:
        self._state.words[SATP >> 3] = value

    @property
    def walks(self) -> int:
        """As Mmu's; translated code's too."""
        return self._state.words[WALKS >> 3]

    @walks.setter
    def walks(self, value: int) -> None:
        self._state.words[WALKS >> 3] = value

    def regime(
        self, fetch_mode: int, data_mode: int, sum_: bool, mxr: bool, floating: FloatingState
    ) -> TranslatingRegime:
        """As Mmu's."""
        key = (fetch_mode, data_mode, sum_, mxr, floating)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._regimes[key] = TranslatingRegime(self, self._state.tables(), *key)
        return found

    def translate(self, address: int, access: int, mode: int, sum_: bool = False, mxr: bool = False) -> int:
        """As Mmu's; where instructions come from is noted, so that a flush can find out whether they still do."""
        physical = super().translate(address, access, mode, sum_, mxr)
        if access == Access.FETCH and mode != Privilege.M:
            self._state.note_fetch(address & ~OFFSET_MASK | mode, physical & ~OFFSET_MASK)
        return physical

    def flush(self) -> None:
        """As Mmu's, and translated code knows no page, and no jump finds its way."""
        super().flush()
        self._state.clear_tlb()
        self._state.clear_jumps()
        self._state.forget_fetches()

    def forget_pages(self) -> None:
        """Translated code has flushed the TLB, and found that instructions are where they were."""
        for regime in self._known.values():
            regime.read.clear()
            regime.write.clear()
            regime.read_device.clear()
            regime.write_device.clear()

    def forget_blocks(self) -> None:
        """As Mmu's, and no jump finds its way."""
        super().forget_blocks()
        self._state.clear_jumps()

    def forget_writable(self) -> None:
        """As Mmu's, for translated code too."""
        super().forget_writable()
        self._state.clear_tlb()
