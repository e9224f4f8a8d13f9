"""`int n` is found with any prefixes, and nothing else is."""

from __future__ import annotations

import pytest

from minivmm.deprivileged.decode import int_n


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("cd80", (0x80, 2)),
        ("cd03 0f0b", (3, 2)),
        ("48cd80", (0x80, 3)),
        ("6667 cdff", (0xFF, 4)),
        ("66" * 13 + "cd01", (1, 15)),
        ("66" * 14 + "cd01", None),  # 16 bytes are no instruction
        ("0f0b", None),
        ("cc", None),
        ("0fcd80", None),  # bswap ebp
        ("cd", None),
        ("66", None),
        ("", None),
    ],
)
def test_int_n(code: str, found: tuple[int, int] | None) -> None:
    assert int_n(bytes.fromhex(code)) == found
