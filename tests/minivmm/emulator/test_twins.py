"""Kernel code that is executed twice: modes, page tables, CSRs, atomics and traps leave the same under both engines."""

from __future__ import annotations

import pytest

from tests.minivmm.emulator.twins import Twins


def check(seed: int, rounds: int) -> None:
    twins = Twins(seed)
    try:
        for _ in range(rounds):
            twins.restart()
            for _ in range(8):
                if not twins.run(twins.rng.choice((1, 5, 30, 60))):
                    break
    finally:
        twins.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_random_kernel_code_leaves_the_same_state_under_both_engines(seed: int) -> None:
    check(seed, 60)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_much_random_kernel_code_leaves_the_same_state_under_both_engines(seed: int) -> None:
    check(seed, 200)
