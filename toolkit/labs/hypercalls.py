"""What a paravirtual kernel asks for, where a kernel on a bare machine just does it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from toolkit.labs.counting import BenchMachine, Counting, Counts, difference, do_work
from toolkit.labs.domains import MEMORY, LabDomain, hypervisor
from toolkit.labs.host import Host
from toolkit.labs.registry import lab
from toolkit.labs.verdict import Check, Table, Verdict

WORKLOAD = "ptemod"
BATCHES = 4
UPDATES = 64  # page-table entries that the guest lab_hypercalls changes in each way
NULL_CALLS = 2000
ENOSYS = 38
Exits = Counts


class Way(NamedTuple):
    """One way to ask for UPDATES changes: how many calls, and what every page shows afterwards."""

    title: str
    calls: int
    shows: int


WAYS = {
    "single": Way("64 × update_va_mapping", UPDATES, 2),
    "multicall": Way("multicall of 64 × update_va_mapping", 1, 1),
    "list": Way("mmu_update with a list of 64", 1, 2),
}


@lab("hypercalls", idea="a paravirtual kernel asks for what a bare-metal kernel does, and asks for many things at once")
def hypercalls(host: Host) -> Verdict:
    """Claim: a paravirtual kernel executes no privileged instruction. It makes a hypercall for each page-table entry it
    changes, many at once in one exit where it can wait for the answers; what Xen has no call for is -ENOSYS.
    Experiment: the same tiny kernel boots and changes 64 page-table entries, as a bare machine and as a domain: their
    exits side by side. Then 64 changes one by one, in a multicall, and in a list, the exits of each counted; and a
    hypercall that does not exist.
    Source: Barham et al., Xen and the Art of Virtualization, SOSP 2003, 3.1 and 3.3.3; xen/include/public/xen.h.
    """
    bare, domain = _bare(host), _domain(host)
    ways, unknown = _ways(host)
    asked = domain.work["update_va_mapping"]
    trapped = {name: count for name, count in domain.total.items() if name == "instruction" or name.startswith("trap")}
    checks = (
        Check("both did the same work", bare.answer == domain.answer, f"checksum {domain.answer['checksum']}"),
        Check(
            "the domain asks once for each entry it changes",
            asked == domain.answer["ops"] and set(+domain.work) == {"update_va_mapping"},
            f"{domain.answer['ops']} changes, {asked} update_va_mapping",
        ),
        Check(
            "the bare machine's kernel changes its entries itself",
            not +bare.work,
            f"{sum(bare.work.values())} exits to the VMM",
        ),
        Check("the domain executes nothing privileged", not trapped, f"{sum(trapped.values())} traps"),
        *ways,
        unknown,
    )
    tables = (
        _side_by_side("the whole run: boot, work, end", bare.total, domain.total),
        _side_by_side(f"{domain.answer['ops']} page-table entries changed", bare.work, domain.work),
    )
    return Verdict(checks, tables, _costs(host))


# -- the same work in both worlds


class Run(NamedTuple):
    """The bench guest's `run ptemod`. `work`: exits of the work alone. `answer`: its operations and checksum."""

    total: Exits
    work: Exits
    answer: Mapping[str, object]


def _bare(host: Host) -> Run:
    import guest_os
    from minivmm import Machine

    console = Counting()
    with Machine(guest_os.image("bench"), memory=MEMORY, console=console) as machine:
        return _run(machine, console, host, lambda: machine.exits)


def _domain(host: Host) -> Run:
    import guest_os
    from minivmm import XenMachine

    console = Counting()
    with XenMachine(guest_os.image("bench", "xen"), memory=MEMORY, console=console) as machine:
        return _run(machine, console, host, lambda: machine.exits)


def _run(machine: BenchMachine, console: Counting, host: Host, exits: Callable[[], Mapping[str, int]]) -> Run:
    """Both runs are the same but for the number of batches, so what the lines themselves cost goes away."""
    console.counted = lambda: _own(exits())
    (marker, work), result = do_work(machine, console, WORKLOAD, (0, BATCHES), host.deadline)
    answer = {key: work.answer.get(key) for key in ("ops", "checksum")}
    return Run(_own(result.exits), difference(work.counts, marker.counts), answer)


def _own(exits: Mapping[str, int]) -> Exits:
    """Without those that came from outside: a timer's or a signal's interruption of whatever was running."""
    return Counter({name: count for name, count in exits.items() if name not in ("interrupted", "intr")})


def _side_by_side(title: str, bare: Exits, domain: Exits) -> Table:
    """The largest first, each side for itself."""
    left, right = ([*(f"{name}: {count}" for name, count in side.most_common()), "none"] for side in (bare, domain))
    height = max(len(bare), len(domain), 1)
    rows = [
        (left[index] if index < max(len(bare), 1) else "", right[index] if index < max(len(domain), 1) else "")
        for index in range(height)
    ]
    return Table(title, ("bare machine: exits", "domain: hypercalls"), tuple(rows))


# -- one by one, or together


def _ways(host: Host) -> tuple[list[Check], Check]:
    with hypervisor() as machine:
        guest = LabDomain(machine, "lab_hypercalls", deadline=host.deadline)
        guest.run()
        checks = []
        for name, way in WAYS.items():
            exits, result = _exits(guest, name)
            shown = guest.find("after", name).message["sum"]
            checks.append(
                Check(
                    f"{way.title}: {way.calls} exit{'s' if way.calls > 1 else ''}, and all are made",
                    exits == way.calls and result == 0 and shown == UPDATES * way.shows,
                    f"{exits} exit{'s' if exits != 1 else ''}, result {result}",
                )
            )
        _, refused = _exits(guest, "nothing")
        counted = sum(dict(guest.domain.unknown_hypercalls).values())
        unknown = Check(
            "a hypercall that does not exist is -ENOSYS, and counted",
            refused == -ENOSYS and counted == 1,
            f"result {refused}, {counted} counted",
        )
        return checks, unknown


def _exits(guest: LabDomain, step: str) -> tuple[int, int]:
    """How often the domain left ring 3 between two lines, without the second line's own hypercall; the result."""
    begun, ended = guest.find("begin", step), guest.find("end", step)
    return ended.step - begun.step - 1, int(ended.message["result"])


# -- what a call costs: for information


def _costs(host: Host) -> tuple[str, ...]:
    notes = [f"a null hypercall, by leaving ring 3: {_null_call(host, exitless=False)}"]
    if host.cpus > 1:
        notes.append(f"the same, offered in shared memory:  {_null_call(host, exitless=True)}")
    return (
        *notes,
        f"({NULL_CALLS} calls each, {host.back_end}; no exit while a CPU is spare; the verdict looks at no time)",
    )


def _null_call(host: Host, *, exitless: bool) -> str:
    with hypervisor(exitless=exitless) as machine:
        cmdline = f"null={NULL_CALLS}"
        guest = LabDomain(machine, "lab_hypercalls", deadline=host.deadline, cmdline=cmdline, traced=False)
        guest.run()
        begun, ended = guest.find("begin", "null"), guest.find("end", "null")
        mailbox = guest.domain.vcpus[0].mailbox
        answered = mailbox.answered if mailbox is not None else 0
        return f"{(ended.at - begun.at) / NULL_CALLS / 1000:.2f} µs, {answered} of them without an exit"
