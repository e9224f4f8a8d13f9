"""The frame table by example: each rule of Barham et al. 2003, 3.3 once, with Xen's error."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator

import pytest

from minivmm.errors import ConfigError
from minivmm.memory import GuestMemory
from minivmm.xen.abi import Domid
from minivmm.xen.errors import HypercallError
from minivmm.xen.frame_owners import INVALID_M2P_ENTRY
from minivmm.xen.frame_words import OWNER, REF_SHIFT, PageType
from minivmm.xen.frames import FrameTable
from minivmm.xen.page_tables import PageTables
from minivmm.xen.recount import recount

P, W, U, A, D = 1, 2, 4, 0x20, 0x40
FIRST = 0x100


class Machine:
    """4 MiB with one domain, number 1, whose frames `table` and on are a tree mapping `data` at virtual address 0."""

    def __init__(self) -> None:
        self.memory = GuestMemory(4 << 20)
        self.frames = FrameTable(self.memory, range(FIRST, 0x400))
        self.tables = PageTables(self.frames)
        self.l4, self.l3, self.l2, self.l1, self.data = (self.frames.allocate(1) for _ in range(5))
        for table, target in ((self.l4, self.l3), (self.l3, self.l2), (self.l2, self.l1), (self.l1, self.data)):
            self.put(table, 0, target << 12 | P | W)

    def put(self, mfn: int, slot: int, entry: int) -> None:
        self.memory.write_u64(mfn << 12 | slot << 3, entry)

    def entry(self, mfn: int, slot: int) -> int:
        return self.memory.read_u64(mfn << 12 | slot << 3)


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    assert recount(machine.tables) == []
    machine.memory.close()


def refused(number: int, call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(HypercallError) as error:
        call(*arguments)
    assert error.value.errno == number


def test_a_fresh_machine_gives_its_lowest_frames_in_order(machine: Machine) -> None:
    assert [machine.l4, machine.l3, machine.data] == [FIRST, FIRST + 1, FIRST + 4]
    assert machine.frames.frames_of(1) == list(range(FIRST, FIRST + 5))
    assert machine.frames.m2p_mfns == range(0x3FE, 0x400)


def test_a_machine_without_room_for_its_own_table_is_refused() -> None:
    with pytest.raises(ConfigError):
        FrameTable(GuestMemory(1 << 20), range(16, 17))


def test_pinning_the_root_checks_and_counts_the_whole_tree(machine: Machine) -> None:
    machine.tables.pin(1, machine.l4, PageType.L4)
    assert machine.tables.describe(machine.l1) == f"mfn {machine.l1:#x}: domain 1, L1"
    assert machine.tables.describe(machine.data) == f"mfn {machine.data:#x}: domain 1, writable"
    assert machine.entry(machine.l1, 0) == machine.data << 12 | P | W | U
    machine.tables.unpin(1, machine.l4)
    assert machine.tables.describe(machine.data) == f"mfn {machine.data:#x}: domain 1, unused"


def test_a_page_table_cannot_be_mapped_writable(machine: Machine) -> None:
    machine.tables.pin(1, machine.l4, PageType.L4)
    refused(errno.EBUSY, machine.tables.mmu_update, 1, machine.l1 << 12 | 8, machine.l1 << 12 | P | W)
    machine.tables.mmu_update(1, machine.l1 << 12 | 8, machine.l1 << 12 | P)  # read-only it may


def test_a_writable_frame_cannot_become_a_page_table(machine: Machine) -> None:
    machine.tables.pin(1, machine.l4, PageType.L4)
    refused(errno.EBUSY, machine.tables.pin, 1, machine.data, PageType.L1)
    machine.tables.mmu_update(1, machine.l1 << 12, 0)
    machine.tables.pin(1, machine.data, PageType.L1)


def test_a_frame_of_nobody_and_of_another_cannot_be_mapped_or_read_through(machine: Machine) -> None:
    machine.tables.pin(1, machine.l4, PageType.L4)
    other = machine.frames.allocate(2)
    for mfn in (other, other + 1, 0, machine.frames.m2p_mfns.start, 0x400, (1 << 40) - 1):
        for bits in (P, P | W):
            refused(errno.EPERM, machine.tables.mmu_update, 1, machine.l1 << 12 | 8, mfn << 12 | bits)
        refused(errno.EINVAL, machine.tables.new_baseptr, 1, mfn)
        refused(errno.EINVAL, machine.tables.mmu_update, 1, mfn << 12, 0)


def test_a_granted_frame_can_be_mapped_and_outlives_its_owner(machine: Machine) -> None:
    machine.tables.pin(1, machine.l4, PageType.L4)
    other = machine.frames.allocate(2)
    here = machine.l1 << 12 | 8
    refused(errno.EPERM, machine.tables.mmu_update, 1, here, other << 12 | P | W)
    machine.tables.map_granted(1, here, other << 12 | P | W | U)
    for address in (here, machine.l1 << 12 | 16):  # a grant is no leave to map it in another way or place
        refused(errno.EPERM, machine.tables.mmu_update, 1, address, other << 12 | P)
    assert machine.tables.destroy(2) == [other]
    machine.tables.mmu_update(1, machine.l1 << 12 | 8, 0)
    assert machine.frames.frames_of(2) == []


@pytest.mark.parametrize("bit", [3, 4, 7, 40, 51])
@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_reserved_bits_are_refused_at_every_level(machine: Machine, level: int, bit: int) -> None:
    table = (machine.l1, machine.l2, machine.l3, machine.l4)[level - 1]
    entry = machine.entry(table, 0)
    machine.put(table, 1, entry | 1 << bit)
    number = errno.EPERM if level == 1 and bit >= 40 else errno.EINVAL
    refused(number, machine.tables.pin, 1, machine.l4, PageType.L4)
    machine.put(table, 1, 0)
    machine.tables.pin(1, machine.l4, PageType.L4)
    refused(number, machine.tables.mmu_update, 1, table << 12 | 8, entry | 1 << bit)


def test_no_mapping_of_a_guest_is_global(machine: Machine) -> None:
    machine.put(machine.l1, 1, machine.data << 12 | P | 1 << 8)
    machine.tables.pin(1, machine.l1, PageType.L1)
    machine.tables.mmu_update(1, machine.l1 << 12 | 16, machine.data << 12 | P | 1 << 8)
    assert machine.entry(machine.l1, 1) == machine.entry(machine.l1, 2) == machine.data << 12 | P | U
    machine.put(machine.l2, 0, 1 << 8 | P | machine.l1 << 12)
    refused(errno.EINVAL, machine.tables.pin, 1, machine.l2, PageType.L2)


def test_a_recursive_page_table_is_refused(machine: Machine) -> None:
    machine.put(machine.l4, 511, machine.l4 << 12 | P)
    refused(errno.EBUSY, machine.tables.pin, 1, machine.l4, PageType.L4)


def test_the_hypervisors_slots_are_filled_by_the_hypervisor_only(machine: Machine) -> None:
    installed: list[int] = []
    machine.frames.install_hypervisor_slots = installed.append
    machine.put(machine.l4, 256, 0xDEAD000 | P)
    machine.put(machine.l4, 271, 0xDEAD000 | P)
    machine.tables.pin(1, machine.l4, PageType.L4)
    assert installed == [machine.l4]
    assert machine.entry(machine.l4, 256) == machine.entry(machine.l4, 271) == 0
    for slot in (256, 271):
        refused(errno.EINVAL, machine.tables.mmu_update, 1, machine.l4 << 12 | slot << 3, 0)
    machine.tables.new_baseptr(1, machine.l4)
    refused(errno.EINVAL, machine.tables.update_va_mapping, 1, 0xFFFF_8000_0000_0000, 0)
    refused(errno.EINVAL, machine.tables.update_va_mapping, 1, 0x8000_0000_0000, 0)


def test_a_root_in_use_stays_one_after_it_is_unpinned(machine: Machine) -> None:
    machine.tables.pin(1, machine.l4, PageType.L4)
    machine.tables.new_baseptr(1, machine.l4)
    machine.tables.new_user_baseptr(1, machine.l4, vcpu=1)
    machine.tables.unpin(1, machine.l4)
    refused(errno.EBUSY, machine.tables.pin, 1, machine.l4, PageType.L1)
    machine.tables.update_va_mapping(1, 0x5000, machine.data << 12 | P)
    assert machine.entry(machine.l1, 5) == machine.data << 12 | P | U
    machine.tables.new_user_baseptr(1, 0, vcpu=1)
    machine.tables.release_vcpu(1, 0)
    machine.tables.pin(1, machine.l1, PageType.L2 - 1)


def test_preserve_ad_keeps_what_the_processor_noted(machine: Machine) -> None:
    machine.tables.pin(1, machine.l1, PageType.L1)
    entry = machine.entry(machine.l1, 0)
    machine.put(machine.l1, 0, entry | A | D)
    machine.tables.mmu_update(1, machine.l1 << 12 | 2, entry & ~W)
    assert machine.entry(machine.l1, 0) == entry & ~W | A | D
    machine.tables.mmu_update(1, machine.l1 << 12, entry)
    assert machine.entry(machine.l1, 0) == entry


def test_machphys_is_the_owners_to_set_and_forgotten_with_the_frame(machine: Machine) -> None:
    slot = (machine.frames.m2p_mfns.start << 12) + 8 * machine.data
    machine.tables.mmu_update(1, machine.data << 12 | 1, 7)
    assert machine.memory.read_u64(slot) == 7
    refused(errno.EINVAL, machine.tables.mmu_update, 2, machine.data << 12 | 1, 8)
    machine.frames.free(1, machine.data)
    assert machine.memory.read_u64(slot) == INVALID_M2P_ENTRY


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_an_emulated_store_of_any_size_is_an_update(machine: Machine, size: int) -> None:
    machine.tables.pin(1, machine.l1, PageType.L1)
    entry = machine.entry(machine.l1, 0)
    stored: list[tuple[int, int, int]] = []
    machine.frames.store_entry = lambda address, old, new: stored.append((address, old, new))
    machine.tables.emulate_store(1, machine.l1 << 12, (entry | A) & (1 << 8 * size) - 1, size)
    assert stored == [(machine.l1 << 12, entry, entry | A)]
    refused(errno.EINVAL, machine.tables.emulate_store, 1, machine.data << 12, 0, size)
    refused(errno.EINVAL, machine.tables.emulate_store, 1, (machine.l1 << 12) + 1, 0, 2 * size)
    refused(errno.EINVAL, machine.tables.emulate_store, 1, machine.l1 << 12, 0, 3)


def test_a_descriptor_table_is_checked_and_read_only(machine: Machine) -> None:
    gdt = machine.frames.allocate(1)
    machine.put(gdt, 1, 0x00AF9B000000FFFF)  # 64-bit code, ring 0
    machine.tables.pin(1, machine.l1, PageType.L1)
    machine.tables.set_gdt(1, [gdt], 2)
    assert machine.entry(gdt, 1) == 0x00AFFB000000FFFF  # ring 3
    refused(errno.EBUSY, machine.tables.mmu_update, 1, machine.l1 << 12 | 8, gdt << 12 | P | W)
    refused(errno.EBUSY, machine.tables.mmu_update, 1, gdt << 12, 0)
    refused(errno.EINVAL, machine.tables.update_descriptor, 1, gdt << 12, 0x0000EC0000080000)  # a call gate
    machine.tables.update_descriptor(1, gdt << 12 | 16, 0x00CF93000000FFFF)
    assert machine.entry(gdt, 2) == 0x00CFF3000000FFFF
    refused(errno.EINVAL, machine.tables.set_gdt, 1, [gdt] * 15, 14 * 512 + 1)
    refused(errno.EINVAL, machine.tables.set_gdt, 1, [], 1)
    machine.tables.set_gdt(1, [], 0)
    machine.tables.mmu_update(1, gdt << 12, 0)


def test_a_frame_changes_its_type_only_after_the_processors_forgot_it(machine: Machine) -> None:
    seen: list[tuple[int, str]] = []
    machine.frames.forget = lambda mfn: seen.append((mfn, machine.tables.describe(mfn)))
    machine.tables.pin(1, machine.l1, PageType.L1)
    machine.tables.mmu_update(1, machine.l1 << 12, 0)
    seen.clear()
    machine.tables.pin(1, machine.data, PageType.L1)
    assert seen == [(machine.data, f"mfn {machine.data:#x}: domain 1, unused")]


def test_destroying_a_domain_returns_every_count_to_zero(machine: Machine) -> None:
    free = machine.frames.free_frames
    machine.tables.pin(1, machine.l4, PageType.L4)
    machine.tables.new_baseptr(1, machine.l4)
    machine.tables.set_ldt(1, [machine.frames.allocate(1)], vcpu=3)
    machine.frames.free(1, machine.data)  # still mapped
    assert machine.tables.destroy(1) == []
    assert machine.frames.free_frames == free + 5
    for mfn in range(FIRST, FIRST + 6):
        assert machine.frames.state[mfn] & OWNER == Domid.INVALID
        assert machine.frames.state[mfn] >> REF_SHIFT == 0
        assert not any(machine.memory.read(mfn << 12, 4096))


def test_a_recount_notices_a_lost_reference(machine: Machine) -> None:
    machine.tables.pin(1, machine.l4, PageType.L4)
    machine.put(machine.l1, 9, machine.data << 12 | P | W | U)
    assert [fault.split(":")[0] for fault in recount(machine.tables)] == [f"mfn {machine.data:#x}"] * 2
    machine.put(machine.l1, 9, 0)


def test_a_full_l1_is_validated_by_counting_each_mapping_once(machine: Machine) -> None:
    for slot in range(512):
        machine.put(machine.l1, slot, machine.frames.allocate(1) << 12 | P | (W if slot % 8 else 0))
    fastest = 1.0
    for _ in range(50):
        start = time.perf_counter()
        machine.frames.take(1, machine.l1, PageType.L1)
        fastest = min(fastest, time.perf_counter() - start)
        machine.frames.drop_typed(machine.l1)
    print(f"{fastest * 1e6:.0f} us for 512 mappings")
    machine.tables.pin(1, machine.l1, PageType.L1)
    assert sum(machine.frames.state[mfn] >> REF_SHIFT for mfn in machine.frames.frames_of(1)) == 517 + 512 + 1
