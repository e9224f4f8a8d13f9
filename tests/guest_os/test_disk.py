"""The patterned disk: what Python writes is what workloads/blk.c expects."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_os import disk_pattern, write_disk


def test_a_word_is_the_product_of_its_offset_xor_the_mark() -> None:
    assert disk_pattern(0) == 0x76746B
    assert disk_pattern(8) == ((8 * 0x9E3779B97F4A7C15) % 2**64) ^ 0x76746B


@given(st.integers(min_value=0, max_value=2**61))
def test_every_word_fits_64_bits(index: int) -> None:
    assert 0 <= disk_pattern(8 * index) < 2**64


@pytest.mark.parametrize("size", [512, 4096, (1 << 20) - 512, (1 << 20) + 512])
def test_every_word_of_a_written_disk_tells_its_offset(tmp_path: Path, size: int) -> None:
    write_disk(tmp_path / "disk", size)
    data = (tmp_path / "disk").read_bytes()
    assert len(data) == size
    assert list(struct.unpack(f"<{size // 8}Q", data)) == [disk_pattern(offset) for offset in range(0, size, 8)]


@pytest.mark.parametrize("size", [0, -512, 100])
def test_a_size_that_is_no_disk_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 512"):
        write_disk(tmp_path / "disk", size)
