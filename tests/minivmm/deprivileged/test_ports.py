"""Ring 3 uses the ports open to it, one may make system calls, and any other is a fault on the instruction."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from minivmm.deprivileged.events import Event, PortAccess, SystemCall, Trap, Vector
from minivmm.deprivileged.monitor import Monitor
from minivmm.deprivileged.stub import CALL_PORT, STORES_PORT, SYSCALL_PORT
from minivmm.errors import ConfigError
from minivmm.memory import GuestMemory
from tests.minivmm.deprivileged.ring3 import CODE, DATA, MONITOR, OUT, PORT, SYSCALL, UD2, Ring3

pytestmark = [pytest.mark.kvm, pytest.mark.svm_smoke]

CALL = b"\x48\x8d\x0d\x02\0\0\0" + bytes((0xE6, CALL_PORT))  # lea rcx, [rip + 2]; out CALL_PORT, al


@pytest.fixture
def closed() -> Iterator[Ring3]:
    machine = Ring3(open_ports=[PORT], call_port=True)
    try:
        yield machine
    finally:
        machine.close()


def test_an_open_port_is_open(closed: Ring3) -> None:
    assert closed.enter(OUT, rax=0x5A) == PortAccess(PORT, 1, True, b"\x5a")
    assert closed.enter(b"\xe4\x42", rax=0) == PortAccess(PORT, 1, False, b"\0")


@pytest.mark.parametrize("port", [0, 0x41, 0x43, 0x80, STORES_PORT, SYSCALL_PORT, 0x100, 0xFFFF])
@pytest.mark.parametrize("opcode", ["ec", "66ed", "ed", "ee", "66ef", "ef", "6c", "6e"])
def test_any_other_is_a_fault_on_the_instruction(closed: Ring3, port: int, opcode: str) -> None:
    code = b"\x90\xc3" + bytes.fromhex(opcode) + UD2
    closed.space.put(CODE, code)
    registers = {"rax": 0x1234, "rdx": port, "rdi": DATA, "rcx": 7}
    event = enter_at(closed, CODE + 2, rsi=DATA, **registers)
    assert event == Trap(Vector.GP, 0, 0, CODE + 2)
    assert closed.cpu.regs.rip == CODE + 2
    assert {name: getattr(closed.cpu.regs, name) for name in registers} == registers


@pytest.mark.parametrize("port", [0x41, SYSCALL_PORT])
@pytest.mark.parametrize(
    ("before", "opcode"),
    [
        ("", "e6"),
        ("", "e7"),
        ("", "66e7"),
        ("", "e4"),
        ("", "66e5"),
        ("90c3", "e6"),
        ("b066", "e6"),  # mov al, 0x66: no prefix of what follows
        ("b026", "66e7"),
        ("b0e6", "e6"),
    ],
)
def test_the_port_may_be_in_the_instruction(closed: Ring3, port: int, before: str, opcode: str) -> None:
    closed.space.put(CODE, bytes.fromhex(before + opcode) + bytes((port,)) + UD2)
    start = CODE + len(bytes.fromhex(before))
    assert enter_at(closed, start) == Trap(Vector.GP, 0, 0, start)
    assert closed.cpu.regs.rip == start


def test_a_port_makes_a_system_call(closed: Ring3) -> None:
    closed.space.put(CODE, CALL + b"\x48\xff\xc0" + CALL + SYSCALL + UD2)  # inc rax between the first two
    end = CODE + len(CALL)
    flags = 0x8D5 | 0x202  # CF PF AF ZF SF OF
    assert enter_at(closed, CODE, rax=1, rflags=flags, r11=77) == SystemCall(end)
    regs = closed.cpu.regs
    assert (regs.rip, regs.rcx, regs.rax, regs.r11, regs.rflags & 0xFFFF) == (end, end, 1, 77, flags)
    assert closed.cpu.run() == SystemCall(end + 3 + len(CALL))
    assert regs.rax == 2
    assert closed.cpu.run() == SystemCall(end + 3 + len(CALL) + 2)
    assert closed.cpu.run() == Trap(Vector.UD, 0, 0, end + 3 + len(CALL) + 2)


def test_the_call_port_read_is_a_fault_and_without_it_there_is_none(closed: Ring3, ring3: Ring3) -> None:
    assert closed.enter(bytes((0xE4, CALL_PORT))) == Trap(Vector.GP, 0, 0, CODE)
    assert ring3.enter(CALL, rax=9) == PortAccess(CALL_PORT, 1, True, b"\x09")


def test_a_call_that_comes_back_to_nowhere_is_a_fault_there(closed: Ring3) -> None:
    assert closed.enter(bytes((0xE6, CALL_PORT)), rcx=1 << 60) == SystemCall(1 << 60)
    assert closed.cpu.run() == Trap(Vector.GP, 0, 0, 1 << 60)


@pytest.mark.parametrize("port", [-1, 0x1_0000])
def test_a_port_that_cannot_be_is_refused(port: int) -> None:
    memory = GuestMemory(16 << 20)
    with pytest.raises(ConfigError, match="out of range"):
        Monitor(memory, MONITOR, open_ports=[port])
    memory.close()


def enter_at(ring3: Ring3, address: int, **registers: int) -> Event:
    """Runs what is there already."""
    cpu = ring3.cpu
    cpu.root, cpu.regs.rip = ring3.space.root, address
    for name, value in registers.items():
        setattr(cpu.regs, name, value)
    return cpu.run()
