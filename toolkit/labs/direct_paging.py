"""A domain's page tables are the hardware's own, and yet show it no memory but its own."""

from __future__ import annotations

import hashlib
from errno import errorcode
from typing import TYPE_CHECKING, Any, NamedTuple

from toolkit.labs.domains import LabDomain, hypervisor
from toolkit.labs.host import Host
from toolkit.labs.registry import lab
from toolkit.labs.verdict import Check, Table, Verdict

if TYPE_CHECKING:
    from minivmm.xen.hypervisor import Hypervisor

FAULT = "#PF page fault"
DONE = "done"


class Attempt(NamedTuple):
    """Something the guest lab_paging tries, Xen's answer to it, and why."""

    what: str
    answer: str
    why: str


ATTEMPTS = (
    Attempt("map a page table writable", "-EBUSY", "a frame is a table or writable, never both"),
    Attempt("store a writable mapping of a page table into it", FAULT, "tables are read-only; Xen checks each store"),
    Attempt("pin a writable page as a page table", "-EBUSY", "it is mapped writable: it cannot become a table"),
    Attempt("run on a writable page as the root", "-EBUSY", "the same for what CR3 points to"),
    Attempt("pin a page that maps the root writable", "-EBUSY", "what a table holds is checked when it becomes one"),
    Attempt("store another's frame into it by its old mapping", FAULT, "a new table has no writable translation left"),
    Attempt("map it writable while it is a table", "-EBUSY", "its type is in use"),
    Attempt("map another domain's frame", "-EPERM", "every frame has an owner"),
    Attempt("map another domain's frame writable", "-EPERM", "every frame has an owner"),
    Attempt("link another domain's frame as a page table", "-EINVAL", "every frame has an owner"),
    Attempt("write to another domain's frame by mmu_update", "-EINVAL", "every frame has an owner"),
    Attempt("take a slot of Xen's in the root", "-EINVAL", "slots 256 to 271 of every root are Xen's"),
    Attempt("map a page at an address of Xen's", "-EINVAL", "and so are the tables below them"),
    Attempt("read Xen's memory", FAULT, "mapped, if at all, for ring 0"),
)
ALLOWED = (
    Attempt("(make a page a table)", DONE, "read-only first, then pinned"),
    Attempt("(map its own frame)", DONE, "by update_va_mapping"),
    Attempt("(read it there)", DONE, "the entry is the processor's own"),
    Attempt("(take it away)", DONE, ""),
    Attempt("(store a mapping of its own frame into the table)", DONE, "the store faults; Xen checks it and makes it"),
    Attempt("(read it there again)", DONE, ""),
    Attempt("(unpin the table)", DONE, "an ordinary page again"),
    Attempt("(map the former table writable)", DONE, "and may be written to"),
)


@lab("direct-paging", idea="the guest's page tables are the processor's own: read-only to it, every change checked")
def direct_paging(host: Host) -> Verdict:
    """Claim: whatever a guest kernel does to its page tables, no frame is ever mapped writable and a page table at
    once, and none of another domain's or of Xen's is mapped at all; what it may do goes on working.
    Experiment: a kernel tries each way there is, by hypercall and by plain store, with a second domain beside it. After
    every exit each frame's uses are counted again from the page tables themselves.
    Source: Barham et al., Xen and the Art of Virtualization, SOSP 2003, 2.1.1 and 3.3.3; xen/include/public/xen.h,
    mmu_update and mmuext_op.
    """
    with hypervisor(domains=2, audit=1) as machine:
        other = LabDomain(machine, "hello", deadline=host.deadline)
        foreign = other.domain.mfns[-1]  # the last of its memory: it holds nothing, and nobody maps it twice
        memory = machine.core.memory
        memory.write(foreign << 12, b"the other domain's secret")
        before = _digest(machine, other)
        attacker = LabDomain(machine, "lab_paging", deadline=host.deadline, cmdline=f"foreign={foreign}")
        result = attacker.run()
        answers = {said.message["try"]: _answer(said.message) for said in attacker.said if "try" in said.message}
        wrong = _recount(machine)
        untouched = _digest(machine, other) == before
        unharmed = other.run()
    checks = (
        _all("every attempt is refused, with Xen's error or a fault", ATTEMPTS, answers),
        _all("what is allowed works, before and after", ALLOWED, answers),
        Check(
            "after every exit the page tables themselves agree with the books",
            not wrong and result.exit_status == 0,
            "; ".join(wrong) or f"{result.outcome.value}{': ' if result.detail else ''}{result.detail}",
        ),
        Check(
            "the other domain's memory is as it was, and the domain runs",
            untouched and unharmed.exit_status == 0 and unharmed.console.startswith(b"Hello"),
            f"{'unchanged' if untouched else 'changed'}, {unharmed.outcome.value}",
        ),
    )
    rows = tuple((tried.what, answers.get(tried.what, "not tried"), tried.why) for tried in (*ATTEMPTS, *ALLOWED))
    return Verdict(checks, (Table("a kernel against its hypervisor", ("it tries to", "Xen's answer", "why"), rows),))


def _all(statement: str, attempts: tuple[Attempt, ...], answers: dict[str, str]) -> Check:
    as_expected = sum(answers.get(attempt.what) == attempt.answer for attempt in attempts)
    return Check(statement, as_expected == len(attempts), f"{as_expected} of {len(attempts)}")


def _answer(message: dict[str, Any]) -> str:
    """What one line of the guest says, in the words of the tables above."""
    if "result" in message:
        result = int(message["result"])
        return DONE if result == 0 else f"-{errorcode.get(-result, str(-result))}"
    if "fault" in message:
        return str(message["fault"]) or DONE
    return DONE if message.get("holds") is True else "another value"


def _recount(machine: Hypervisor) -> list[str]:
    from minivmm.xen.recount import recount

    with machine.core.lock:
        return recount(machine.core.tables)


def _digest(machine: Hypervisor, guest: LabDomain) -> bytes:
    """Of all the domain's memory."""
    digest = hashlib.sha256()
    for mfn in guest.domain.mfns:
        digest.update(machine.core.memory.read(mfn << 12, 4096))
    return digest.digest()
