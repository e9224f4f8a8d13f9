"""Two domains and a control domain in any order of calls, with guests scribbling on their own event words."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from errno import ESRCH
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from minivmm.memory import GuestMemory
from minivmm.xen.errors import HypercallError
from minivmm.xen.event_abi import EventOp, PortState
from minivmm.xen.events import Channel, EventChannels, EventDomain
from tests.minivmm.xen.event_model import MASK, PENDING, SELF, EventModel

DOMAINS = {0: (2, 70), 1: (3, 5), 2: (2, 130)}  # domid: vCPUs, last port
MEMORY = 1 << 20

# What calls are made of: plausible numbers and hostile ones.
NUMBERS = {
    "caller": [0, 1, 2],
    "domid": [0, 1, 2],
    "guest": [1, 2],
    "dom": [0, 1, 2, SELF, SELF, 7, 0x7FFF, 0xFFFF],
    "remote": [0, 1, 2, SELF, 7, 0xFFFF],
    "port": [*range(13), 63, 64, 70, 71, 128, 131, 4095, 4096, 2**31, 2**32 - 1],
    "pick": list(range(13)),  # 0: any port, otherwise one of the open ones
    "seldom": list(range(13)),
    "vcpu": [0, 0, 1, 2, 3, 31, 32, 2**32 - 1],
    "cpu": [0, 1, 2],
    "virq": [0, 0, 1, 1, 2, 2, 8, 13, 16, 23, 24, 2**32 - 1],
    # Where events live: vcpu_info of three vCPUs, and the words of the first ports.
    "offset": [*range(0, 192, 8), *range(8, 192, 64), *[*range(PENDING, PENDING + 18), *range(MASK, MASK + 18)] * 2],
    "value": [0, 1, 2, 0x55, 0xFF],
}
CALLS = {
    "alloc_unbound": ("caller", "dom", "remote"),
    "bind_interdomain": ("caller", "remote", "port", "pick"),
    "bind_virq": ("caller", "virq", "vcpu"),
    "bind_ipi": ("caller", "vcpu"),
    "close": ("caller", "port", "pick"),
    "send": ("caller", "port", "pick"),
    "bind_vcpu": ("caller", "port", "pick", "vcpu"),
    "unmask": ("caller", "port", "pick"),
    "reset": ("caller", "dom", "seldom"),
    "raise_virq": ("domid", "virq", "cpu"),
    "scribble": ("domid", "offset", "value"),
    "handle": ("domid", "cpu"),
    "die": ("guest", "seldom"),
    "start_again": ("guest",),
}
drawn = {name: st.sampled_from(values) for name, values in NUMBERS.items()}


def step(call: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The rule that draws what CALLS says."""
    strategies: dict[str, Any] = {name: drawn[name] for name in CALLS[call]}
    decorator: Callable[[Callable[..., None]], Callable[..., None]] = rule(**strategies)
    return decorator


