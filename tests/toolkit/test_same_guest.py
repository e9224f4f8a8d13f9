"""Equivalence: one guest file, minivmm on KVM and QEMU's emulation, the same end and the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guest_os import image, write_disk
from minivmm import Disk, Machine
from minivmm.outcome import Outcome, RunResult
from toolkit.qemu import Accelerator, QemuMachine

pytestmark = [pytest.mark.kvm, pytest.mark.qemu]


def run_both(guest: str, timeout: float = 30.0, **config: Any) -> tuple[RunResult, RunResult]:
    with Machine(image(guest), **config) as ours:
        first = ours.run(timeout)
    with QemuMachine(image(guest), accelerator=Accelerator.TCG, **config) as theirs:
        return first, theirs.run(timeout)


@pytest.mark.parametrize(
    ("guest", "config", "outcome"),
    [
        ("hello", {"cmdline": "one two=3"}, Outcome.SHUTDOWN),
        ("hello", {"memory": 4 << 30}, Outcome.SHUTDOWN),
        ("exit", {"cmdline": "code=127"}, Outcome.EXITED),
        ("reset", {}, Outcome.RESET),
        ("halt", {}, Outcome.HALTED),
        ("triplefault", {}, Outcome.TRIPLE_FAULT),
        ("user", {}, Outcome.SHUTDOWN),
        ("selftest", {}, Outcome.SHUTDOWN),
        ("smp", {"cpus": 2, "cmdline": "cpus=2"}, Outcome.SHUTDOWN),
        ("timer", {}, Outcome.SHUTDOWN),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else None,
)
def test_a_guest_ends_the_same_and_says_the_same(guest: str, config: dict[str, Any], outcome: Outcome) -> None:
    ours, theirs = run_both(guest, **config)
    assert (ours.outcome, ours.code, ours.detail) == (theirs.outcome, theirs.code, theirs.detail)
    assert ours.outcome is outcome
    assert ours.console == theirs.console


def test_a_panic_is_the_same_outcome() -> None:
    ours, theirs = run_both("panic")  # the registers it prints may differ
    assert ours.outcome is theirs.outcome is Outcome.CRASHED
    assert ours.detail == theirs.detail


def test_the_same_drivers_find_the_same_devices(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    write_disk(disk, 1 << 20)
    ours, theirs = run_both("drivers", disks=[Disk(disk)], rng=True, virtio_console=True)
    assert ours.outcome is theirs.outcome is Outcome.SHUTDOWN
    # Two consoles share the output, and which of them is first to be read is nobody's to say.
    assert sorted(ours.console.splitlines()) == sorted(theirs.console.splitlines())
    assert b'"virtio-blk"' in ours.console
