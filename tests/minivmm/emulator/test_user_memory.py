"""A process' mappings: whatever is mapped, taken away and protected, each page has the rights it was last given."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from minivmm.emulator.physical import AddressSpace, Ram
from minivmm.emulator.user.abi import Prot
from minivmm.emulator.user.memory import ProcessMemory
from minivmm.memory import PAGE_SIZE

PAGES = 24

step = st.tuples(
    st.sampled_from(("map", "unmap", "protect")),
    st.integers(0, PAGES - 1),
    st.integers(1, 8),
    st.sampled_from((Prot.READ, Prot.READ | Prot.WRITE, Prot.READ | Prot.EXEC)),
)


@given(st.lists(step, max_size=40))
def test_each_page_has_the_rights_it_was_given_last(steps: list[tuple[str, int, int, Prot]]) -> None:
    ram = Ram(1 << 20)
    space = AddressSpace(ram)
    memory = ProcessMemory(space)
    expected: dict[int, Prot] = {}
    for what, first, count, prot in steps:
        pages = range(first, first + count)
        start, length = first * PAGE_SIZE, count * PAGE_SIZE
        match what:
            case "map":
                memory.map(start, length, prot)
                expected |= dict.fromkeys(pages, prot)
            case "unmap":
                memory.unmap(start, length)
                expected = {page: old for page, old in expected.items() if page not in pages}
            case _:
                mapped = all(page in expected for page in pages)
                assert (memory.protect(start, length, prot) is not None) == mapped
                expected |= dict.fromkeys(pages, prot) if mapped else {}
    for page in range(PAGES + 8):
        assert memory.rights(page * PAGE_SIZE) == expected.get(page, Prot(0))
    space.close()
    ram.close()