class EventMachine(RuleBasedStateMachine):
    """The real channels and the model, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = GuestMemory(MEMORY)
        self.notified: list[tuple[int, int]] = []
        self.channels = EventChannels(self.memory, lambda domid, vcpu: self.notified.append((domid, vcpu)))
        self.model = EventModel(DOMAINS)
        self.where = {domid: 0x1000 * (domid + 1) for domid in DOMAINS}
        for domid, (count, last) in DOMAINS.items():
            self.admit(domid, count, last)

    def admit(self, domid: int, count: int, last: int) -> None:
        self.channels.add_domain(
            domid, vcpus=count, shared_info=self.where[domid], privileged=domid == 0, max_port=last
        )

    @initialize()
    def connect(self) -> None:
        """Not from nothing: a channel each way, one to itself, an IPI and a timer."""
        for one, other in ((1, 2), (2, 1), (2, 2)):
            self.alloc_unbound(one, SELF, other)
            self.bind_interdomain(0, 0, 0, 2)
        self.bind_ipi(2, 0)
        self.bind_virq(1, 0, 2)

    def aim(self, caller: int, port: int, pick: int) -> tuple[int, int]:
        """One of the open ports most of the time, any numbers otherwise."""
        there = sorted(self.model.vcpu)
        return there[pick % len(there)] if pick and there else (caller, port)

    def teardown(self) -> None:
        self.memory.close()

    def call(self, caller: int, op: int, layout: str, *values: int) -> int:
        """The call's errno. Anything else it raises fails the test."""
        try:
            self.channels.event_channel_op(caller, op, struct.pack(layout, *values))
        except HypercallError as error:
            return error.errno
        return 0

    def agree(self, caller: int, real: int, expected: Callable[[], int]) -> None:
        assert real == (expected() if caller in self.model.domains else ESRCH)

    @step("alloc_unbound")
    def alloc_unbound(self, caller: int, dom: int, remote: int) -> None:
        real = self.call(caller, EventOp.ALLOC_UNBOUND, "<HHI", dom, remote, 0)
        self.agree(caller, real, lambda: self.model.alloc_unbound(caller, dom, remote))

    @step("bind_interdomain")
    def bind_interdomain(self, caller: int, remote: int, port: int, pick: int) -> None:
        waiting = sorted(self.model.waiting)
        if pick and waiting:
            remote, port = waiting[pick % len(waiting)]
            caller = caller if pick == 1 else self.model.waiting[remote, port]
        real = self.call(caller, EventOp.BIND_INTERDOMAIN, "<HHII", remote, 0, port, 0)
        self.agree(caller, real, lambda: self.model.bind_interdomain(caller, remote, port))

    @step("bind_virq")
    def bind_virq(self, caller: int, virq: int, vcpu: int) -> None:
        real = self.call(caller, EventOp.BIND_VIRQ, "<III", virq, vcpu, 0)
        self.agree(caller, real, lambda: self.model.bind_virq(caller, virq, vcpu))

    @step("bind_ipi")
    def bind_ipi(self, caller: int, vcpu: int) -> None:
        real = self.call(caller, EventOp.BIND_IPI, "<II", vcpu, 0)
        self.agree(caller, real, lambda: self.model.bind_ipi(caller, vcpu))

    @step("close")
    def close(self, caller: int, port: int, pick: int) -> None:
        caller, port = self.aim(caller, port, pick)
        real = self.call(caller, EventOp.CLOSE, "<I", port)
        self.agree(caller, real, lambda: self.model.close(caller, port))

    @step("send")
    def send(self, caller: int, port: int, pick: int) -> None:
        caller, port = self.aim(caller, port, pick)
        real = self.call(caller, EventOp.SEND, "<I", port)
        self.agree(caller, real, lambda: self.model.send(caller, port))

    @step("bind_vcpu")
    def bind_vcpu(self, caller: int, port: int, pick: int, vcpu: int) -> None:
        caller, port = self.aim(caller, port, pick)
        real = self.call(caller, EventOp.BIND_VCPU, "<II", port, vcpu)
        self.agree(caller, real, lambda: self.model.bind_vcpu(caller, port, vcpu))

    @step("unmask")
    def unmask(self, caller: int, port: int, pick: int) -> None:
        caller, port = self.aim(caller, port, pick)
        real = self.call(caller, EventOp.UNMASK, "<I", port)
        self.agree(caller, real, lambda: self.model.unmask(caller, port))

    @step("reset")
    def reset(self, caller: int, dom: int, seldom: int) -> None:
        if seldom > 2:
            return
        real = self.call(caller, EventOp.RESET, "<H", dom)
        self.agree(caller, real, lambda: self.model.reset(caller, dom))

    @step("raise_virq")
    def raise_virq(self, domid: int, virq: int, cpu: int) -> None:
        if domid in self.model.domains:
            self.channels.raise_virq(domid, virq, cpu)
            self.model.raise_virq(domid, virq, cpu)

    @step("scribble")
    def scribble(self, domid: int, offset: int, value: int) -> None:
        if domid in self.model.domains:
            self.memory.write(self.where[domid] + offset, bytes([value]))
            self.model.pages[domid][offset] = value

    @step("handle")
    def handle(self, domid: int, cpu: int) -> None:
        """The guest's own: it takes the upcall, looks at every word, and leaves what is masked pending."""
        if domid in self.model.domains:
            address = self.where[domid] + 64 * cpu
            self.memory.write(address, b"\0")
            self.memory.write_u64(address + 8, 0)
            self.model.pages[domid][64 * cpu] = 0
            self.model.pages[domid][64 * cpu + 8 : 64 * cpu + 16] = bytes(8)

    @step("die")
    def die(self, guest: int, seldom: int) -> None:
        if seldom <= 2 and guest in self.model.domains:
            self.channels.remove_domain(guest)
            self.model.remove(guest)

    @step("start_again")
    def start_again(self, guest: int) -> None:
        if guest not in self.model.domains:
            self.memory.write(self.where[guest], bytes(4096))
            self.admit(guest, *DOMAINS[guest])
            self.model.domains[guest] = DOMAINS[guest]
            self.model.pages[guest] = bytearray(4096)

    @invariant()
    def memory_changed_as_predicted_and_nowhere_else(self) -> None:
        for domid, page in self.model.pages.items():
            assert self.memory.read(self.where[domid], 4096) == page, f"the page of domain {domid}"
        assert self.notified == self.model.notified

    @invariant()
    def every_port_is_what_the_model_says(self) -> None:
        for domid, (_, last) in self.model.domains.items():
            for port in [*range(min(last, 16) + 1), last]:
                argument = struct.pack("<HHIIIII", domid, 0, port, 0, 0, 0, 0)
                answer = struct.unpack("<HHIIIII", self.channels.event_channel_op(0, EventOp.STATUS, argument))
                assert answer[3:] == self.model.status((domid, port)), f"port {port} of domain {domid}"

    @invariant()
    def peers_agree_about_each_other(self) -> None:
        for domid in self.model.domains:
            for port, channel in self.channels.ports(domid):
                if channel.state == PortState.INTERDOMAIN:
                    peer = dict(self.channels.ports(channel.remote_dom))[channel.remote_port]
                    assert (peer.state, peer.remote_dom, peer.remote_port) == (PortState.INTERDOMAIN, domid, port)


