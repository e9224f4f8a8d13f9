"""Two hostile domains, every hypercall, and the rules; the same search must find seeded mistakes."""

from __future__ import annotations

import random
import struct
import threading
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from minivmm.errors import GuestError
from minivmm.outcome import EndOfRun, Outcome
from minivmm.xen import traps
from minivmm.xen.calls import TABLE, call
from minivmm.xen.hypercall_abi import Hypercall
from minivmm.xen.hypervisor import M2P_VIRT
from minivmm.xen.recount import recount
from minivmm.xen.vcpu import VirtualCpu
from tests.minivmm.xen.hypercall_guests import Guests, walk
from tests.minivmm.xen.hypercall_machine import DATA, GRANT_TABLE, SCRATCH, at_page
from tests.minivmm.xen.hypercall_mistakes import MISTAKES, SELDOM, Mistake
from tests.minivmm.xen.hypercall_model import PAGE, WORD
from tests.minivmm.xen.hypercall_world import FRAMES, Machine, StillCpu

SEEDS, STEPS = 60, 200  # of a search for a mistake
FUZZED_CALLS = 20_000
MOST_ACCESSES = 100_000  # to memory, of one call: a list through all that a small domain has mapped


def hunt() -> None:
    for seed in range(SEEDS):
        walk(seed, STEPS)


