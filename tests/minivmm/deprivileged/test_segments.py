"""Ring 3 runs with the segments of the tables loaded, with no others, and never with what is no such segment."""

from __future__ import annotations

import struct

import pytest

from minivmm.deprivileged.events import Event, Stopped, Trap, Vector
from minivmm.deprivileged.monitor import GDT_SIZE, LDT_SIZE, Selector
from minivmm.kvm.abi import kvm_segment
from minivmm.x86 import descriptors
from tests.minivmm.deprivileged.ring3 import CODE, DATA, STACK, UD2, Ring3

pytestmark = [pytest.mark.kvm, pytest.mark.svm_smoke]

CODE64 = descriptors.gdt_entry(descriptors.code64(0, 3))
CODE32 = descriptors.gdt_entry(descriptors.code32(0, 3))
WRITABLE = descriptors.gdt_entry(descriptors.data(0, 3))
READ_ONLY = WRITABLE & ~(2 << 40)
PRESENT, LONG, DEFAULT_32, DPL3 = 1 << 47, 1 << 53, 1 << 54, 3 << 45
LDT = 4  # of a selector

TABLE = {
    1: CODE64,
    2: WRITABLE,
    3: CODE64 | DEFAULT_32,
    4: CODE64 & ~PRESENT,
    5: CODE64 & ~DPL3,
    6: READ_ONLY,
    7: WRITABLE & ~PRESENT,
    8: descriptors.gdt_entry(descriptors.tss(0)) | DPL3,
    9: CODE32,
    700: CODE64,
    701: WRITABLE,
    GDT_SIZE // 8 - 1: WRITABLE,
}


def table(entries: dict[int, int]) -> bytes:
    return struct.pack(f"<{max(entries) + 1}Q", *(entries.get(index, 0) for index in range(max(entries) + 1)))


def based(base: int) -> kvm_segment:
    """A data segment that begins at `base`."""
    return kvm_segment(base, 0xFFFF_FFFF, selector(1), descriptors.DATA_ACCESSED, 1, 3, 1, 1, 0, 1)


def selector(index: int, ldt: int = 0) -> int:
    return index << 3 | ldt | 3


def run(ring3: Ring3, cs: int, ss: int, code: bytes = UD2, **registers: int) -> Event:
    cpu = ring3.cpu
    ring3.space.put(CODE, code)
    cpu.root, cpu.cs, cpu.ss, cpu.regs.rip, cpu.regs.rsp = ring3.space.root, cs, ss, CODE, STACK
    for name, value in registers.items():
        setattr(cpu.regs, name, value)
    return cpu.run()


