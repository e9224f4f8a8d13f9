"""Instruction semantics against an independent machine: QEMU runs the same random sequences."""

from __future__ import annotations

from pathlib import Path

import pytest

from minivmm.emulator.machine import RiscvMachine
from minivmm.outcome import Outcome
from tests.minivmm.emulator import qemu, sequences, walks

pytestmark = pytest.mark.skipif(qemu.QEMU is None, reason=qemu.REASON)


def compare(directory: Path, guest: bytes, reported: int) -> None:
    """Runs a guest here and there: both report the same, and at least `reported` bytes."""
    image = directory / "guest.bin"
    image.write_bytes(guest)
    status, theirs = qemu.run(image)
    with RiscvMachine(image, clock="instructions") as machine:
        result = machine.run(timeout=300)
    assert (status, result.outcome) == (0, Outcome.SHUTDOWN), result.detail
    assert len(theirs) >= reported
    assert [result.console[at : at + 8][::-1].hex() for at in range(0, len(result.console), 8)] == [
        theirs[at : at + 8][::-1].hex() for at in range(0, len(theirs), 8)
    ]


def test_random_sequences_leave_the_same_registers_traps_and_memory_as_in_qemu(tmp_path: Path) -> None:
    compare(tmp_path, sequences.guest(seed=1, sequences=30), 8 * 61 * 30)


def test_random_page_tables_grant_and_refuse_the_same_as_in_qemu(tmp_path: Path) -> None:
    compare(tmp_path, walks.guest(seed=1, cases=150), 8 * 4 * 150)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_many_random_sequences_leave_the_same_state_as_in_qemu(tmp_path: Path, seed: int) -> None:
    compare(tmp_path, sequences.guest(seed, sequences=200), 8 * 61 * 200)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 105))
def test_many_random_page_tables_grant_and_refuse_the_same_as_in_qemu(tmp_path: Path, seed: int) -> None:
    compare(tmp_path, walks.guest(seed, cases=1000), 8 * 4 * 1000)
