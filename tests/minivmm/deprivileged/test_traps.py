"""Every way out of ring 3 arrives as what it is, with exact registers, and ring 3 goes on where it is told to."""

from __future__ import annotations

import random

import pytest

from minivmm.deprivileged.events import (
    Event,
    MmioAccess,
    PortAccess,
    SoftwareInterrupt,
    Stopped,
    SystemCall,
    Trap,
    Vector,
)
from minivmm.deprivileged.monitor import Selector
from minivmm.deprivileged.state import RFLAGS_RING3
from minivmm.kvm import abi
from tests.minivmm.deprivileged.ring3 import (
    CODE,
    DATA,
    LOAD,
    NO_EXECUTE,
    OUT,
    PORT,
    READ_ONLY,
    STORE,
    SYSCALL,
    UD2,
    UNMAPPED,
    USER,
    Ring3,
)

pytestmark = [pytest.mark.kvm, pytest.mark.svm_smoke]

RF, TF = 1 << 16, 1 << 8
NAMES = [field[0] for field in abi.kvm_regs._fields_]
PRIVILEGED = {
    "cli": b"\xfa",
    "sti": b"\xfb",
    "hlt": b"\xf4",
    "mov rax, cr0": b"\x0f\x20\xc0",
    "mov cr3, rax": b"\x0f\x22\xd8",
    "rdmsr": b"\x0f\x32",
    "wrmsr": b"\x0f\x30",
    "clts": b"\x0f\x06",
    "invlpg [rdi]": b"\x0f\x01\x3f",
    "lgdt [rdi]": b"\x0f\x01\x17",
}
PRESENT, WRITE, BY_USER, FETCH = 1, 2, 4, 16  # of a page fault's error code (SDM 3A figure 4-12)


def registers(ring3: Ring3) -> dict[str, int]:
    return {name: getattr(ring3.cpu.regs, name) for name in NAMES}


@pytest.mark.parametrize("name", PRIVILEGED)
def test_a_privileged_instruction_is_a_general_protection_fault_on_it(ring3: Ring3, name: str) -> None:
    assert ring3.enter(PRIVILEGED[name], rdi=DATA) == Trap(Vector.GP, 0, 0, CODE)
    assert ring3.cpu.regs.rip == CODE


@pytest.mark.parametrize(
    ("code", "event", "rip"),
    [
        (b"\x31\xc9\xf7\xf1", Trap(Vector.DE, 0, 0, CODE + 2), CODE + 2),  # xor ecx, ecx; div ecx
        (UD2, Trap(Vector.UD, 0, 0, CODE), CODE),
        (b"\xcc", Trap(Vector.BP, 0, 0, CODE + 1), CODE + 1),
        (b"\xcd\x03", Trap(Vector.BP, 0, 0, CODE + 2), CODE + 2),
        (b"\xcd\x80", SoftwareInterrupt(0x80, CODE), CODE + 2),
        (b"\x48\xcd\x81", SoftwareInterrupt(0x81, CODE), CODE + 3),  # with a prefix that means nothing
        (b"\xcd\x0e", SoftwareInterrupt(14, CODE), CODE + 2),
        (b"\xcd\xff", SoftwareInterrupt(0xFF, CODE), CODE + 2),
        (SYSCALL, SystemCall(CODE + 2), CODE + 2),
        (OUT, PortAccess(PORT, 1, True, b"\x5a"), CODE + 2),
        (b"\xe6\xff", PortAccess(0xFF, 1, True, b"\x5a"), CODE + 2),  # the monitor's own ports mean nothing at ring 3
        (b"\xe6\x0e", PortAccess(0x0E, 1, True, b"\x5a"), CODE + 2),
    ],
    ids=[
        "div",
        "ud2",
        "int3",
        "int-3",
        "int-80",
        "rex-int-81",
        "int-14",
        "int-ff",
        "syscall",
        "out",
        "out-ff",
        "out-0e",
    ],
)
def test_each_way_out_arrives_as_itself(ring3: Ring3, code: bytes, event: Event, rip: int) -> None:
    assert ring3.enter(code, rax=0x5A) == event
    assert (ring3.cpu.regs.rip, ring3.cpu.cs, ring3.cpu.ss) == (rip, Selector.USER64, Selector.USER_DATA)


