"""Whatever a guest consists of, translated code raises no signal in the host and no exception in ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SHARES = 10
"""Processes that a million blocks are made in."""


def fuzz(seed: int, blocks: int, timeout: float) -> int:
    """How many blocks one process made. Fails where that ended otherwise than with status 0."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.minivmm.emulator.fuzz", str(seed), str(blocks)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, (seed, done.returncode, done.stderr[-2000:])
    return int(done.stdout.split()[0])


def test_random_blocks_raise_no_signal_in_the_host() -> None:
    assert fuzz(seed=1, blocks=4000, timeout=120) >= 4000


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 10 + SHARES))
def test_a_million_random_blocks_raise_no_signal_in_the_host(seed: int) -> None:
    assert fuzz(seed, 1_000_000 // SHARES, timeout=3600) >= 1_000_000 // SHARES