def test_two_hostile_domains_get_what_the_rules_give_them() -> None:
    run_state_machine_as_test(
        Guests,
        settings=settings(
            max_examples=15,
            stateful_step_count=40,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_walks_that_find_the_mistakes_find_none_without() -> None:
    for seed in range(5):
        walk(seed, STEPS)


@pytest.mark.slow
def test_none_of_the_walks_finds_anything_without_a_mistake() -> None:
    for seed in range(10 * SEEDS):
        walk(seed, STEPS)


@pytest.mark.parametrize(
    "mistake",
    [pytest.param(m, id=m.name, marks=[pytest.mark.slow] if m.name in SELDOM else []) for m in MISTAKES],
)
def test_a_seeded_mistake_is_found(monkeypatch: pytest.MonkeyPatch, mistake: Mistake) -> None:
    mistake.make(monkeypatch)
    with pytest.raises((AssertionError, LookupError, ValueError, TypeError, struct.error, RecursionError, GuestError)):
        hunt()


# -- bytes and registers without any sense


def test_random_structures_and_registers_end_in_nothing_but_errors() -> None:
    """No exception but the domain's end, a bounded number of memory accesses a call, and right counts afterwards."""
    machine, choice = Machine(), random.Random(1)
    numbers = [*TABLE, *TABLE, Hypercall.IRET, *range(64), 1 << 31]
    domains = [machine.seat(), machine.seat()]
    for step in range(FUZZED_CALLS):
        seat = step // 64 % 2
        domain = domains[seat] = domains[seat] or machine.seat()
        assert domain is not None
        ready = [vcpu for vcpu in domain.vcpus if vcpu.up]
        vcpu = choice.choice(ready)
        if not step % 32:
            fill_with_nonsense(choice, vcpu)
        before = machine.memory.accesses
        machine.core.current = vcpu
        try:
            make_any_call(choice, vcpu, choice.choice(numbers))
            machine.core.shoot_down()
            time_goes_on(choice, machine, vcpu)
        except EndOfRun:
            machine.core.current = None
            machine.destroy(domain)
            domains[seat] = None
        assert machine.memory.accesses - before < MOST_ACCESSES
        machine.core.current = None
        if not step % 100:
            assert recount(machine.core.tables) == []
    for domain in domains:
        if domain is not None:
            machine.destroy(domain)
    assert recount(machine.core.tables) == []
    assert machine.core.frames.free_frames == machine.at_start
    assert not +machine.core.frames.held
    machine.close()


def nonsense(choice: random.Random, vcpu: VirtualCpu) -> int:
    """A number that means something at times."""
    mfn = choice.choice((*FRAMES, *vcpu.domain.mfns))
    return choice.choice(
        (
            *(choice.randrange(8), choice.randrange(64), choice.getrandbits(16), choice.getrandbits(32)),
            *(choice.getrandbits(64), WORD, 0, 1, vcpu.domain.domid, 0x7FF0, mfn, mfn, mfn << 12, mfn << 12 | 7),
            *(at_page(choice.randrange(20)), at_page(SCRATCH) + choice.randrange(4 * PAGE), M2P_VIRT + 8 * mfn),
        )
    )


def fill_with_nonsense(choice: random.Random, vcpu: VirtualCpu) -> None:
    """The pages its kernel keeps structures in, where it still has them. Bytes, or fields of different widths."""
    words = [nonsense(choice, vcpu) for _ in range(48)]
    for page in (*range(SCRATCH, DATA + 4), GRANT_TABLE):
        size, code = choice.choice(((1, "B"), (2, "H"), (4, "I"), (8, "Q"), (8, "Q")))
        values = [value & (1 << 8 * size) - 1 for value in words]
        raw = struct.pack(f"<{512 // size}{code}", *choice.choices(values, k=512 // size)) * (PAGE // 512)
        try:
            vcpu.pages.write(at_page(page), raw)
        except GuestError:
            continue


def make_any_call(choice: random.Random, vcpu: VirtualCpu, number: int) -> None:
    arguments = [nonsense(choice, vcpu) for _ in range(6)]
    if choice.randrange(2):
        arguments[choice.randrange(2)] = at_page(SCRATCH) + choice.randrange(0, 4 * PAGE, 64)
    if choice.randrange(2):
        arguments[choice.randrange(3)] = choice.randrange(20)
    if number == Hypercall.IRET:
        vcpu.regs.rsp = at_page(SCRATCH) + choice.randrange(4 * PAGE)
        traps.iret(vcpu)
        vcpu.enter_kernel()
        return
    result = call(vcpu, number, tuple(arguments))
    assert isinstance(result, int)
    assert -200 < result < 1 << 64


def time_goes_on(choice: random.Random, machine: Machine, vcpu: VirtualCpu) -> None:
    """Timers fire, and the areas a domain asked for are written."""
    if vcpu.blocked:
        vcpu.wake()
    machine.core.current = None
    cast(Any, machine.core.clock).time += choice.getrandbits(choice.randrange(30))
    cast(Any, machine.core.timers)._call_due()
    vcpu.update_time(force=True)
    vcpu.set_runstate(choice.randrange(4))


# -- what takes long, or piles up


def long_list(guests: Guests) -> int:
    """The virtual address of 512 GiB of a domain's memory, all of it one page of one request: three tables do it."""
    cpu = guests.caller(0)
    assert cpu
    state = guests.state
    top, middle, low, page = [mfn for mfn in state.owner if state.idle(cpu[0], mfn)][:4]
    request = (page << 12 | 1, 7)  # the page's own entry of the machine-to-physical table
    tables = ((low, page << 12 | 7), (middle, low << 12 | 7))
    for mfn, word in (*tables, (top, middle << 12 | 7)):
        guests.memory.write(mfn << 12, struct.pack("<Q", word) * 512)
    guests.memory.write(page << 12, struct.pack("<QQ", *request) * 256)
    core = guests.core
    core.tables.mmu_update(cpu[0], state.roots[cpu[0], "kernel0"] << 12, top << 12 | 7)
    return 0


@pytest.mark.parametrize("number", [Hypercall.MMU_UPDATE, Hypercall.MULTICALL])
def test_the_longest_list_lets_others_in_and_ends_with_its_domain(number: int) -> None:
    guests = Guests()
    guests.begin(False)
    machine, core = guests.machine, guests.core
    domid = guests.seats[0]
    assert domid
    address, domain = long_list(guests), core.domains[domid]
    done = at_page(DATA)
    core.lock.release()  # as a vCPU's thread holds it: once
    other = threading.Thread(target=machine.stop, args=(domain,))
    other.start()
    core.current = domain.vcpus[0]
    assert call(domain.vcpus[0], number, (address, 1 << 24, done, 0x7FF0)) == 0
    core.current = None
    assert domain.end is not None
    assert domain.end.outcome == Outcome.INTERRUPTED
    assert domain.hypercalls["mmu_update"] + domain.hypercalls["multicall"] == 1
    core.lock.acquire()
    other.join()
    for living in list(core.domains.values()):
        machine.destroy(living)
    machine.close()


def test_a_console_write_is_no_longer_than_what_is_kept() -> None:
    machine = Machine()
    domain = machine.seat()
    assert domain
    assert call(domain.vcpus[0], Hypercall.CONSOLE_IO, (0, (1 << 32) - 1, at_page(SCRATCH))) == -7  # E2BIG
    machine.destroy(domain)
    machine.close()


def test_timers_set_anew_for_ever_cost_no_memory() -> None:
    machine = Machine()
    domain = machine.seat()
    assert domain
    for timeout in range(5000):
        assert call(domain.vcpus[0], Hypercall.SET_TIMER_OP, (1 << 61 | timeout,)) == 0
    assert len(cast(Any, machine.core.timers)._heap) < 200
    machine.destroy(domain)
    machine.close()


def test_polls_of_one_multicall_count_once() -> None:
    machine = Machine()
    domain = machine.seat()
    assert domain
    vcpu = domain.vcpus[0]
    poll, calls = at_page(DATA), at_page(SCRATCH)
    vcpu.pages.write(poll, struct.pack("<QI4xQI", poll + 24, 1, 0, 9))
    vcpu.pages.write(calls, struct.pack("<8Q", Hypercall.SCHED_OP, 0, 3, poll, 0, 0, 0, 0) * 2)
    machine.core.current = vcpu
    assert call(vcpu, Hypercall.MULTICALL, (calls, 2)) == 0
    machine.core.current = None
    assert domain.polling == 1
    vcpu.wake()
    assert domain.polling == 0
    machine.destroy(domain)
    machine.close()


def test_a_vcpu_that_runs_is_not_asked_for_its_time() -> None:
    guests = Guests()
    guests.begin(True)
    domain = guests.core.domains[guests.seats[0] or 0]
    first, second = domain.vcpus
    assert second.up
    second.inside = True
    assert cast(StillCpu, second.cpu).vcpu is second  # whose tsc() asserts that it is outside
    assert call(first, Hypercall.VCPU_OP, (1, 1, 0)) == 0  # VCPUOP_up
    second.inside = False
    guests.teardown()
