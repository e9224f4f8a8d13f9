"""Channel 2 of the PIT counts as the 8254 does, and the other ports are not there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivmm.xen.pit import CHANNEL_2, CONTROL, GATE_2, OUT_2, PIT_HZ, PORT_B, REFRESH, Ports


class Clock:
    """Time that passes when told to."""

    ns = 0

    def __call__(self) -> int:
        return self.ns

    def tick(self, ticks: float) -> None:
        """Goes on by ticks of the PIT."""
        self.ns += round(ticks * 1_000_000_000 / PIT_HZ)


def started(mode: int, count: int) -> tuple[Clock, Ports]:
    """A channel that counts from `count`, its gate open."""
    clock = Clock()
    ports = Ports(clock)
    ports.write(PORT_B, 1, GATE_2)
    ports.write(CONTROL, 1, 0b10_11_000_0 | mode << 1)
    ports.write(CHANNEL_2, 1, count & 0xFF)
    ports.write(CHANNEL_2, 1, count >> 8)
    return clock, ports


def counter(ports: Ports) -> int:
    return ports.read(CHANNEL_2, 1) | ports.read(CHANNEL_2, 1) << 8


def out(ports: Ports) -> bool:
    return bool(ports.read(PORT_B, 1) & OUT_2)


def test_linuxs_calibration_measures_the_time() -> None:
    """pit_calibrate_tsc: mode 0, 50 ms, polling OUT2."""
    clock, ports = started(mode=0, count=PIT_HZ // 20)
    polls = 0
    while not out(ports):
        clock.ns += 1_000_000
        polls += 1
    assert polls == 50


def test_linuxs_quick_calibration_sees_the_high_byte_count_down() -> None:
    """quick_pit_calibrate: mode 0 from 0xffff, two reads a value, the second is the high byte."""
    clock, ports = started(mode=0, count=0xFFFF)
    high_bytes = []
    for _ in range(8):
        ports.read(CHANNEL_2, 1)
        high_bytes.append(ports.read(CHANNEL_2, 1))
        clock.tick(256.01)
    assert high_bytes == list(range(0xFF, 0xF7, -1))


def test_one_shot_waits_for_its_gate() -> None:
    clock, ports = started(mode=1, count=100)
    clock.tick(200)
    assert not out(ports)
    ports.write(PORT_B, 1, 0)
    ports.write(PORT_B, 1, GATE_2)
    clock.tick(99)
    assert not out(ports)
    clock.tick(2)
    assert out(ports)


def test_a_closed_gate_stops_the_count() -> None:
    clock, ports = started(mode=0, count=1000)
    clock.tick(100.5)
    ports.write(PORT_B, 1, 0)
    clock.tick(500)
    assert counter(ports) == 900
    ports.write(PORT_B, 1, GATE_2)
    clock.tick(100.5)
    assert counter(ports) == 800


def test_rates_and_square_waves_repeat() -> None:
    clock, ports = started(mode=2, count=1000)
    clock.tick(2300.5)
    assert counter(ports) == 700
    clock, ports = started(mode=3, count=1000)
    levels = []
    for _ in range(4):
        clock.tick(250.5)
        levels.append(out(ports))
        clock.tick(250)
    assert levels == [True, False, True, False]


def test_a_latched_count_stands_until_it_is_read() -> None:
    clock, ports = started(mode=0, count=0x8000)
    ports.write(CONTROL, 1, 0b10_00_0000)
    clock.tick(100)
    assert counter(ports) == 0x8000
    ports.write(CONTROL, 1, 0b11_01_1000)  # read back: latch the count of channel 2
    clock.tick(100.5)
    assert counter(ports) == 0x8000 - 100
    assert counter(ports) == 0x8000 - 200


def test_a_count_of_zero_is_65536() -> None:
    clock, ports = started(mode=0, count=0)
    clock.tick(0xFFFF)
    assert not out(ports)
    clock.tick(2)
    assert out(ports)


def test_refresh_toggles_and_the_gate_reads_back() -> None:
    clock, ports = started(mode=0, count=10)
    seen = set()
    for _ in range(50):
        clock.ns += 5000
        seen.add(ports.read(PORT_B, 1) & REFRESH)
        assert ports.read(PORT_B, 1) & 3 == GATE_2
    assert seen == {0, REFRESH}


@pytest.mark.parametrize(("port", "size"), [(0x40, 1), (0xCF8, 4), (0x3F8, 1), (0x60, 1), (0xFFFF, 4)])
def test_other_ports_are_not_there(port: int, size: int) -> None:
    ports = Ports(Clock())
    ports.write(port, size, 0x1234_5678)
    assert ports.read(port, size) == (1 << 8 * size) - 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from([CHANNEL_2, CONTROL, PORT_B]),
            st.sampled_from([1, 2, 4]),
            st.one_of(st.none(), st.integers(0, (1 << 32) - 1)),
            st.integers(0, 10**12),
        ),
        max_size=30,
    )
)
def test_no_sequence_breaks_it(accesses: list[tuple[int, int, int | None, int]]) -> None:
    clock = Clock()
    ports = Ports(clock)
    for port, size, value, passed in accesses:
        clock.ns += passed
        if value is None:
            assert 0 <= ports.read(port, size) < 1 << 8 * size
        else:
            ports.write(port, size, value)