@pytest.mark.parametrize(
    ("code", "address", "entry", "error_code"),
    [
        (LOAD, UNMAPPED, None, BY_USER),
        (STORE, UNMAPPED, None, BY_USER | WRITE),
        (b"\xff\xe7", UNMAPPED, None, BY_USER | FETCH),  # jmp rdi
        (STORE, DATA, READ_ONLY, BY_USER | WRITE | PRESENT),
        (LOAD, DATA, USER & ~4, BY_USER | PRESENT),
        (b"\xff\xe7", DATA, USER | NO_EXECUTE, BY_USER | FETCH | PRESENT),
    ],
    ids=["load", "store", "fetch", "store-read-only", "load-supervisor", "fetch-no-execute"],
)
def test_a_page_fault_tells_where_and_how(
    ring3: Ring3, code: bytes, address: int, entry: int | None, error_code: int
) -> None:
    if entry is not None:
        ring3.memory.write_u64(ring3.space.entry(DATA), ring3.space.frame(DATA) | entry)
    rip = address + 0x18 if code == b"\xff\xe7" else CODE
    assert ring3.enter(code, rdi=address + 0x18) == Trap(Vector.PF, error_code, address + 0x18, rip)


@pytest.mark.parametrize("code", [LOAD, STORE, b"\xff\xe7"], ids=["load", "store", "fetch"])
def test_ring_3_reaches_nothing_of_the_monitor(ring3: Ring3, code: bytes) -> None:
    monitor, area = ring3.monitor, ring3.monitor.cpus[0]
    forbidden = [monitor.idt_va, monitor.stub_va, area.gdt_va, area.tss_va, area.stack_va, area.stores_va]
    for address in [*forbidden, monitor.direct(0), monitor.direct(ring3.space.root)]:
        event = ring3.enter(code, rdi=address)
        assert isinstance(event, Trap)
        assert (event.vector, event.address) == (Vector.PF, address)
        assert event.error_code & (PRESENT | BY_USER) == PRESENT | BY_USER
    if code == STORE:
        assert ring3.enter(code, rdi=monitor.gate_va) == Trap(
            Vector.PF, PRESENT | WRITE | BY_USER, monitor.gate_va, CODE
        )


def test_straying_in_the_gate_is_at_most_a_system_call_of_ones_own(ring3: Ring3) -> None:
    jump = b"\xff\xe7"  # jmp rdi
    assert ring3.enter(jump, rdi=ring3.monitor.gate_va, rcx=CODE + 7) == SystemCall(CODE + 7)
    for offset in (1, 2, 1000):
        event = ring3.enter(jump, rdi=ring3.monitor.gate_va + offset)
        assert isinstance(event, Trap)
        assert event.vector == Vector.GP
    assert ring3.enter(UD2) == Trap(Vector.UD, 0, 0, CODE)


def test_ten_thousand_round_trips_keep_every_register(ring3: Ring3) -> None:
    rng = random.Random(1)
    exits = [UD2, SYSCALL, b"\xfa", b"\xcd\x80", OUT]
    ring3.enter(UD2)
    for page, code in enumerate(exits):
        ring3.space.put(CODE + 0x100 * page, code)
    regs = ring3.cpu.regs
    for count in range(10_000):
        page = count % len(exits)
        for name in NAMES:
            setattr(regs, name, rng.getrandbits(64))
        regs.rip, regs.rflags = CODE + 0x100 * page, rng.getrandbits(22) & RFLAGS_RING3 & ~TF
        expected = registers(ring3)
        expected["rflags"] |= 0x202
        if exits[page] != UD2 and exits[page] != b"\xfa":
            expected["rip"] += 2
        if exits[page] == SYSCALL:
            expected["rcx"], expected["r11"] = expected["rip"], expected["rflags"]
        event = ring3.cpu.run()
        found = registers(ring3)
        found["rflags"] &= ~RF
        if exits[page] == SYSCALL:
            found["r11"] &= ~RF
        assert found == expected, f"{count}: {event}"


def test_xens_selectors_and_bases_survive_every_way_out(ring3: Ring3) -> None:
    cpu = ring3.cpu
    for code in (UD2, SYSCALL, b"\xfa", OUT):
        ring3.enter(UD2)
        ring3.space.put(CODE, code)
        cpu.regs.rip, cpu.cs, cpu.ss = CODE, Selector.XEN_USER64, Selector.XEN_USER_DATA
        cpu.fs_base, cpu.gs_base = DATA, 0xFFFF_8880_0000_1000
        cpu.run()
        assert (cpu.cs, cpu.ss) == (Selector.XEN_USER64, Selector.XEN_USER_DATA)
        assert (cpu.fs_base, cpu.gs_base) == (DATA, 0xFFFF_8880_0000_1000)


