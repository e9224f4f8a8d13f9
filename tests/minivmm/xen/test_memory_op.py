"""memory_op by example: what memory.h says of each operation, and what a domain can get wrong about it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest

from minivmm.boot.linux64 import BOOT_E820_ENTRY
from minivmm.xen import abi
from minivmm.xen import memory_abi as xen
from minivmm.xen.abi import Domid
from minivmm.xen.calls import memory as calls
from minivmm.xen.errors import HypercallError
from minivmm.xen.frame_owners import INVALID_M2P_ENTRY
from minivmm.xen.frame_words import OWNER
from minivmm.xen.memory_abi import MemoryOp
from tests.minivmm.xen.two_domains import FREE, LISTS, MAX_PAGES, PAGES, READ_ONLY, P, TwoDomains, W

ARG, INS, OUTS = LISTS, LISTS + 0x400, LISTS + 0x800


@pytest.fixture
def machine() -> Iterator[TwoDomains]:
    machine = TwoDomains()
    yield machine
    machine.close()


def reserve(
    machine: TwoDomains,
    operation: int,
    extents: list[int] | int,
    order: int = 0,
    flags: int = 0,
    domid: int = Domid.SELF,
    at: int = INS,
) -> int:
    """One of the three operations on a reservation by domain 1, with a list of extents or only so many of them."""
    if isinstance(extents, list):
        machine.write_numbers(1, at, extents)
        extents = len(extents)
    reservation = xen.XenMemoryReservation(at, extents, order, flags, domid)
    machine.write(1, ARG, xen.XEN_MEMORY_RESERVATION.pack(reservation))
    return machine.memory_call(1, operation, ARG)


def domain_query(machine: TwoDomains, operation: int, domid: int = Domid.SELF) -> int:
    machine.write(1, ARG, xen.XEN_MEMORY_DOMAIN.pack(xen.XenMemoryDomain(domid)))
    return machine.memory_call(1, operation, ARG)


def exchange(
    machine: TwoDomains, mfns: list[int], order: int, pfns: list[int], out_order: int, bits: int = 0, done: int = 0
) -> tuple[int, int]:
    """The value for RAX, and nr_exchanged."""
    machine.write_numbers(1, INS, mfns)
    machine.write_numbers(1, OUTS, pfns)
    ends = (INS, len(mfns), order, 0, Domid.SELF, OUTS, len(pfns), out_order, bits, Domid.SELF)
    machine.write(1, ARG, xen.XEN_MEMORY_EXCHANGE.pack(xen.XenMemoryExchange(*ends, done)))
    result = machine.memory_call(1, MemoryOp.EXCHANGE, ARG)
    return result, machine.vcpus[1].pages.read_record(ARG, xen.XEN_MEMORY_EXCHANGE).nr_exchanged


def test_a_domain_is_told_how_much_it_has_and_may_have(machine: TwoDomains) -> None:
    assert domain_query(machine, MemoryOp.CURRENT_RESERVATION) == PAGES  # shared_info and grant table are Xen's
    assert domain_query(machine, MemoryOp.MAXIMUM_RESERVATION, domid=1) == MAX_PAGES
    assert domain_query(machine, MemoryOp.CURRENT_RESERVATION, domid=2) == -errno.EPERM
    assert machine.memory_call(1, MemoryOp.CURRENT_RESERVATION, 0xDEAD000) == -errno.EFAULT
    assert machine.memory_call(1, MemoryOp.MAXIMUM_RAM_PAGE, 0) == 0x3FF


def test_the_highest_pfn_is_what_the_domain_says(machine: TwoDomains) -> None:
    assert domain_query(machine, MemoryOp.MAXIMUM_GPFN) == 0
    machine.memory.write_u64((machine.shared_info[1] << 12) + abi.SharedInfo.ARCH, 77)
    assert domain_query(machine, MemoryOp.MAXIMUM_GPFN) == 76


def test_the_memory_map_is_one_entry_as_large_as_the_domain_may_become(machine: TwoDomains) -> None:
    machine.write(1, ARG, xen.XEN_MEMORY_MAP.pack(xen.XenMemoryMap(5, INS)))
    assert machine.memory_call(1, MemoryOp.MEMORY_MAP, ARG) == 0
    assert machine.vcpus[1].pages.read_record(ARG, xen.XEN_MEMORY_MAP).nr_entries == 1
    assert machine.vcpus[1].pages.read_record(INS, BOOT_E820_ENTRY) == (0, MAX_PAGES << 12, 1)
    machine.write(1, ARG, xen.XEN_MEMORY_MAP.pack(xen.XenMemoryMap(0, 0xDEAD000)))
    assert machine.memory_call(1, MemoryOp.MEMORY_MAP, ARG) == 0
    assert machine.memory_call(1, MemoryOp.MACHINE_MEMORY_MAP, ARG) == -errno.EPERM


def test_the_machine_to_physical_table_is_found_by_address_and_by_frame(machine: TwoDomains) -> None:
    machine.memory_op.m2p_virt = 0xFFFF_8080_0000_0000
    assert machine.memory_call(1, MemoryOp.MACHPHYS_MAPPING, ARG) == 0
    mapping = machine.vcpus[1].pages.read_record(ARG, xen.XEN_MACHPHYS_MAPPING)
    assert mapping == (0xFFFF_8080_0000_0000, 0xFFFF_8080_0000_2000, 0x3FF)
    for room, found in ((4, 1), (0, 0)):
        machine.write(1, ARG, xen.XEN_MACHPHYS_MFN_LIST.pack(xen.XenMachphysMfnList(room, INS, 99)))
        assert machine.memory_call(1, MemoryOp.MACHPHYS_MFN_LIST, ARG) == 0
        assert machine.vcpus[1].pages.read_record(ARG, xen.XEN_MACHPHYS_MFN_LIST).nr_extents == found
    assert machine.numbers(1, INS, 1) == [machine.frames.m2p_mfns.start]


def test_what_is_not_there_says_so(machine: TwoDomains) -> None:
    for operation in (MemoryOp.ADD_TO_PHYSMAP, MemoryOp.REMOVE_FROM_PHYSMAP, 99, MemoryOp.POPULATE_PHYSMAP | 1 << 6):
        assert machine.memory_call(1, operation, ARG) == -errno.ENOSYS


def test_populated_frames_are_empty_the_domains_and_known_by_their_pfn(machine: TwoDomains) -> None:
    assert reserve(machine, MemoryOp.POPULATE_PHYSMAP, [100, 7]) == 2
    first, second = machine.numbers(1, INS, 2)
    assert (machine.m2p(first), machine.m2p(second)) == (100, 7)
    assert machine.frames.state[first] & OWNER == 1
    assert not any(machine.memory.read(first << 12, 4096))
    assert domain_query(machine, MemoryOp.CURRENT_RESERVATION) == PAGES + 2


def test_a_domain_gets_no_more_than_it_may_have(machine: TwoDomains) -> None:
    assert reserve(machine, MemoryOp.POPULATE_PHYSMAP, list(range(20))) == MAX_PAGES - PAGES
    assert reserve(machine, MemoryOp.INCREASE_RESERVATION, 1) == 0
    assert dict(machine.domains[1].refused)
    assert domain_query(machine, MemoryOp.CURRENT_RESERVATION) == MAX_PAGES


def test_a_machine_gives_no_more_than_it_has(machine: TwoDomains) -> None:
    free = machine.frames.free_frames
    machine.memory_op.add_domain(1, 1 << 20)
    assert reserve(machine, MemoryOp.INCREASE_RESERVATION, 1 << 40, at=0) == free  # nobody wants to know which
    assert machine.frames.free_frames == 0
    assert reserve(machine, MemoryOp.INCREASE_RESERVATION, 1, order=9) == 0


def test_one_call_changes_the_hands_of_a_bounded_number_of_frames(
    machine: TwoDomains, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "MAX_FRAMES", 8)
    monkeypatch.setattr(calls, "CHUNK", 3)
    assert reserve(machine, MemoryOp.POPULATE_PHYSMAP, list(range(16))) == 8
    assert [machine.m2p(mfn) for mfn in machine.numbers(1, INS, 8)] == list(range(8))
    assert machine.numbers(1, INS + 64, 8) == list(range(8, 16))
    result, exchanged = exchange(machine, machine.data[1][:10], 0, list(range(10)), 0)
    assert (result, exchanged) == (-errno.E2BIG, 8)


def test_an_extent_is_a_run_aligned_to_its_size(machine: TwoDomains) -> None:
    assert reserve(machine, MemoryOp.POPULATE_PHYSMAP, [64, 8], order=3) == 2
    for pfn, mfn in zip((64, 8), machine.numbers(1, INS, 2), strict=True):
        assert mfn % 8 == 0
        assert [machine.m2p(mfn + page) for page in range(8)] == list(range(pfn, pfn + 8))
    assert reserve(machine, MemoryOp.DECREASE_RESERVATION, machine.numbers(1, INS, 2), order=3) == 2
    for operation in (MemoryOp.INCREASE_RESERVATION, MemoryOp.POPULATE_PHYSMAP, MemoryOp.DECREASE_RESERVATION):
        assert reserve(machine, operation, [0], order=10) == 0
        assert reserve(machine, operation, [0], order=0xFFFFFFFF) == 0


def test_frames_can_be_asked_for_below_an_address(machine: TwoDomains) -> None:
    assert reserve(machine, MemoryOp.INCREASE_RESERVATION, 1, flags=20) == 0  # below 1 MiB is none
    for mfn in machine.data[1][:4]:
        machine.frames.free(1, mfn)
    low = 0x140 << 12
    assert reserve(machine, MemoryOp.INCREASE_RESERVATION, 1, flags=low.bit_length()) == 1
    assert machine.numbers(1, INS, 1)[0] < 0x200
    assert reserve(machine, MemoryOp.INCREASE_RESERVATION, 1, flags=5) == 0


@pytest.mark.parametrize("order", [0, 2])
def test_an_answer_that_cannot_be_stored_changes_nothing(machine: TwoDomains, order: int) -> None:
    for address in (READ_ONLY, FREE, FREE - 8, 1 << 63, (1 << 64) - 8):
        for operation in (MemoryOp.INCREASE_RESERVATION, MemoryOp.POPULATE_PHYSMAP):
            assert reserve(machine, operation, 2, order=order, at=address) == 0
    assert domain_query(machine, MemoryOp.CURRENT_RESERVATION) == PAGES
    assert machine.memory_call(1, MemoryOp.POPULATE_PHYSMAP, FREE) == 0


def test_a_frame_given_back_is_nobodys_and_empty(machine: TwoDomains) -> None:
    mfn = machine.data[1][0]
    machine.memory.write(mfn << 12, b"secret")
    assert reserve(machine, MemoryOp.DECREASE_RESERVATION, [mfn]) == 1
    assert machine.frames.state[mfn] == Domid.INVALID
    assert not any(machine.memory.read(mfn << 12, 4096))
    assert machine.m2p(mfn) == INVALID_M2P_ENTRY
    assert reserve(machine, MemoryOp.DECREASE_RESERVATION, [mfn]) == 0


def test_giving_back_ends_at_the_first_frame_that_is_not_the_domains_to_give(machine: TwoDomains) -> None:
    good = machine.data[1]
    for bad in (machine.data[2][0], machine.shared_info[1], machine.grants.entry(1, 0) >> 12, 0, 0x3FF, 1 << 60):
        assert reserve(machine, MemoryOp.DECREASE_RESERVATION, [good.pop(), bad, good[0]]) == 1
    assert machine.frames.state[good[0]] & OWNER == 1
    assert reserve(machine, MemoryOp.DECREASE_RESERVATION, [good[0]], domid=2) == 0


def test_a_frame_given_back_in_use_counts_until_its_last_use_ends(machine: TwoDomains) -> None:
    mfn = machine.data[1][0]
    machine.frames.set_machphys(mfn, 5)
    machine.tables.update_va_mapping(1, FREE, mfn << 12 | P | W)
    assert reserve(machine, MemoryOp.DECREASE_RESERVATION, [mfn, machine.l4[1]]) == 2
    assert machine.m2p(mfn) == INVALID_M2P_ENTRY
    assert domain_query(machine, MemoryOp.CURRENT_RESERVATION) == PAGES
    machine.write(1, FREE, b"still its own")
    machine.unmap(1, FREE)
    assert domain_query(machine, MemoryOp.CURRENT_RESERVATION) == PAGES - 1
    assert machine.frames.state[machine.l4[1]] & OWNER == 1  # the root in use


@pytest.mark.parametrize(("order", "out_order"), [(0, 0), (0, 2), (2, 0), (1, 3), (3, 1)])
def test_an_exchange_swaps_extents_of_either_size(machine: TwoDomains, order: int, out_order: int) -> None:
    assert reserve(machine, MemoryOp.INCREASE_RESERVATION, 8 >> order, order=order) == 8 >> order
    old = machine.numbers(1, INS, 8 >> order)
    machine.memory.write(old[0] << 12, b"secret")
    pfns = [1000 * (index + 1) for index in range(8 >> out_order)]
    assert exchange(machine, old, order, pfns, out_order) == (0, 8 >> order)
    new = machine.numbers(1, OUTS, 8 >> out_order)
    for mfn, pfn in zip(new, pfns, strict=True):
        assert mfn % (1 << out_order) == 0
        for page in range(1 << out_order):
            assert machine.m2p(mfn + page) == pfn + page
            assert machine.frames.state[mfn + page] & OWNER == 1
            assert not any(machine.memory.read(mfn + page << 12, 4096))
    assert domain_query(machine, MemoryOp.CURRENT_RESERVATION) == PAGES + 8


def test_an_exchange_stops_at_what_is_in_use_and_keeps_what_it_did(machine: TwoDomains) -> None:
    used, *idle = machine.data[1]
    machine.tables.update_va_mapping(1, FREE, used << 12 | P)
    for bad in (used, machine.data[2][0], machine.shared_info[1], 0x3FF, 1 << 60):
        assert exchange(machine, [idle.pop(), bad, idle[0]], 0, [5, 6, 7], 0) == (-errno.EINVAL, 1)
        assert machine.m2p(machine.numbers(1, OUTS, 1)[0]) == 5
        assert machine.numbers(1, OUTS + 8, 2) == [6, 7]
    assert exchange(machine, [idle[0], idle[0]], 0, [0], 1) == (-errno.EINVAL, 0)
    assert exchange(machine, [idle[0], idle[1]], 0, [0], 1) == (0, 2)


def test_an_exchange_without_memory_for_it_changes_nothing(machine: TwoDomains) -> None:
    a, b = machine.data[1][:2]
    machine.frames.set_machphys(a, 3)
    machine.memory.write(a << 12, b"kept")
    assert exchange(machine, [a, b], 0, [9], 1, bits=13) == (-errno.ENOMEM, 0)
    assert machine.memory.read(a << 12, 4) == b"kept"
    assert machine.m2p(a) == 3
    assert domain_query(machine, MemoryOp.CURRENT_RESERVATION) == PAGES


def test_an_exchange_that_finds_only_a_part_of_the_memory_changes_nothing(machine: TwoDomains) -> None:
    machine.memory_op.add_domain(1, 1 << 20)
    taken = machine.memory_op.increase_reservation(1, 1 << 20)
    quad, pair = (next(mfn for mfn in taken if mfn % 4 == 0 and mfn > after) for after in (0x200, 0x300))
    for mfn in (pair, pair + 1):
        machine.frames.free(1, mfn)
    assert exchange(machine, [quad], 2, [8, 16], 1) == (-errno.ENOMEM, 0)
    assert machine.frames.free_frames == 2
    assert exchange(machine, [quad + 2], 1, [8], 1) == (0, 1)
    assert machine.numbers(1, OUTS, 1) == [pair]


def test_an_exchange_that_makes_no_sense_is_refused(machine: TwoDomains) -> None:
    a, b = machine.data[1][:2]
    assert exchange(machine, [a, b], 0, [1], 0)[0] == -errno.EINVAL
    assert exchange(machine, [a], 0, [1], 10)[0] == -errno.EPERM
    assert exchange(machine, [a], 0, [1], 0, done=2)[0] == -errno.EINVAL
    assert exchange(machine, [a], 0, [1], 0, done=1) == (0, 1)  # nothing is left to do
    assert machine.frames.state[a] & OWNER == 1


def test_a_shared_frame_is_writable_memory_and_nothing_else(machine: TwoDomains) -> None:
    shared = machine.shared_info[1]
    machine.tables.update_va_mapping(1, FREE, shared << 12 | P | W)
    machine.write(1, FREE, b"hello")
    assert machine.memory.read(shared << 12, 5) == b"hello"
    machine.unmap(1, FREE)
    attempts: list[Callable[[], object]] = [
        lambda: machine.tables.pin(1, shared, 1),
        lambda: machine.tables.set_gdt(1, [shared], 512),
        lambda: machine.tables.update_va_mapping(2, FREE, shared << 12 | P),
        lambda: machine.frames.free(1, shared),
        lambda: machine.frames.steal(1, shared),
    ]
    for attempt in attempts:
        with pytest.raises(HypercallError):
            attempt()
