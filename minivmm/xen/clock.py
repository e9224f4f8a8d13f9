"""System time, and how a domain is told of it (xen.h, vcpu_time_info and shared_info's wall clock).

System time is nanoseconds since the hypervisor started, by CLOCK_MONOTONIC_RAW: like the TSC, not slewed by NTP. A
domain computes it from the TSC with what is in its vcpu_time_info, so the two are compared anew from time to time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from minivmm.memory import GuestMemory
from minivmm.xen.abi import VCPU_TIME_INFO, SharedInfo, VcpuTimeInfo

NANOSECONDS = 10**9
WRONG_NS = 1_000_000  # so far ahead of system time is no domain that computes it from a TSC of the frequency told


class Moment(NamedTuple):
    """A guest's TSC and system time at one point of time."""

    tsc: int
    system_time: int


class Clock:
    """System time. `tsc_khz` is the guests' TSC frequency."""

    def __init__(self, tsc_khz: int) -> None:
        self.tsc_khz = tsc_khz
        self._zero = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        self.mul, self.shift = tsc_scale(tsc_khz)

    def now(self) -> int:
        """System time, nanoseconds."""
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) - self._zero

    def compare(self, read_tsc: Callable[[], int], earlier: Moment | None) -> Moment:
        """The TSC and system time now. A domain that goes by it, after `earlier`, is never ahead of system time, and
        its time never goes back: but for a TSC that does not count as it should, as on an emulated machine."""
        now, tsc, after = self.now(), read_tsc(), self.now()  # in this order
        computed = self.at(earlier, tsc) if earlier is not None else 0
        if earlier is None or tsc < earlier.tsc or computed > after + WRONG_NS:
            return Moment(tsc, now)
        return Moment(tsc, max(now, computed))

    def at(self, moment: Moment, tsc: int) -> int:
        """System time at a later TSC, as a domain computes it from `moment` (xen.h, vcpu_time_info)."""
        ticks = tsc - moment.tsc
        ticks = ticks << self.shift if self.shift >= 0 else ticks >> -self.shift
        return moment.system_time + (ticks * self.mul >> 32)

    def write_time(self, memory: GuestMemory, address: int, moment: Moment) -> None:
        """Stores a vcpu_time_info at machine `address`.

        Its vCPU must not be running: the version goes up by two, and is never seen odd.
        """
        version = memory.read_u32(address) + 2 & 0xFFFF_FFFE
        info = VcpuTimeInfo(version, moment.tsc & (1 << 64) - 1, moment.system_time, self.mul, self.shift, 0)
        memory.write(address, VCPU_TIME_INFO.pack(info))

    def write_wall_clock(self, memory: GuestMemory, shared_info: int) -> None:
        """Stores the time of day at which system time was zero."""
        seconds, nanoseconds = divmod(time.time_ns() - self.now(), NANOSECONDS)
        version = memory.read_u32(shared_info + SharedInfo.WC_VERSION)
        memory.write_u32(shared_info + SharedInfo.WC_SEC, seconds & 0xFFFF_FFFF)
        memory.write_u32(shared_info + SharedInfo.WC_NSEC, nanoseconds)
        memory.write_u32(shared_info + SharedInfo.WC_SEC_HI, seconds >> 32)
        memory.write_u32(shared_info + SharedInfo.WC_VERSION, version + 2 & 0xFFFF_FFFE)


def tsc_scale(tsc_khz: int) -> tuple[int, int]:
    """tsc_to_system_mul and tsc_shift for this frequency: ns = ((tsc << shift) * mul) >> 32, shift right if negative.

    mul is kept in [2^31, 2^32), for the most of its 32 bits.
    """
    hertz, shift = tsc_khz * 1000, 0
    # ns a tick, times 2^32: halve or double ticks until it fits.
    mul = (NANOSECONDS << 32) // hertz
    while mul >= 1 << 32:
        mul, shift = mul >> 1, shift + 1
    while mul < 1 << 31:
        shift -= 1
        mul = (NANOSECONDS << 32 - shift) // hertz
    return mul, shift
