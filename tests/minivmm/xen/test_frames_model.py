"""Hostile domains against the rules of frame_model.py; the same search must find seeded mistakes."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from minivmm.errors import GuestError
from minivmm.xen.frames import FrameTable
from minivmm.xen.page_tables import PageTables
from tests.minivmm.xen.frame_machine import RULES, SHARES, Domains
from tests.minivmm.xen.seeded import mistaken


def walk(seed: int, steps: int = 60) -> None:
    """The same without hypothesis: cheaper a step, and evenly spread over the rules, for the mistakes below."""
    choose = random.Random(seed).choice
    machine = Domains()
    machine.two_running_domains(choose(SHARES))
    for _ in range(steps):
        name = choose(list(RULES))
        getattr(machine, name)(**{argument: choose(values) for argument, values in RULES[name].items()})
        machine.the_frame_table_is_what_the_rules_derive()
        machine.a_table_in_use_holds_what_its_domain_asked_for_as_the_rules_make_it()
        machine.a_recount_agrees()
        machine.no_frame_is_writable_and_a_table_and_none_is_a_strangers()
    machine.teardown()


def hunt() -> None:
    for seed in range(40):
        walk(seed)


def test_hostile_domains_never_break_the_frame_rules() -> None:
    run_state_machine_as_test(
        Domains,
        settings=settings(
            max_examples=50,
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
    hunt()


# A mistake is one line of one method: what it is, where, the line as it is, and as somebody might have written it.
MISTAKES: list[tuple[str, type, str, str, str]] = [
    ("a type changes while in use", FrameTable, "take", "if (word & TYPE) >> TYPE_SHIFT != page_type:", "if False:"),
    ("another's frame is taken", FrameTable, "owned", "if word & OWNER != domid:", "if False:"),
    ("no bound", FrameTable, "owned", "not 0 <= mfn < len(self.state) or", ""),
    ("another's frame is mapped", FrameTable, "take_leaf", "or self.state[mfn] & OWNER != domid", ""),
    ("a refused table stays one", FrameTable, "take", "self.state[mfn] -= BOTH", "pass"),
    ("an old table keeps references", FrameTable, "drop_typed", "self._invalidate(mfn, page_type)", "pass"),
    ("supervisor entries stay", FrameTable, "_checked_entries", "table |= present * Pte.USER", "pass"),
    ("a root is not counted", PageTables, "_new_root", "self.frames.take(cpu[0], mfn, PageType.L4)", "pass"),
    ("the old root stays counted", PageTables, "_new_root", "self.frames.drop_typed(old)", "pass"),
    ("an update is not checked", PageTables, "update_entry", "frames.take_entry(domid, value, level)", "pass"),
    ("an update keeps the old mapping", PageTables, "update_entry", "frames.drop_entry(old, level)", "pass"),
    ("a GDT is writable", PageTables, "_set_descriptors", "PageType.SEGDESC", "PageType.WRITABLE"),
    ("an update keeps the global bit", PageTables, "update_entry", "normal(value, level)", "value | Pte.USER"),
    ("a validated table keeps the global bit", FrameTable, "_checked_entries", "table &= ~(present * GLOBAL)", "pass"),
    ("Xen's slots are the guest's", FrameTable, "_checked_entries", "table &= ~HYPERVISOR_LANES", "pass"),
    (
        "Xen's slots can be updated",
        PageTables,
        "update_entry",
        "address >> 3 & ENTRIES - 1 in HYPERVISOR_SLOTS",
        "False",
    ),
    ("pinned twice", PageTables, "pin", "if self.frames.owned(domid, mfn) & PINNED:", "if False:"),
    ("unpinned twice", PageTables, "unpin", "if not word & PINNED:", "if False:"),
    ("another's table is unpinned", PageTables, "unpin", "self.frames.owned(domid, mfn)", "self.frames.state[mfn]"),
    ("a pin is not counted", PageTables, "pin", "self.frames.take(domid, mfn, level)", "pass"),
    ("a pin is not noted", PageTables, "pin", "self.frames.state[mfn] |= PINNED", "pass"),
    ("an unpinned table stays counted", PageTables, "unpin", "self.frames.drop_typed(mfn)", "pass"),
    ("a pin stays noted", PageTables, "unpin", "word & ~PINNED", "word"),
    ("a grant is entered anywhere", PageTables, "map_granted", "self._check_l1(domid, address)", "pass"),
    (
        "a granted table is writable",
        PageTables,
        "map_granted",
        "frames.take_leaf(frames.state[mfn] & OWNER, entry)",
        "pass",
    ),
    ("a grant hides the old mapping", PageTables, "map_granted", "frames.drop_entry(old, PageType.L1)", "pass"),
    ("any entry is unmapped", PageTables, "unmap_granted", "& SAME", "& 0"),
    (
        "an unmapped grant stays counted",
        PageTables,
        "unmap_granted",
        "self.frames.drop_entry(old, PageType.L1)",
        "pass",
    ),
    ("another's machphys entry", PageTables, "mmu_update", "self.frames.owned(domid, mfn)", "pass"),
]


@pytest.mark.parametrize(
    ("owner", "method", "line", "mistake"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_a_seeded_mistake_is_found(
    monkeypatch: pytest.MonkeyPatch, owner: type, method: str, line: str, mistake: str
) -> None:
    monkeypatch.setattr(owner, method, mistaken(getattr(owner, method), line, mistake))
    with pytest.raises((AssertionError, LookupError, ValueError, TypeError, GuestError)):
        hunt()