def walk(seed: int, steps: int = 300) -> None:
    """A random walk without hypothesis: cheaper a step, for the mistakes below."""
    choose = random.Random(seed).choice
    machine = EventMachine()
    try:
        machine.connect()
        for _ in range(steps):
            call = choose(list(CALLS))
            getattr(machine, call)(*[choose(NUMBERS[name]) for name in CALLS[call]])
            machine.memory_changed_as_predicted_and_nowhere_else()
            machine.every_port_is_what_the_model_says()
            machine.peers_agree_about_each_other()
    finally:
        machine.teardown()


CHECKS = settings(max_examples=50, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
WALKS = 12


def test_any_sequence_of_calls_does_what_the_model_says() -> None:
    run_state_machine_as_test(EventMachine, settings=CHECKS)


def test_the_walks_that_find_the_mistakes_find_none_without() -> None:
    hunt()


def hunt() -> None:
    for seed in range(WALKS):
        walk(seed)


def _close_leaves_the_peer(self: EventChannels, domain: EventDomain, port: int) -> None:
    channel = domain.channels[port]
    if channel.state == PortState.INTERDOMAIN:
        channel.state = PortState.IPI
    ORIGINAL["_close"](self, domain, port)


def _close_leaves_the_event(self: EventChannels, domain: EventDomain, port: int) -> None:
    address = domain.shared_info + PENDING + port // 8
    before = self._memory.read(address, 1)
    ORIGINAL["_close"](self, domain, port)
    self._memory.write(address, before)


def _close_leaves_the_virq(self: EventChannels, domain: EventDomain, port: int) -> None:
    virqs = dict(domain.virqs)
    ORIGINAL["_close"](self, domain, port)
    domain.virqs = virqs


def _anyone_may_bind(self: EventChannels, caller: int, args: Any) -> Any:
    remote = self._known(caller, args.remote_dom).channels.get(args.remote_port)
    if remote and remote.state == PortState.UNBOUND:
        remote.remote_dom = caller
    return ORIGINAL["bind_interdomain"](self, caller, args)


def _an_ipi_moves(self: EventChannels, caller: int, args: Any) -> None:
    channel = self._domain(caller).channel(args.port)
    if channel and channel.state == PortState.IPI and args.vcpu < len(self._domain(caller).vcpu_info):
        channel.vcpu = args.vcpu
    else:
        ORIGINAL["bind_vcpu"](self, caller, args)


def _the_mask_is_ignored(self: EventChannels, domain: EventDomain, port: int) -> None:
    ORIGINAL["_set_pending"](self, domain, port)
    self._select(domain, domain.channels[port].vcpu, port)


def _always_the_first_vcpu(self: EventChannels, domain: EventDomain, _vcpu: int, port: int) -> None:
    ORIGINAL["_select"](self, domain, 0, port)


def _everybody_is_trusted(_self: EventChannels, _caller: int, _target: EventDomain) -> None:
    pass


def _the_sender_hears_itself(self: EventChannels, caller: int, args: Any) -> None:
    domain = self._domain(caller)
    channel = domain.channel(args.port)
    if channel and channel.state == PortState.INTERDOMAIN:
        self._set_pending(domain, args.port)
    else:
        ORIGINAL["send"](self, caller, args)


def _a_wakeup_is_lost(self: EventChannels, caller: int, args: Any) -> None:
    words = self._domain(caller).shared_info + MASK
    self._domain(caller).channel(args.port)
    if args.port in self._domain(caller).channels:
        self._atomic.test_and_clear_bit(words + args.port // 64 * 8, args.port % 64)


ORIGINAL = {
    name: getattr(EventChannels, name)
    for name in ("_close", "bind_interdomain", "bind_vcpu", "_set_pending", "_select", "send")
}
MISTAKES = {
    "a close leaves the peer connected": ("_close", _close_leaves_the_peer),
    "a close leaves the event pending": ("_close", _close_leaves_the_event),
    "a close leaves the virq bound": ("_close", _close_leaves_the_virq),
    "anyone may bind to an unbound port": ("bind_interdomain", _anyone_may_bind),
    "an IPI moves to another vCPU": ("bind_vcpu", _an_ipi_moves),
    "the mask is ignored": ("_set_pending", _the_mask_is_ignored),
    "events always go to vCPU 0": ("_select", _always_the_first_vcpu),
    "every domain is trusted": ("_permit", _everybody_is_trusted),
    "the sender hears itself": ("send", _the_sender_hears_itself),
    "unmask delivers nothing": ("unmask", _a_wakeup_is_lost),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_seeded_mistake_in_the_channels_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, wrong = MISTAKES[mistake]
    monkeypatch.setattr(EventChannels, name, wrong)
    with pytest.raises((AssertionError, KeyError, HypercallError)):
        hunt()


def _no_quota(domain: EventDomain) -> int:
    return next(port for port in range(1, 4096) if port not in domain.channels)


def _any_number_is_a_port(domain: EventDomain, port: int) -> Channel | None:
    return domain.channels.get(port)


def _any_vcpu_will_do(_domain: EventDomain, _vcpu: int) -> None:
    pass


BOUNDS = {"free_port": _no_quota, "channel": _any_number_is_a_port, "check_vcpu": _any_vcpu_will_do}


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_bound_left_out_is_found(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EventDomain, bound, BOUNDS[bound])
    with pytest.raises((AssertionError, IndexError, HypercallError)):
        hunt()
