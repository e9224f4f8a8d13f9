"""One bit from one domain to another: what an interrupt is on Xen."""

from __future__ import annotations

from typing import Any, NamedTuple

from toolkit.labs.domains import ExperimentBroken, LabDomain, hypervisor
from toolkit.labs.host import Host
from toolkit.labs.registry import lab
from toolkit.labs.verdict import Check, Table, Verdict

EINVAL = 22
TIMER_MS = 20
CLOSED_PORT = 60
BITS = ("pending", "mask", "selected", "upcall")


class State(NamedTuple):
    """What a port's domain sees: the port's bits in evtchn_pending and evtchn_mask, its word's in evtchn_pending_sel,
    and evtchn_upcall_pending; how many events its handler has had."""

    pending: int
    mask: int
    selected: int
    upcall: int
    handled: int


def quiet(handled: int) -> State:
    """Nothing there."""
    return State(0, 0, 0, 0, handled)


def delivered(handled: int) -> State:
    """Selected for the upcall, which waits until the kernel lets events in."""
    return State(1, 0, 1, 1, handled)


class Observed(NamedTuple):
    """One step: who did what, what should be seen, what was."""

    who: str
    command: str
    meaning: str
    expected: State
    seen: State

    @property
    def holds(self) -> bool:
        """Whether it is as it should be, bit for bit."""
        return self.seen == self.expected


@lab("event-channels", idea="an interrupt is a bit that one domain sets for another, and that the other may mask")
def event_channels(host: Host) -> Verdict:
    """Claim: an event sets one bit at the other end of a channel and nothing else. Masked, it waits there; unmasked, it
    is selected for the upcall; a virtual CPU that sleeps wakes by it. A timer is such a bit, too.
    Experiment: two domains with a channel between them. Each does what it is told, and shows the words it shares with
    Xen after it.
    Source: Barham et al., Xen and the Art of Virtualization, SOSP 2003, 3.1; xen/include/public/event_channel.h and
    struct shared_info in xen.h.
    """
    with hypervisor(domains=2) as machine:
        a, b = (LabDomain(machine, "lab_events", deadline=host.deadline) for _ in "ab")
        for guest in (a, b):
            guest.start()
            guest.answer()
        talk = Talk({"A": a, "B": b})
        checks = _checks(talk)
    rows = tuple(
        (step.who, step.command, *map(str, step.seen), ("" if step.holds else "NOT: ") + step.meaning)
        for step in talk.steps
    )
    columns = ("domain", "does", *BITS, "handled", "meaning")
    return Verdict(checks, (Table("a channel between A and B", columns, rows),))


class Talk:
    """The steps taken so far, and the two domains that take them."""

    def __init__(self, guests: dict[str, LabDomain]) -> None:
        self.guests = guests
        self.ports: dict[str, int] = {}
        self.steps: list[Observed] = []

    def step(self, who: str, verb: str, meaning: str, expected: State) -> None:
        """`verb` on the domain's own port, and what it shows then."""
        self.note(who, verb, self.guests[who].ask(f"{verb} {self.ports.get(who, 0)}"), meaning, expected)

    def note(self, who: str, command: str, message: dict[str, Any], meaning: str, expected: State) -> None:
        """Enters what was seen after a command."""
        seen = State(*(int(message[name]) for name in State._fields))
        self.steps.append(Observed(who, command, meaning, expected, seen))


def _checks(talk: Talk) -> tuple[Check, ...]:
    """Everything done in turn, as far as the domains come."""
    try:
        _exchange(talk)
        asleep = _sleep(talk)
        refused = int(talk.guests["B"].ask(f"send {CLOSED_PORT}")["result"])
    except ExperimentBroken as broken:
        return (_every_bit(talk), Check("both domains go on to the end", False, f"{broken.message}: {broken.cause}"))
    return (
        _every_bit(talk),
        Check("who waits for an event sleeps, off the CPU", asleep, "blocked" if asleep else "not blocked"),
        Check("a port that is closed cannot send", refused == -EINVAL, f"result {refused}"),
    )


def _every_bit(talk: Talk) -> Check:
    wrong = [f"{step.who} after {step.command}: {step.seen}" for step in talk.steps if not step.holds]
    seen = "; ".join(wrong) or f"{len(talk.steps)} steps"
    return Check("every bit is what the ABI says, at every step", not wrong, seen)


def _exchange(talk: Talk) -> None:
    """A channel made, an event sent, masked, unmasked."""
    a, b = talk.guests["A"], talk.guests["B"]
    offered = a.ask(f"offer {b.domain.domid}")
    talk.ports["A"] = int(offered["port"])
    talk.note("A", "alloc_unbound", offered, "a port that B may bind to", quiet(0))
    bound = b.ask(f"bind {a.domain.domid} {talk.ports['A']}")
    talk.ports["B"] = int(bound["port"])
    talk.note("B", "bind_interdomain", bound, "binding sets it pending: one may have come before", delivered(0))
    talk.step("B", "take", "events let in: its handler runs", quiet(1))
    talk.step("B", "send", "nothing changes at its own end", quiet(1))
    talk.step("A", "show", "delivered, and not yet let in", delivered(0))
    talk.step("A", "take", "its handler has run", quiet(1))
    talk.step("A", "mask", "a store of its own, no hypercall", State(0, 1, 0, 0, 1))
    talk.step("B", "send", "again", quiet(1))
    talk.step("A", "show", "it waits behind the mask: no upcall", State(1, 1, 0, 0, 1))
    talk.step("A", "unmask", "and is delivered now", delivered(1))
    talk.step("A", "take", "its handler has run", quiet(2))


def _sleep(talk: Talk) -> bool:
    """A sleeps until B sends, then until its timer comes. Whether it did sleep."""
    a = talk.guests["A"]
    a.tell(f"wait {talk.ports['A']}")
    asleep = a.asleep()
    talk.step("B", "send", "while A sleeps in SCHEDOP_block", quiet(1))
    talk.note("A", "wait", a.answer(), "awake, its handler has run", quiet(3))
    timer = int(a.ask(f"timer {TIMER_MS}")["port"])
    woken = a.ask(f"wait {timer}")
    talk.note("A", "wait (VIRQ_TIMER)", woken, "the timer's event is one like any other", quiet(1))
    return asleep
