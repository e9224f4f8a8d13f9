"""Grants over the real frame table: whose frame may be where, and in which order two domains may end."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest

from minivmm.xen import grant_abi as xen
from minivmm.xen.abi import Domid
from minivmm.xen.errors import HypercallError
from minivmm.xen.frame_owners import INVALID_M2P_ENTRY
from minivmm.xen.frame_words import OWNER
from minivmm.xen.grant_abi import GUEST_AVAIL0, GntMap, GrantOp, GrantStatus, Gtf
from minivmm.xen.recount import recount
from tests.minivmm.xen.two_domains import (
    ELEMENTS,
    FREE,
    LISTS,
    READ_ONLY,
    P,
    TwoDomains,
    U,
    W,
    grant,
    map_grant,
    unmap_grant,
)

A_D_NX = 0x60 | 1 << 63


@pytest.fixture
def machine() -> Iterator[TwoDomains]:
    machine = TwoDomains()
    yield machine
    machine.close()


def refused(number: int, call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(HypercallError) as error:
        call(*arguments)
    assert error.value.errno == number


def lend(machine: TwoDomains, flags: int = Gtf.PERMIT_ACCESS) -> int:
    """Domain 1 grants domain 2 its first frame, by reference 0. Returns its mfn."""
    mfn = machine.data[1][0]
    grant(machine, 1, 0, flags, 2, mfn)
    return mfn


def test_a_granted_frame_appears_at_a_virtual_address_and_goes_again(machine: TwoDomains) -> None:
    mfn = lend(machine)
    mapped = map_grant(machine, 2, 1, 0, FREE)
    assert (mapped.status, mapped.dev_bus_addr) == (GrantStatus.OKAY, mfn << 12)
    assert machine.entry(2, FREE) == mfn << 12 | P | W | U | A_D_NX
    machine.write(2, FREE, b"from domain 2")
    assert machine.memory.read(mfn << 12, 13) == b"from domain 2"
    machine.check()
    assert unmap_grant(machine, 2, FREE, mapped.handle) == GrantStatus.OKAY
    assert machine.entry(2, FREE) == 0
    assert not machine.tables.granted


def test_a_read_only_grant_makes_a_read_only_entry_with_the_guests_bits(machine: TwoDomains) -> None:
    mfn = lend(machine, Gtf.PERMIT_ACCESS | Gtf.READONLY)
    assert map_grant(machine, 2, 1, 0, FREE).status == GrantStatus.GENERAL_ERROR
    flags = GntMap.HOST_MAP | GntMap.READONLY | 0x1005 << GUEST_AVAIL0
    mapped = map_grant(machine, 2, 1, 0, FREE, flags)
    assert mapped.status == GrantStatus.OKAY
    assert machine.entry(2, FREE) == mfn << 12 | P | U | A_D_NX | 5 << 9
    refused(errno.EFAULT, machine.write, 2, FREE, b"x")
    assert unmap_grant(machine, 2, FREE, mapped.handle) == GrantStatus.OKAY


def test_a_grant_can_be_mapped_by_the_address_of_its_entry(machine: TwoDomains) -> None:
    mfn = lend(machine)
    entry = machine.entry_at(machine.l1[2], FREE)
    flags = GntMap.HOST_MAP | GntMap.CONTAINS_PTE
    for wrong in (entry + 4, machine.l1[1] << 12, machine.data[2][0] << 12, machine.l4[2] << 12, 0x3FF000, 1 << 60):
        assert map_grant(machine, 2, 1, 0, wrong, flags).status == GrantStatus.GENERAL_ERROR
    mapped = map_grant(machine, 2, 1, 0, entry, flags)
    assert machine.entry(2, FREE) >> 12 & 0xFFFFF == mfn
    assert unmap_grant(machine, 2, entry, mapped.handle) == GrantStatus.OKAY


def test_there_must_be_a_page_table_to_map_a_grant_in(machine: TwoDomains) -> None:
    lend(machine)
    for host in (1 << 30, 0xFFFF_8000_0000_0000, 1 << 47, (1 << 64) - 8):
        assert map_grant(machine, 2, 1, 0, host).status == GrantStatus.GENERAL_ERROR
    assert not machine.grants._table(1).active


def test_what_a_grant_is_mapped_over_goes(machine: TwoDomains) -> None:
    lend(machine)
    own = machine.data[2][0]
    machine.tables.update_va_mapping(2, FREE, own << 12 | P | W)
    refused(errno.EBUSY, machine.tables.pin, 2, own, 1)
    mapped = map_grant(machine, 2, 1, 0, FREE)
    machine.tables.pin(2, own, 1)
    assert unmap_grant(machine, 2, FREE, mapped.handle) == GrantStatus.OKAY


def test_an_active_grant_is_no_leave_to_map_the_frame_any_other_way(machine: TwoDomains) -> None:
    mfn = lend(machine)
    mapped = map_grant(machine, 2, 1, 0, FREE)
    entry = machine.entry(2, FREE)
    refused(errno.EPERM, machine.tables.update_va_mapping, 2, FREE + 0x1000, entry)
    refused(errno.EPERM, machine.tables.update_va_mapping, 2, FREE, mfn << 12 | P)
    machine.tables.update_va_mapping(2, FREE, entry & ~0x60)  # the same mapping with other flags it may have
    copied = machine.data[2][0]
    machine.memory.write(copied << 12, machine.memory.read(machine.l1[2] << 12, 4096))
    refused(errno.EPERM, machine.tables.pin, 2, copied, 1)
    assert unmap_grant(machine, 2, FREE, mapped.handle) == GrantStatus.OKAY


def test_a_granted_frame_stays_ordinary_memory_of_its_owner_while_it_is_in_use(machine: TwoDomains) -> None:
    mfn = lend(machine)
    mapped = map_grant(machine, 2, 1, 0, FREE)
    refused(errno.EBUSY, machine.tables.pin, 1, mfn, 1)
    machine.frames.free(1, mfn)
    refused(errno.EINVAL, machine.frames.free, 1, mfn)
    assert machine.frames.state[mfn] & OWNER == 1
    assert machine.frames.pages[1] == 24
    assert unmap_grant(machine, 2, FREE, mapped.handle) == GrantStatus.OKAY
    assert machine.frames.state[mfn] & OWNER == Domid.INVALID


def test_a_page_table_can_be_granted_to_read_and_not_to_write(machine: TwoDomains) -> None:
    grant(machine, 1, 0, Gtf.PERMIT_ACCESS, 2, machine.l1[1])
    assert map_grant(machine, 2, 1, 0, FREE).status == GrantStatus.GENERAL_ERROR
    mapped = map_grant(machine, 2, 1, 0, FREE, GntMap.HOST_MAP | GntMap.READONLY)
    assert unmap_grant(machine, 2, FREE, mapped.handle) == GrantStatus.OKAY


def test_a_mapping_that_is_not_there_any_more_is_not_unmapped(machine: TwoDomains) -> None:
    mfn = lend(machine)
    mapped = map_grant(machine, 2, 1, 0, FREE)
    machine.unmap(2, FREE)
    assert unmap_grant(machine, 2, FREE, mapped.handle) == GrantStatus.GENERAL_ERROR
    machine.tables.update_va_mapping(2, FREE, machine.data[2][0] << 12 | P | W)
    assert unmap_grant(machine, 2, FREE, mapped.handle) == GrantStatus.GENERAL_ERROR
    again = map_grant(machine, 2, 1, 0, FREE, GntMap.HOST_MAP | GntMap.READONLY)
    assert unmap_grant(machine, 2, FREE, mapped.handle) == GrantStatus.GENERAL_ERROR  # it was a writable one
    assert unmap_grant(machine, 2, FREE, again.handle) == GrantStatus.OKAY
    machine.check()
    assert machine.destroy(2) == []  # and with the domain goes what it could not unmap
    refused(errno.EINVAL, machine.frames.put_page, mfn)


def test_a_page_table_that_ends_lets_go_of_the_granted_frames_in_it(machine: TwoDomains) -> None:
    lend(machine)
    table = machine.data[2][0]
    machine.tables.pin(2, table, 1)
    flags = GntMap.HOST_MAP | GntMap.CONTAINS_PTE
    mapped = map_grant(machine, 2, 1, 0, table << 12, flags)
    machine.check()
    machine.tables.unpin(2, table)
    machine.check()
    refused(errno.EPERM, machine.tables.pin, 2, table, 1)  # what it holds is no mapping any more, and never again one
    assert unmap_grant(machine, 2, table << 12, mapped.handle) == GrantStatus.GENERAL_ERROR


def test_a_domain_may_use_its_own_grant(machine: TwoDomains) -> None:
    mfn = machine.data[1][0]
    grant(machine, 1, 0, Gtf.PERMIT_ACCESS, 1, mfn)
    mapped = map_grant(machine, 1, 1, 0, FREE)
    machine.check()
    assert unmap_grant(machine, 1, FREE, mapped.handle) == GrantStatus.OKAY


@pytest.mark.parametrize("flags", [GntMap.HOST_MAP, GntMap.HOST_MAP | GntMap.READONLY])
def test_the_frames_of_a_dead_granter_stay_until_they_are_unmapped(machine: TwoDomains, flags: int) -> None:
    mfn = lend(machine)
    mapped = map_grant(machine, 2, 1, 0, FREE, flags)
    grant_table = machine.grants.entry(1, 0) >> 12
    assert sorted(machine.destroy(1)) == sorted([mfn, grant_table])
    machine.check()
    assert map_grant(machine, 2, 1, 0, FREE + 0x1000).status == GrantStatus.BAD_DOMAIN
    assert unmap_grant(machine, 2, FREE, mapped.handle) == GrantStatus.OKAY
    assert machine.frames.frames_of(1) == []


def test_a_mapping_domain_that_dies_gives_everything_back(machine: TwoDomains) -> None:
    mfn = lend(machine)
    map_grant(machine, 2, 1, 0, FREE)
    assert machine.destroy(2) == []
    machine.check()
    assert machine.memory.read_u16(machine.grants.entry(1, 0)) == Gtf.PERMIT_ACCESS
    machine.tables.pin(1, mfn, 1)


def test_a_grant_table_grows_and_tells_its_frames(machine: TwoDomains) -> None:
    machine.write(1, ELEMENTS, xen.SETUP_TABLE.pack(xen.SetupTable(Domid.SELF, 3, 77, LISTS)))
    assert machine.grant_call(1, GrantOp.SETUP_TABLE, ELEMENTS, 1) == 0
    assert machine.vcpus[1].pages.read_record(ELEMENTS, xen.SETUP_TABLE).status == GrantStatus.OKAY
    frames = machine.numbers(1, LISTS, 3)
    for mfn in frames:
        machine.tables.update_va_mapping(1, FREE, mfn << 12 | P | W)
        refused(errno.EPERM, machine.tables.update_va_mapping, 2, FREE, mfn << 12 | P)
    assert machine.frames.pages[1] == 24


def test_a_transferred_frame_changes_its_owner_and_keeps_its_contents(machine: TwoDomains) -> None:
    mfn, mapped = machine.data[1][:2]
    machine.tables.update_va_mapping(1, FREE, mapped << 12 | P)
    machine.memory.write(mfn << 12, b"kept")
    machine.frames.set_machphys(mfn, 5)
    grant(machine, 2, 4, Gtf.ACCEPT_TRANSFER, 1, 0)
    for number, status in ((mapped, GrantStatus.BAD_PAGE), (mfn, GrantStatus.OKAY), (mfn, GrantStatus.BAD_PAGE)):
        machine.write(1, ELEMENTS, xen.TRANSFER.pack(xen.Transfer(number, 2, 4, 77)))
        assert machine.grant_call(1, GrantOp.TRANSFER, ELEMENTS, 1) == 0
        assert machine.vcpus[1].pages.read_record(ELEMENTS, xen.TRANSFER).status == status
    assert machine.memory.read_u32(machine.grants.entry(2, 4) + 4) == mfn
    assert machine.frames.state[mfn] & OWNER == 2
    assert machine.memory.read(mfn << 12, 4) == b"kept"
    assert machine.m2p(mfn) == INVALID_M2P_ENTRY
    assert (machine.frames.pages[1], machine.frames.pages[2]) == (23, 25)


def test_a_frame_transferred_to_who_may_have_no_more_is_lost(machine: TwoDomains) -> None:
    mfn = machine.data[1][0]
    machine.memory.write(mfn << 12, b"lost")
    machine.memory_op.add_domain(2, 24)
    grant(machine, 2, 4, Gtf.ACCEPT_TRANSFER, 1, 0)
    machine.write(1, ELEMENTS, xen.TRANSFER.pack(xen.Transfer(mfn, 2, 4, 77)))
    assert machine.grant_call(1, GrantOp.TRANSFER, ELEMENTS, 1) == 0
    assert machine.vcpus[1].pages.read_record(ELEMENTS, xen.TRANSFER).status == GrantStatus.GENERAL_ERROR
    assert machine.frames.state[mfn] == Domid.INVALID
    assert not any(machine.memory.read(mfn << 12, 4096))


def test_a_long_call_is_answered_chunk_by_chunk(machine: TwoDomains) -> None:
    lend(machine)
    size = xen.MAP_GRANT_REF.size
    element = xen.MAP_GRANT_REF.pack(xen.MapGrantRef(FREE, GntMap.HOST_MAP, 0, 1, 77, 0, 0))
    for page in range(1, 3):
        machine.tables.update_va_mapping(2, page << 12, machine.data[2][page] << 12 | P | W)
        machine.write(2, page << 12, element * 128)
    before_the_end = 0x3000 - 100 * size
    assert machine.grant_call(2, GrantOp.MAP_GRANT_REF, before_the_end, 101) == -errno.EFAULT
    answers = [machine.vcpus[2].pages.read_record(before_the_end + n * size, xen.MAP_GRANT_REF) for n in range(100)]
    assert [answer.status for answer in answers] == [GrantStatus.OKAY] * 64 + [77] * 36
    assert len(machine.grants._table(2).mappings) == 64


def test_a_call_that_cannot_be_answered_does_nothing(machine: TwoDomains) -> None:
    lend(machine)
    element = xen.MAP_GRANT_REF.pack(xen.MapGrantRef(FREE, GntMap.HOST_MAP, 0, 1, 77, 0, 0))
    read_only = machine.entry(2, READ_ONLY) >> 12 & 0xFFFFF
    machine.memory.write(read_only << 12, element)
    assert machine.grant_call(2, GrantOp.MAP_GRANT_REF, READ_ONLY, 1) == -errno.EFAULT
    assert machine.entry(2, FREE) == 0
    for cmd, count, error in (
        (GrantOp.MAP_GRANT_REF, 1 << 31, errno.EINVAL),
        (GrantOp.SETUP_TABLE, 2, errno.EINVAL),
        (GrantOp.QUERY_SIZE, 0, errno.EINVAL),
        (7, 1, errno.ENOSYS),
        (1 << 31, 1, errno.ENOSYS),
    ):
        assert machine.grant_call(2, cmd, ELEMENTS, count) == -error
    assert machine.grant_call(2, GrantOp.COPY, 0xDEAD000, 0) == 0


def test_a_recount_notices_a_foreign_mapping_that_no_grant_made(machine: TwoDomains) -> None:
    mfn = lend(machine)
    mapped = map_grant(machine, 2, 1, 0, FREE)
    here, there = (machine.entry_at(machine.l1[2], virtual) for virtual in (FREE, FREE + 0x1000))
    entry = machine.memory.read_u64(here)
    for address, forged, kept in ((there, entry, 0), (here, entry & ~W, entry)):
        machine.memory.write_u64(address, forged)
        assert f"domain 2 maps mfn {mfn:#x} of domain 1" in recount(machine.tables)
        machine.memory.write_u64(address, kept)
    assert unmap_grant(machine, 2, FREE, mapped.handle) == GrantStatus.OKAY
