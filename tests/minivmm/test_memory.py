"""Guest memory: nothing outside it can be reached."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivmm.errors import ConfigError, GuestMemoryError
from minivmm.memory import HOLE_END, HOLE_START, MIN_SIZE, GuestMemory

MIB = 1 << 20


@pytest.mark.parametrize("size", [0, -4096, 1, MIN_SIZE - 4096, MIN_SIZE + 1, 1 << 50])
def test_a_size_that_cannot_be_is_refused(size: int) -> None:
    with pytest.raises(ConfigError):
        GuestMemory(size)


@given(address=st.integers(-(1 << 66), 1 << 66), length=st.integers(-16, 1 << 33))
def test_an_access_succeeds_exactly_when_all_its_bytes_are_ram(address: int, length: int) -> None:
    memory = GuestMemory(2 * MIB)
    inside = length >= 0 and address >= 0 and address + length <= 2 * MIB
    if inside:
        assert len(memory.view(address, length)) == length
    else:
        with pytest.raises(GuestMemoryError):
            memory.view(address, length)
        with pytest.raises(GuestMemoryError):
            memory.read(address, length)


def test_ram_beyond_the_device_hole_continues_at_4_gib() -> None:
    memory = GuestMemory(HOLE_START + 2 * MIB)
    low, high = memory.regions
    assert (low.guest_address, low.size) == (0, HOLE_START)
    assert (high.guest_address, high.size) == (HOLE_END, 2 * MIB)
    assert high.host_address == low.host_address + HOLE_START
    memory.write_u64(HOLE_END, 42)
    assert memory.read_u64(HOLE_END) == 42
    for address in (HOLE_START, HOLE_START - 4, HOLE_END - 8, HOLE_END + 2 * MIB - 4):
        with pytest.raises(GuestMemoryError):
            memory.write_u64(address, 1)


def test_a_view_is_the_guests_own_memory_and_a_read_is_a_copy() -> None:
    memory = GuestMemory(MIB)
    view, copy = memory.view(0x1000, 4), memory.read(0x1000, 4)
    memory.write(0x1000, b"abcd")
    assert bytes(view) == b"abcd"
    assert copy == bytes(4)


def test_words_are_little_endian() -> None:
    memory = GuestMemory(MIB)
    memory.write_u64(0, 0x0807060504030201)
    assert memory.read(0, 8) == bytes(range(1, 9))
    assert (memory.read_u16(1), memory.read_u32(2)) == (0x0302, 0x06050403)
    memory.write_u16(0, 0xBEEF)
    memory.write_u32(4, 0xDEADBEEF)
    assert memory.read(0, 8) == b"\xef\xbe\x03\x04\xef\xbe\xad\xde"


def test_closing_gives_the_mapping_back_when_no_view_is_left() -> None:
    memory = GuestMemory(MIB)
    memory.close()
    with pytest.raises(ValueError, match="released"):
        memory.view(0, 1)
