"""A kick gets a vCPU back from ring 3, and costs the guest nothing, wherever it lands."""

from __future__ import annotations

import threading
import time

import pytest

from minivmm.deprivileged.events import Interrupted, PortAccess, SoftwareInterrupt, SystemCall, Trap, Vector
from minivmm.deprivileged.stores import STORES_MAX
from minivmm.kvm.abi import Exit
from tests.minivmm.deprivileged.ring3 import CODE, DATA, LOAD, OUT, PORT, SYSCALL, UD2, UNMAPPED, USER, Ring3

pytestmark = [pytest.mark.kvm, pytest.mark.svm_smoke]

SPIN = b"\x48\xff\xc1" + b"\x48\x89\x0e" + b"\x48\x83\x3f\0" + b"\x74\xf4"
"""again: inc rcx; mov [rsi], rcx; cmp qword ptr [rdi], 0; je again"""


def test_a_guest_that_loops_is_interrupted_and_resumes_unharmed(ring3: Ring3) -> None:
    counter = ring3.memory.view(ring3.space.frame(DATA) + 8, 8).cast("Q")

    def kick_when_it_moves() -> None:
        before = counter[0]
        while counter[0] == before:
            pass
        ring3.cpu.kick()

    reached = 0
    for turn in range(20):
        kicker = threading.Thread(target=kick_when_it_moves)
        kicker.start()
        start = {"rdi": DATA, "rsi": DATA + 8, "rcx": 0, "rax": 0x77}
        event = ring3.cpu.run() if turn else ring3.enter(SPIN + OUT, **start)
        kicker.join()
        assert event == Interrupted()
        regs = ring3.cpu.regs
        assert CODE <= regs.rip < CODE + len(SPIN)
        assert regs.rcx > reached
        assert (regs.rax, regs.rdi, regs.rsi) == (0x77, DATA, DATA + 8)
        reached = regs.rcx
    ring3.space.put(DATA, b"\1")
    while isinstance(event, Interrupted):
        event = ring3.cpu.run()
    assert event == PortAccess(PORT, 1, True, b"\x77")
    assert ring3.cpu.regs.rcx == counter[0]
    counter.release()


def test_a_kick_before_the_run_counts(ring3: Ring3) -> None:
    ring3.cpu.kick()
    assert ring3.enter(UD2) == Interrupted()
    assert ring3.cpu.run() == Trap(Vector.UD, 0, 0, CODE)


def test_a_kick_counts_when_the_guest_cannot_even_be_entered(ring3: Ring3) -> None:
    ring3.enter(UD2)
    ring3.cpu.regs.rip = 1 << 60
    for _ in range(3):
        ring3.cpu.kick()
        assert ring3.cpu.run() == Interrupted()
        assert ring3.cpu.run() == Trap(Vector.GP, 0, 0, 1 << 60)


def test_a_kick_while_io_is_completed_is_not_lost(ring3: Ring3) -> None:
    assert ring3.enter(b"\xe4\x42" + UD2, rax=0) == PortAccess(PORT, 1, False, b"\0")
    ring3.cpu.kick()
    ring3.cpu.answer(b"\5")
    assert ring3.cpu.run() == Interrupted()
    assert ring3.cpu.run() == Trap(Vector.UD, 0, 0, CODE + 2)
    assert ring3.cpu.regs.rax == 5