def test_fs_and_gs_address_from_their_bases(ring3: Ring3) -> None:
    ring3.space.put(DATA, (0x1111).to_bytes(8, "little") + (0x2222).to_bytes(8, "little"))
    ring3.cpu.fs_base, ring3.cpu.gs_base = DATA, DATA + 8
    load = b"\x64\x48\x8b\x04\x25\0\0\0\0\x65\x48\x8b\x1c\x25\0\0\0\0"  # mov rax, fs:[0]; mov rbx, gs:[0]
    ring3.enter(load + UD2)
    assert (ring3.cpu.regs.rax, ring3.cpu.regs.rbx) == (0x1111, 0x2222)


def test_another_root_is_another_address_space(ring3: Ring3) -> None:
    first, second = ring3.space, ring3.address_space(1)
    for space, value in ((first, 1), (second, 2)):
        space.put(CODE, LOAD + UD2)
        space.put(DATA, value.to_bytes(8, "little"))
    for _ in range(3):
        for space, value in ((first, 1), (second, 2)):
            ring3.space = space
            ring3.enter(LOAD + UD2, rdi=DATA)
            assert ring3.cpu.regs.rax == value


def test_an_in_gets_its_answer_and_all_ones_without_one(ring3: Ring3) -> None:
    code = b"\xe4\x42\xe5\x43" + UD2  # in al, 0x42; in eax, 0x43
    assert ring3.enter(code, rax=0) == PortAccess(0x42, 1, False, b"\0")
    with pytest.raises(ValueError, match="2 bytes"):
        ring3.cpu.answer(b"xx")
    ring3.cpu.answer(b"\x77")
    assert (ring3.cpu.regs.rax, ring3.cpu.regs.rip) == (0x77, CODE + 2)
    access = ring3.cpu.run()
    assert isinstance(access, PortAccess)
    assert (access.port, access.size) == (0x43, 4)
    assert ring3.cpu.run() == Trap(Vector.UD, 0, 0, CODE + 4)
    assert ring3.cpu.regs.rax == 0xFFFF_FFFF


def test_a_string_of_outs_arrives_whole(ring3: Ring3) -> None:
    ring3.space.put(DATA, b"paravirtual")
    event = ring3.enter(b"\xf3\x6e" + UD2, rsi=DATA, rcx=11, rdx=PORT, rflags=2)  # rep outsb
    data = b""
    while isinstance(event, PortAccess):
        data += event.data
        event = ring3.cpu.run()
    assert (data, event) == (b"paravirtual", Trap(Vector.UD, 0, 0, CODE + 2))
    assert (ring3.cpu.regs.rcx, ring3.cpu.regs.rsi) == (0, DATA + 11)


def test_an_address_without_memory_is_a_device_access(ring3: Ring3) -> None:
    ring3.memory.write_u64(ring3.space.entry(DATA), 0x8000_0000 | USER)
    assert ring3.enter(STORE + LOAD + UD2, rdi=DATA + 8, rax=7) == MmioAccess(0x8000_0008, True, b"\7" + bytes(7))
    access = ring3.cpu.run()
    assert isinstance(access, MmioAccess)
    assert (access.address, access.is_write) == (0x8000_0008, False)
    ring3.cpu.answer(b"\x55" * 8)
    assert ring3.cpu.run() == Trap(Vector.UD, 0, 0, CODE + 6)
    assert ring3.cpu.regs.rax == 0x5555_5555_5555_5555


def test_a_single_step_is_a_debug_trap(ring3: Ring3) -> None:
    assert ring3.enter(b"\x90\x90", rflags=TF) == Trap(Vector.DB, 0, 0, CODE + 1)


def test_a_state_the_cpu_would_refuse_is_the_guests_fault(ring3: Ring3) -> None:
    cpu = ring3.cpu
    ring3.enter(UD2)
    cpu.regs.rip = 1 << 60
    assert cpu.run() == Trap(Vector.GP, 0, 0, 1 << 60)
    cpu.regs.rip, cpu.cs = CODE, 0x1233
    assert cpu.run() == Trap(Vector.GP, 0x1230, 0, CODE)
    cpu.cs, cpu.ss = Selector.USER64, Selector.MONITOR_DATA
    assert cpu.run() == Trap(Vector.GP, Selector.MONITOR_DATA, 0, CODE)
    cpu.ss, cpu.regs.rflags = Selector.USER_DATA, 0xFFFF_FFFF_FFFF_FFFF & ~TF
    assert cpu.run() == Trap(Vector.UD, 0, 0, CODE)


def test_a_root_without_the_monitor_stops_with_the_reason(ring3: Ring3) -> None:
    ring3.memory.write_u64(ring3.space.root + 8 * ring3.monitor.slot, 0)
    event = ring3.enter(UD2)
    assert isinstance(event, Stopped)
    assert "installed" in event.reason
