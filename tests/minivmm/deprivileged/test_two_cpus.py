"""Two vCPUs of one monitor: each has its own stack and list, and entries of one are seen by the other."""

from __future__ import annotations

import threading

import pytest

from minivmm.deprivileged.cpu import DeprivilegedCpu
from minivmm.deprivileged.events import Event, SystemCall, Trap, Vector
from minivmm.deprivileged.monitor import Monitor
from minivmm.errors import ConfigError, GuestMemoryError
from minivmm.memory import GuestMemory
from tests.minivmm.deprivileged.ring3 import CODE, DATA, LOAD, MONITOR, SYSCALL, UD2, USER, Ring3

pytestmark = [pytest.mark.kvm, pytest.mark.svm_smoke]


def test_both_run_at_once_and_keep_their_registers(ring3: Ring3) -> None:
    ring3.space.put(CODE, b"\x49\xff\xc4" + UD2 + SYSCALL + b"\xeb\xf7")  # again: inc r12; ud2; syscall; jmp again
    seen: dict[int, list[Event]] = {}

    def go_round(cpu: DeprivilegedCpu, base: int) -> None:
        cpu.root, cpu.regs.rip, cpu.regs.r12 = ring3.space.root, CODE, base
        events = seen.setdefault(base, [])
        for turn in range(300):
            events += cpu.run(), Trap(Vector.UD, 0, 0, CODE + 3)
            assert cpu.regs.r12 == base + turn + 1
            cpu.regs.rip += 2
            events += cpu.run(), SystemCall(CODE + 7)

    threads = [
        threading.Thread(target=go_round, args=(cpu, base)) for cpu, base in zip(ring3.cpus, (0, 1 << 40), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for events in seen.values():
        assert len(events) == 1200
        assert events[::2] == events[1::2]


def test_an_entry_one_stores_is_what_the_other_sees_after_a_flush(ring3: Ring3) -> None:
    storing, reading = ring3.cpus
    ring3.enter(UD2)  # a root for its stores
    ring3.space.put(CODE, LOAD + UD2)
    entry, own = ring3.space.entry(DATA), ring3.space.frame(DATA)
    frames = (own, own + 0x1000)
    for value, frame in enumerate(frames):
        ring3.memory.write_u64(frame, value)
    reading.root, reading.regs.rdi = ring3.space.root, DATA
    for turn in range(20):
        storing.store_entry(entry, ring3.memory.read_u64(entry), frames[turn % 2] | USER)
        storing.apply_stores()
        reading.flush()
        reading.regs.rip = CODE
        assert reading.run() == Trap(Vector.UD, 0, 0, CODE + 3)
        assert reading.regs.rax == turn % 2


def test_a_monitor_that_cannot_be_is_refused() -> None:
    memory = GuestMemory(16 << 20)
    for base, cpus, slot in ((MONITOR + 1, 1, 261), (MONITOR, 0, 261), (MONITOR, 65, 261), (MONITOR, 1, 3)):
        with pytest.raises(ConfigError):
            Monitor(memory, base, cpus=cpus, slot=slot)
    with pytest.raises(GuestMemoryError):
        Monitor(memory, memory.size - 4096)
    memory.close()


@pytest.mark.parametrize("cpus", [1, 3])
def test_a_monitor_writes_its_own_pages_only(cpus: int) -> None:
    memory = GuestMemory(16 << 20)
    monitor = Monitor(memory, MONITOR, cpus=cpus)
    assert monitor.size == Monitor.pages(memory, cpus) * 4096
    assert not any(memory.read(0, MONITOR))
    assert not any(memory.read(MONITOR + monitor.size, memory.size - MONITOR - monitor.size))
    memory.close()