def test_a_kick_while_entries_are_stored_is_not_lost(ring3: Ring3, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, run = ring3.cpu, ring3.vcpus[0].run
    ring3.enter(UD2)

    def run_kicked() -> Exit | None:
        monkeypatch.setattr(ring3.vcpus[0], "run", run)
        cpu.kick()
        return run()

    for number in range(STORES_MAX + 1):
        address = ring3.space.frame(DATA) + 8 * number
        cpu.store_entry(address, USER, 0)
    monkeypatch.setattr(ring3.vcpus[0], "run", run_kicked)
    cpu.regs.rip = CODE
    assert cpu.run() == Interrupted()
    assert cpu.run() == Trap(Vector.UD, 0, 0, CODE)


def test_kicks_at_any_moment_lose_no_event(ring3: Ring3) -> None:
    """A thread kicks at every run while ring 3 goes round through traps and stores, which must come in order."""
    # again: inc r12; ud2; inc r12; syscall; inc r12; int 0x80; inc r12; out; jmp again
    step = b"\x49\xff\xc4"
    code = step + UD2 + step + SYSCALL + step + b"\xcd\x80" + step + OUT + b"\xeb\xea"
    expected = [
        Trap(Vector.UD, 0, 0, CODE + 3),
        SystemCall(CODE + 10),
        SoftwareInterrupt(0x80, CODE + 13),
        PortAccess(PORT, 1, True, b"\x77"),
    ]
    cpu, ready, over = ring3.cpu, threading.Semaphore(0), threading.Event()

    def kick() -> None:
        while ready.acquire() and not over.is_set():
            cpu.kick()

    kicker = threading.Thread(target=kick)
    kicker.start()
    try:
        event = ring3.enter(code, r12=0, rax=0x77)
        entry = ring3.space.entry(DATA)
        for turn in range(2000):
            for _ in range(50):
                if not isinstance(event, Interrupted):
                    break
                event = cpu.run()
            assert event == expected[turn % 4]
            assert (cpu.regs.r12, cpu.regs.rax) == (turn + 1, 0x77)
            if turn % 4 == 0:
                cpu.regs.rip += 2
                old = ring3.memory.read_u64(entry)
                cpu.store_entry(entry, old, 0x200000 + 0x1000 * (turn % 8) | USER)
            ready.release()
            event = cpu.run()
    finally:
        over.set()
        ready.release()
        kicker.join()


def test_what_an_interrupted_guest_was_about_to_meet_does_not_come_later(ring3: Ring3) -> None:
    """Interrupted, ring 3 is sent elsewhere, as for an event: no exception of where it was finds it there."""
    code, elsewhere = LOAD + b"\xeb\xfb", CODE + 0x20  # again: mov rax, [rdi]; jmp again
    fault = Trap(Vector.PF, 4, UNMAPPED, CODE)
    cpu, ready, over = ring3.cpu, threading.Semaphore(0), threading.Event()

    def kick() -> None:
        while ready.acquire() and not over.is_set():
            cpu.kick()

    kicker = threading.Thread(target=kick)
    kicker.start()
    try:
        event = ring3.enter(code.ljust(elsewhere - CODE, b"\x90") + SYSCALL, rdi=UNMAPPED)
        for _ in range(5000):
            assert event in (fault, Interrupted())
            if event == Interrupted():
                assert cpu.regs.rip == CODE
                cpu.regs.rip = elsewhere
                while (event := cpu.run()) == Interrupted():
                    pass
                assert event == SystemCall(elsewhere + len(SYSCALL))
            cpu.regs.rip = CODE
            ready.release()
            event = cpu.run()
    finally:
        over.set()
        ready.release()
        kicker.join()


def test_who_waits_after_a_kick_finds_it_outside_and_what_began_since_is_flushed(ring3: Ring3) -> None:
    """Two vCPUs spin on a page. Its entry is changed under both, as a shootdown is: store, flush, kick, wait."""
    first, second = ring3.cpus
    ring3.enter(UD2)  # a root for the stores
    # again: mov rax, [rdi]; mov [rsi], rax; jmp again
    ring3.space.put(CODE, b"\x48\x8b\x07\x48\x89\x06\xeb\xf8")
    page, entry = DATA, ring3.space.entry(DATA)
    frames = [ring3.space.frame(DATA + 0x1000 * number) for number in range(2)]
    shown = [ring3.memory.view(ring3.space.frame(DATA + 0x3000) + 64 * number, 8).cast("Q") for number in range(2)]
    for number, frame in enumerate(frames):
        ring3.memory.write_u64(frame, number + 1)
    over, deadline = threading.Event(), time.monotonic() + 60

    def spin(number: int) -> None:
        cpu = ring3.cpus[number]
        cpu.root, cpu.regs.rip = ring3.space.root, CODE
        cpu.regs.rdi, cpu.regs.rsi = page, DATA + 0x3000 + 64 * number
        while not over.is_set():
            assert cpu.run() == Interrupted()
            lock.acquire()  # as a hypervisor's, for whoever comes out of ring 3
            lock.release()

    lock = threading.Lock()
    threads = [threading.Thread(target=spin, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(30):
            value = turn % 2 + 1
            while not all(view[0] == value and cpu.running for view, cpu in zip(shown, ring3.cpus, strict=True)):
                assert time.monotonic() < deadline
                time.sleep(0)
            with lock:
                for cpu in ring3.cpus:
                    cpu.kick()
                    cpu.wait_outside()
                    assert not cpu.running
                # Both threads wait for the lock, and nobody runs: the first may be borrowed to store.
                first.store_entry(entry, ring3.memory.read_u64(entry), frames[turn % 2 ^ 1] | USER)
                first.apply_stores()
                second.flush()
    finally:
        over.set()
        for cpu in ring3.cpus:
            cpu.kick()
        for thread in threads:
            thread.join()
        for view in shown:
            view.release()


def test_a_vcpu_that_does_not_run_is_not_waited_for(ring3: Ring3) -> None:
    assert not ring3.cpu.running
    ring3.cpu.kick()
    ring3.cpu.wait_outside()
    assert ring3.enter(UD2) == Interrupted()


def test_a_flush_while_ring_3_runs_counts_for_the_next_run(ring3: Ring3) -> None:
    counter = ring3.memory.view(ring3.space.frame(DATA) + 8, 8).cast("Q")

    def flush_when_it_moves() -> None:
        while not counter[0]:
            pass
        assert ring3.cpu.running
        ring3.cpu.flush()
        ring3.cpu.kick()

    flusher = threading.Thread(target=flush_when_it_moves)
    flusher.start()
    assert ring3.enter(SPIN + OUT, rdi=DATA, rsi=DATA + 8, rcx=0) == Interrupted()
    flusher.join()
    entry = ring3.space.entry(DATA + 0x1000)
    ring3.memory.write_u64(entry, 0)  # not through store_entry: hardware has the old one cached until the flush
    ring3.cpu.forget_page(entry & -0x1000)
    assert ring3.enter(b"\x48\x8b\x07" + UD2, rdi=DATA + 0x1000) == Trap(Vector.PF, 4, DATA + 0x1000, CODE)
    counter.release()
