"""The bus: every access reaches the one device that claimed the place, or nobody."""

from __future__ import annotations

import pytest

from minivmm.bus import Bus, io_word
from minivmm.errors import ConfigError
from minivmm.kvm.abi import KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT


class Recorder:
    """Answers reads with its offset, and keeps writes."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return 0x11 * (offset + 1) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))


def test_a_port_reaches_its_device_with_the_offset_in_its_window() -> None:
    bus, device = Bus(), Recorder()
    bus.add_ports(0x100, 4, device)
    bus.out_byte[io_word(KVM_EXIT_IO_OUT, 1, 0x102)](0x5A)
    assert device.writes == [(2, 1, 0x5A)]
    assert bus.in_byte[io_word(KVM_EXIT_IO_IN, 1, 0x101)]() == 0x22


def test_wide_and_string_port_accesses_arrive_whole_and_in_order() -> None:
    bus, device = Bus(), Recorder()
    bus.add_ports(0x100, 4, device)
    data = memoryview(bytearray(b"\x01\x02\x03\x04\x05\x06\x07\x08"))
    bus.port_access(io_word(KVM_EXIT_IO_OUT, 4, 0x100, 2), data)
    bus.port_access(io_word(KVM_EXIT_IO_OUT, 1, 0x103, 3), data)
    assert device.writes == [
        *((0, 4, 0x04030201), (0, 4, 0x08070605)),
        *((3, 1, 1), (3, 1, 2), (3, 1, 3)),
    ]
    bus.port_access(io_word(KVM_EXIT_IO_IN, 2, 0x101, 2), data)
    assert bytes(data[:4]) == b"\x22\0\x22\0"


def test_what_nobody_claims_reads_as_ones_and_is_counted() -> None:
    bus = Bus()
    data = memoryview(bytearray(4))
    bus.port_access(io_word(KVM_EXIT_IO_IN, 4, 0x70), data)
    bus.port_access(io_word(KVM_EXIT_IO_OUT, 1, 0x70), data)
    assert bytes(data) == b"\xff" * 4
    assert bus.mmio_read(0xFED00000, 8) == (1 << 64) - 1
    bus.mmio_write(0xFED00000, 4, 1)
    assert bus.unclaimed == {"in 0x70": 1, "out 0x70": 1, "read 0xfed00000": 1, "write 0xfed00000": 1}


def test_the_count_of_unclaimed_places_stays_bounded() -> None:
    bus = Bus()
    for address in range(0, 1 << 16, 4):
        bus.mmio_write(0xD0000000 + address, 4, 0)
    assert len(bus.unclaimed) == 64


def test_an_mmio_window_ends_where_it_says() -> None:
    bus, device = Bus(), Recorder()
    bus.add_mmio(0xFEB00200, 0x200, device)
    bus.mmio_write(0xFEB003FC, 4, 7)
    bus.mmio_write(0xFEB00400, 4, 8)
    bus.mmio_write(0xFEB001FC, 4, 9)
    assert device.writes == [(0x1FC, 4, 7)]


def test_a_place_is_claimed_once() -> None:
    bus = Bus()
    bus.add_ports(0x100, 4, Recorder())
    bus.add_mmio(0xFEB00000, 0x200, Recorder())
    with pytest.raises(ConfigError):
        bus.add_ports(0x103, 1, Recorder())
    with pytest.raises(ConfigError):
        bus.add_mmio(0xFEB00000, 0x200, Recorder())
    with pytest.raises(ConfigError):
        bus.add_mmio(0xFEB00100, 0x200, Recorder())
