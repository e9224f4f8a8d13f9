"""A page-table entry changed by the VMM counts from the next instruction of ring 3 on, whichever way it changed."""

from __future__ import annotations

import random

import pytest

from minivmm.deprivileged.events import Event, PortAccess, Trap, Vector
from minivmm.deprivileged.stores import STORES_MAX
from minivmm.memory import PAGE_SIZE
from tests.minivmm.deprivileged.ring3 import (
    CODE,
    DATA,
    FRAMES,
    LOAD,
    OUT,
    PORT,
    READ_ONLY,
    STORE,
    UD2,
    USER,
    Ring3,
)

pytestmark = [pytest.mark.kvm, pytest.mark.svm_smoke]

FRAME_A, FRAME_B = FRAMES + 0x100000, FRAMES + 0x101000
LOADED = Trap(Vector.UD, 0, 0, CODE + 3)


def change(ring3: Ring3, new: int) -> None:
    """The entry of DATA becomes `new`."""
    entry = ring3.space.entry(DATA)
    ring3.cpu.store_entry(entry, ring3.memory.read_u64(entry), new)


def load(ring3: Ring3) -> Event:
    """One load from DATA, after which the translation is in whatever caches there are."""
    return ring3.enter(LOAD + UD2, rdi=DATA)


def test_a_page_comes_and_goes_and_comes(ring3: Ring3) -> None:
    ring3.memory.write_u64(FRAME_A, 0xA)
    for _ in range(5):
        change(ring3, FRAME_A | USER)
        assert load(ring3) == LOADED
        assert ring3.cpu.regs.rax == 0xA
        change(ring3, 0)
        assert load(ring3) == Trap(Vector.PF, 4, DATA, CODE)


def test_a_page_becomes_read_only_and_writable(ring3: Ring3) -> None:
    for _ in range(5):
        change(ring3, FRAME_A | USER)
        assert ring3.enter(STORE + UD2, rdi=DATA) == LOADED
        change(ring3, FRAME_A | READ_ONLY)
        assert ring3.enter(STORE + UD2, rdi=DATA) == Trap(Vector.PF, 7, DATA, CODE)
        assert load(ring3) == LOADED


def test_a_page_becomes_another_frame(ring3: Ring3) -> None:
    ring3.memory.write_u64(FRAME_A, 0xA)
    ring3.memory.write_u64(FRAME_B, 0xB)
    for frame, value in [(FRAME_A, 0xA), (FRAME_B, 0xB)] * 5:
        change(ring3, frame | USER)
        assert load(ring3) == LOADED
        assert ring3.cpu.regs.rax == value


def test_a_whole_table_is_exchanged(ring3: Ring3) -> None:
    other = ring3.address_space(1)
    for space, value in ((ring3.space, 1), (other, 2)):
        space.put(CODE, LOAD + UD2)
        space.put(DATA, value.to_bytes(8, "little"))
    entry, cpu = ring3.space.directory_entry, ring3.cpu
    for table, value in [(ring3.space.table, 1), (other.table, 2)] * 5:
        cpu.store_entry(entry, ring3.memory.read_u64(entry), table | USER)
        assert load(ring3) == LOADED
        assert cpu.regs.rax == value
    cpu.store_entry(entry, other.table | USER, 0)
    assert ring3.cpu.run() == Trap(Vector.PF, 0x14, CODE + 3, CODE + 3)


def test_a_page_changed_while_another_root_runs_is_changed_when_its_own_runs_again(ring3: Ring3) -> None:
    first, second = ring3.space, ring3.address_space(1)
    ring3.memory.write_u64(FRAME_A, 0xA)
    ring3.memory.write_u64(FRAME_B, 0xB)
    for frame, value in [(FRAME_A, 0xA), (FRAME_B, 0xB)] * 5:
        ring3.space = first
        change(ring3, frame | USER)
        ring3.space = second
        load(ring3)
        ring3.space = first
        assert load(ring3) == LOADED
        assert ring3.cpu.regs.rax == value


def test_the_last_of_several_changes_before_a_run_counts(ring3: Ring3) -> None:
    ring3.memory.write_u64(FRAME_B, 0xB)
    change(ring3, FRAME_A | USER)
    load(ring3)
    for new in (0, FRAME_A | READ_ONLY, 0, FRAME_B | USER):
        change(ring3, new)
    assert load(ring3) == LOADED
    assert ring3.cpu.regs.rax == 0xB


def test_more_changes_than_the_list_holds(ring3: Ring3) -> None:
    """Two tables are filled, exchanged for other frames in one go, and every page read."""
    cpu, memory, space = ring3.cpu, ring3.memory, ring3.space
    code = b"\x48\x8b\x07" + OUT + b"\x48\x81\xc7\0\x10\0\0\xeb\xf2"  # again: mov rax, [rdi]; out; add rdi, 4096; jmp
    count = 900
    assert count > STORES_MAX
    memory.write_u64(space.directory_entry + 8, space.table + PAGE_SIZE | USER)
    for page in range(count):
        memory.write_u64(FRAMES + PAGE_SIZE * (200 + page), page)
    for turn in range(2):
        for page in range(count):
            entry = space.entry(DATA) + 8 * page
            shown = count - 1 - page if turn else page
            cpu.store_entry(entry, memory.read_u64(entry), FRAMES + PAGE_SIZE * (200 + shown) | USER)
        event = ring3.enter(code, rdi=DATA)
        for page in range(count):
            assert isinstance(event, PortAccess)
            assert cpu.regs.rax == (count - 1 - page if turn else page)
            event = cpu.run()


def test_stores_keep_every_register(ring3: Ring3) -> None:
    rng = random.Random(2)
    ring3.enter(UD2)
    names = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r11", "r15")
    for turn in range(50):
        values = {name: rng.getrandbits(64) for name in names}
        for name, value in values.items():
            setattr(ring3.cpu.regs, name, value)
        ring3.cpu.fs_base = DATA
        change(ring3, (FRAME_A, FRAME_B)[turn % 2] | USER)
        assert ring3.cpu.run() == Trap(Vector.UD, 0, 0, CODE)
        assert {name: getattr(ring3.cpu.regs, name) for name in names} == values
        assert ring3.cpu.fs_base == DATA


def test_stores_do_not_run_over_an_access_that_waits(ring3: Ring3) -> None:
    load(ring3)
    assert isinstance(ring3.enter(b"\xe4\x42" + LOAD + UD2, rdi=DATA, rax=0), PortAccess)  # in al, 0x42
    ring3.memory.write_u64(FRAME_B, 0xB)
    change(ring3, FRAME_B | USER)
    with pytest.raises(ValueError, match="waits"):
        ring3.cpu.apply_stores()
    ring3.cpu.answer(b"\x77")
    assert ring3.cpu.regs.rax == 0x77
    assert ring3.cpu.run() == Trap(Vector.UD, 0, 0, CODE + 5)
    assert ring3.cpu.regs.rax == 0xB


def test_an_entry_that_was_not_present_is_not_stored_twice(ring3: Ring3) -> None:
    ring3.memory.write_u64(ring3.space.entry(DATA), 0)
    assert load(ring3) == Trap(Vector.PF, 4, DATA, CODE)
    before = ring3.cpu.stores
    change(ring3, FRAME_A | USER)
    assert load(ring3) == LOADED
    assert ring3.cpu.stores == before
    change(ring3, ring3.memory.read_u64(ring3.space.entry(DATA)))  # accessed by now
    assert load(ring3) == LOADED
    assert ring3.cpu.stores == before
    assert ring3.enter(OUT) == PortAccess(PORT, 1, True, ring3.memory.read(FRAME_A, 1))