@pytest.mark.parametrize(("code", "stack"), [(1, 2), (700, 701), (1, GDT_SIZE // 8 - 1)])
def test_a_loaded_table_is_run_with(ring3: Ring3, code: int, stack: int) -> None:
    ring3.cpu.load_gdt(table(TABLE))
    for _ in range(2):
        assert run(ring3, selector(code), selector(stack)) == Trap(Vector.UD, 0, 0, CODE)
        assert (ring3.cpu.cs, ring3.cpu.ss) == (selector(code), selector(stack))
    assert run(ring3, Selector.XEN_USER64, selector(stack)) == Trap(Vector.UD, 0, 0, CODE)
    assert run(ring3, selector(code), Selector.XEN_USER_DATA) == Trap(Vector.UD, 0, 0, CODE)


@pytest.mark.parametrize(
    "cs",
    [0, 3, *map(selector, (2, 3, 4, 5, 6, 8, 10, 702)), 1 << 3, 1 << 3 | 1, 0xFFFF, 0x1_000B, selector(1, LDT)],
    ids=hex,
)
def test_what_is_no_code_segment_of_ring_3_is_a_fault(ring3: Ring3, cs: int) -> None:
    ring3.cpu.load_gdt(table(TABLE))
    assert run(ring3, cs, selector(2)) == Trap(Vector.GP, cs & 0xFFFC, 0, CODE)


@pytest.mark.parametrize(
    "ss",
    [0, 3, *map(selector, (1, 5, 6, 7, 8, 9, 10)), 2 << 3, Selector.MONITOR_DATA, Selector.TSS | 3, selector(2, LDT)],
    ids=hex,
)
def test_what_is_no_stack_segment_of_ring_3_is_a_fault(ring3: Ring3, ss: int) -> None:
    ring3.cpu.load_gdt(table(TABLE))
    assert run(ring3, selector(1), ss) == Trap(Vector.GP, ss & 0xFFFC, 0, CODE)


def test_linuxs_selectors_are_there_until_a_table_is_loaded_without_them(ring3: Ring3) -> None:
    linux = (Selector.USER64, Selector.USER_DATA)
    assert run(ring3, *linux) == Trap(Vector.UD, 0, 0, CODE)
    ring3.cpu.load_gdt(table({1: CODE64}))
    assert run(ring3, *linux) == Trap(Vector.GP, Selector.USER64 & ~3, 0, CODE)
    ring3.cpu.load_gdt(b"")
    assert run(ring3, *linux) == Trap(Vector.UD, 0, 0, CODE)
    assert run(ring3, selector(1), Selector.USER_DATA) == Trap(Vector.GP, 1 << 3, 0, CODE)


def test_a_smaller_table_leaves_nothing_of_the_larger_one(ring3: Ring3) -> None:
    gdt = ring3.monitor.cpus[0].gdt
    above = ring3.memory.read(gdt + GDT_SIZE, 0x2000)
    ring3.cpu.load_gdt(b"\xff" * GDT_SIZE)
    ring3.cpu.load_gdt(table({1: CODE64}))
    assert ring3.memory.read(gdt, GDT_SIZE) == table({1: CODE64}).ljust(GDT_SIZE, b"\0")
    assert ring3.memory.read(gdt + GDT_SIZE, 0x2000) == above


def test_a_stored_descriptor_counts_and_goes_with_the_table(ring3: Ring3) -> None:
    cpu = ring3.cpu
    assert run(ring3, selector(500), Selector.USER_DATA) == Trap(Vector.GP, 500 << 3, 0, CODE)
    cpu.store_descriptor(500, CODE64)
    assert run(ring3, selector(500), Selector.USER_DATA) == Trap(Vector.UD, 0, 0, CODE)
    cpu.store_descriptor(500, WRITABLE)
    assert run(ring3, selector(500), Selector.USER_DATA) == Trap(Vector.GP, 500 << 3, 0, CODE)
    assert run(ring3, Selector.USER64, selector(500)) == Trap(Vector.UD, 0, 0, CODE)
    cpu.load_gdt(table({1: CODE64}))
    assert ring3.memory.read_u64(ring3.monitor.cpus[0].gdt + 500 * 8) == 0


def test_what_is_no_table_is_refused(ring3: Ring3) -> None:
    cpu = ring3.cpu
    for bad in (b"1234567", bytes(GDT_SIZE + 8)):
        with pytest.raises(ValueError, match="no table"):
            cpu.load_gdt(bad)
    with pytest.raises(ValueError, match="no table"):
        cpu.load_ldt(bytes(LDT_SIZE + 8))
    for index in (-1, GDT_SIZE // 8, 1 << 40):
        with pytest.raises(ValueError, match="not a policy's"):
            cpu.store_descriptor(index, 0)


def test_an_ldt_is_run_with_until_there_is_none(ring3: Ring3) -> None:
    cpu = ring3.cpu
    code, stack = selector(1, LDT), selector(LDT_SIZE // 8 - 1, LDT)
    cpu.load_ldt(table({1: CODE64, LDT_SIZE // 8 - 1: WRITABLE}))
    assert run(ring3, code, stack) == Trap(Vector.UD, 0, 0, CODE)
    assert (cpu.cs, cpu.ss) == (code, stack)
    cpu.load_ldt(table({1: CODE64}))
    assert run(ring3, code, stack) == Trap(Vector.GP, stack & ~3, 0, CODE)
    cpu.load_ldt(b"")
    assert run(ring3, code, Selector.USER_DATA) == Trap(Vector.GP, code & ~3, 0, CODE)


def test_ring_3_loads_a_data_segment_of_the_ldt_with_its_base(ring3: Ring3) -> None:
    """As old thread libraries do: `mov fs, ax`, and thread-local storage below 4 GiB."""
    ring3.space.put(DATA + 0x100, (0x5555).to_bytes(8, "little"))
    ring3.cpu.load_ldt(table({2: descriptors.gdt_entry(based(DATA + 0x100))}))
    # mov fs, eax; mov rbx, fs:[0]
    code = b"\x8e\xe0\x64\x48\x8b\x1c\x25\0\0\0\0" + UD2
    assert run(ring3, Selector.USER64, Selector.USER_DATA, code, rax=selector(2, LDT)) == Trap(
        Vector.UD, 0, 0, CODE + 11
    )
    assert ring3.cpu.regs.rbx == 0x5555
    assert (ring3.cpu.fs_selector, ring3.cpu.fs_base) == (selector(2, LDT), DATA + 0x100)


def test_whatever_a_code_segment_is_there_is_an_event(ring3: Ring3) -> None:
    """32-bit and 16-bit code, with bases and limits: run by some back ends, refused by others."""
    for number, segment in enumerate(
        [
            descriptors.code32(0, 3),
            kvm_segment(0, 0xFFFF, 0, descriptors.CODE_ACCESSED, 1, 3, 0, 1, 0, 0),
            kvm_segment(CODE, 0xFFF, 0, descriptors.CODE_ACCESSED, 1, 3, 1, 1, 0, 0),
            kvm_segment(0, 0xFFFFFFFF, 0, 0xF, 1, 3, 0, 1, 1, 1),  # conforming
        ]
    ):
        ring3.cpu.load_gdt(table({1: descriptors.gdt_entry(segment), 2: WRITABLE}))
        event = run(ring3, selector(1), selector(2))
        assert isinstance(event, Trap | Stopped), f"{number}: {event}"
    ring3.cpu.load_gdt(b"")
    assert run(ring3, Selector.USER64, Selector.USER_DATA) == Trap(Vector.UD, 0, 0, CODE)


@pytest.mark.parametrize("name", ["ds", "es", "fs", "gs"])
def test_a_data_selector_is_what_was_set_or_null(ring3: Ring3, name: str) -> None:
    cpu = ring3.cpu
    cpu.load_gdt(table(TABLE))
    for wanted, found in [(selector(2), selector(2)), (0, 0), (3, 3), (selector(6), selector(6)), (selector(1),) * 2]:
        setattr(cpu, f"{name}_selector", wanted)
        assert getattr(cpu, f"{name}_selector") == found
        assert run(ring3, selector(1), selector(2)) == Trap(Vector.UD, 0, 0, CODE)
        assert getattr(cpu, f"{name}_selector") == found
    for bad in (selector(10), selector(4), selector(8), 0xFFFF, selector(2, LDT), Selector.MONITOR_DATA):
        setattr(cpu, f"{name}_selector", selector(2))
        setattr(cpu, f"{name}_selector", bad)
        assert getattr(cpu, f"{name}_selector") == 0


@pytest.mark.parametrize("name", ["fs", "gs"])
def test_a_selector_set_leaves_the_base_and_one_loaded_brings_its_own(ring3: Ring3, name: str) -> None:
    cpu = ring3.cpu
    cpu.load_gdt(table({**TABLE, 11: descriptors.gdt_entry(based(0x12345678))}))
    setattr(cpu, f"{name}_base", 0xFFFF_8880_0000_1000)
    load = getattr(cpu, f"load_{name}")
    for value in (selector(2), selector(11), 0):
        setattr(cpu, f"{name}_selector", value)
        assert getattr(cpu, f"{name}_base") == 0xFFFF_8880_0000_1000
    assert load(selector(4)) is None
    assert getattr(cpu, f"{name}_base") == 0xFFFF_8880_0000_1000
    for value, base in ((selector(11), 0x12345678), (0, 0), (selector(2), 0)):
        assert load(value) == base
        assert (getattr(cpu, f"{name}_selector"), getattr(cpu, f"{name}_base")) == (value, base)


def test_a_descriptor_is_the_segment_it_was_made_of() -> None:
    for segment in (
        descriptors.code64(selector(1), 3),
        descriptors.code32(selector(1), 3),
        based(0xFEDC_BA98),
        kvm_segment(0x1234_5678, 0xA_BCDE, selector(1), 2, 1, 3, 0, 1, 0, 0, 1),
        descriptors.tss(selector(1), 0x8765_4321),
    ):
        assert bytes(descriptors.segment(segment.selector, descriptors.gdt_entry(segment))) == bytes(segment)
