"""A page the VMM rewrites while KVM knows it as a page table is, once forgotten, what it says now and nothing else."""

from __future__ import annotations

import threading
from typing import NamedTuple

import pytest

from minivmm.deprivileged.cpu import DeprivilegedCpu
from minivmm.deprivileged.events import Event, Interrupted, PortAccess, Trap, Vector
from minivmm.deprivileged.monitor import software_back_end
from minivmm.memory import PAGE_SIZE
from tests.minivmm.deprivileged.ring3 import CODE, DATA, FRAMES, LOAD, UD2, USER, Ring3

pytestmark = [pytest.mark.kvm, pytest.mark.svm_smoke]

INDEX = (7, 5, 2, 3)  # of PAGE in the tables of levels 1 to 4
PAGE = sum(index << shift for index, shift in zip(INDEX, (12, 21, 30, 39), strict=True))
LOADED = Trap(Vector.UD, 0, 0, CODE + 3)
ABSENT = Trap(Vector.PF, 4, PAGE, CODE)


class Table(NamedTuple):
    """A table on the way to PAGE, towards 0xA at first."""

    page: int
    place: int  # of its entry
    other: int  # the entry towards 0xB

    def fill(self, ring3: Ring3, entry: int) -> None:
        """The VMM rewrites the whole table: `entry` and zeros, but for what ring 3 runs in."""
        content = bytearray(PAGE_SIZE)
        if self.page == ring3.space.root:
            content[:] = ring3.memory.read(self.page, PAGE_SIZE)
        content[8 * self.place : 8 * self.place + 8] = entry.to_bytes(8, "little")
        ring3.memory.write(self.page, content)


def tables(ring3: Ring3) -> dict[int, Table]:
    """PAGE is mapped to 0xA, and tables beside those that do it would map it to 0xB."""
    memory, next_page, ways = ring3.memory, 0x20000, []
    for value in (0xA, 0xB):
        target = FRAMES + 0x100000 + PAGE_SIZE * value
        memory.write_u64(target, value)
        ways.append([target])
        for index in INDEX[:3]:
            memory.write_u64(next_page + 8 * index, target | USER)
            target, next_page = next_page, next_page + PAGE_SIZE
            ways[-1].append(target)
    first, other = ways
    memory.write_u64(ring3.space.root + 8 * INDEX[3], first[3] | USER)
    pages = [*first[1:], ring3.space.root]
    return {level: Table(pages[level - 1], INDEX[level - 1], other[level - 1] | USER) for level in range(1, 5)}


def load(ring3: Ring3) -> Event:
    return ring3.enter(LOAD + UD2, rdi=PAGE)


@pytest.mark.skipif(not software_back_end(), reason="hardware walks the tables as they are")
@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_a_software_back_end_misses_what_the_vmm_writes(ring3: Ring3, level: int) -> None:
    """Why the rest of this file: were this to fail, forget_page could go."""
    table = tables(ring3)[level]
    load(ring3)
    for entry in (table.other, 0):
        table.fill(ring3, entry)
        ring3.cpu.flush()
        assert load(ring3) == LOADED
        assert ring3.cpu.regs.rax == 0xA


@pytest.mark.parametrize("way", ["forget_page", "forget_translations"])
@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_a_forgotten_page_is_what_it_says_now(ring3: Ring3, level: int, way: str) -> None:
    table = tables(ring3)[level]
    first = ring3.memory.read_u64(table.page + 8 * table.place)
    for entry, event, value in [(first, LOADED, 0xA), (table.other, LOADED, 0xB), (0, ABSENT, None)] * 3:
        table.fill(ring3, entry)
        if way == "forget_page":
            ring3.cpu.forget_page(table.page)
        else:
            ring3.vm.forget_translations()
        assert load(ring3) == event
        assert value is None or ring3.cpu.regs.rax == value


def test_what_one_vcpu_forgets_every_vcpu_has_forgotten(ring3: Ring3) -> None:
    """Both have the old translation; the second is told of the change, and stores nothing itself."""
    table = tables(ring3)[1]
    first, second = ring3.cpus
    load(ring3)
    second.root, second.regs.rip, second.regs.rdi = ring3.space.root, CODE, PAGE
    assert second.run() == LOADED
    assert second.regs.rax == 0xA
    table.fill(ring3, table.other)
    first.forget_page(table.page)
    first.apply_stores()
    second.flush()
    second.regs.rip = CODE
    assert second.run() == LOADED
    assert (second.regs.rax, second.stores) == (0xB, 0)


def test_a_page_that_is_in_use_loses_no_store_of_another_vcpu(ring3: Ring3) -> None:
    """The stub's store is to a byte that ring 3 of another vCPU counts in."""
    counting = ring3.cpus[1]
    # again: inc byte ptr [rdi + 1]; inc rcx; cmp rcx, rsi; jne again; out 0x42, al
    ring3.space.put(CODE + 0x800, b"\xfe\x47\x01\x48\xff\xc1\x48\x39\xf1\x75\xf5\xe6\x42")
    counting.root, counting.regs.rip = ring3.space.root, CODE + 0x800
    counting.regs.rdi, counting.regs.rsi = DATA, 5_000_000
    events: list[Event] = []
    thread = threading.Thread(target=lambda: events.append(finished(counting)))
    thread.start()
    while thread.is_alive():
        ring3.cpu.forget_page(ring3.space.frame(DATA))
        ring3.enter(UD2)
    thread.join()
    assert isinstance(events[0], PortAccess)
    assert ring3.memory.read(ring3.space.frame(DATA) + 1, 1)[0] == counting.regs.rcx % 256


def finished(cpu: DeprivilegedCpu) -> Event:
    event = cpu.run()
    while isinstance(event, Interrupted):
        event = cpu.run()
    return event
