"""Rates of machines: what each has used between two looks at its figures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from minivmm.errors import VtkError
from toolkit.vm.directory import Machines
from toolkit.vm.machine import Machine, everyone
from toolkit.vm.provider import Figures, Status

RATES = {
    "cpu": "cpu_time",  # seconds of host CPU a second: 1.0 is one CPU
    "disk_read": "disk_read",  # bytes a second
    "disk_written": "disk_written",
    "disk_reads": "disk_reads",  # requests a second
    "disk_writes": "disk_writes",
    "net_received": "net_received",
    "net_sent": "net_sent",
    "exits": "exits",
}
"""Each rate, and the counter of Figures it is taken from."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One machine at one moment."""

    name: str
    status: Status
    figures: Figures
    at: float  # time.monotonic()


@dataclass(frozen=True, slots=True)
class Sample:
    """One machine over a period. A rate is None when the counter is not known, or began anew meanwhile."""

    name: str
    status: Status
    figures: Figures
    rates: dict[str, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As --json prints it."""
        return {
            "name": self.name,
            "state": self.status.state.value,
            "pid": self.status.pid,
            "figures": asdict(self.figures),
            "rates": self.rates,
        }


def read_all(machines: Machines) -> list[Reading]:
    """All machines, asked at the same time; nothing known of one that is not up or does not answer."""
    from concurrent.futures import ThreadPoolExecutor

    def read(found: tuple[Machine, Status]) -> Reading:
        machine, status = found
        figures = Figures()
        if status.state.is_up:
            try:
                figures = machine.figures()
            except VtkError:
                figures = Figures()  # ended meanwhile, or its provider has none
        return Reading(machine.name, status, figures, time.monotonic())

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(read, everyone(machines)))


def sample(before: list[Reading], now: list[Reading]) -> list[Sample]:
    """What happened between two looks."""
    earlier = {reading.name: reading for reading in before}
    return [
        Sample(reading.name, reading.status, reading.figures, _rates(earlier.get(reading.name), reading))
        for reading in now
    ]


def samples(machines: Machines, interval: float) -> Iterator[list[Sample]]:
    """One sample each `interval` seconds, for ever; the first after one interval, for it has rates too."""
    before = read_all(machines)
    while True:
        time.sleep(interval)
        now = read_all(machines)
        yield sample(before, now)
        before = now


def _rates(before: Reading | None, now: Reading) -> dict[str, float | None]:
    same = before is not None and before.status.pid == now.status.pid
    rates: dict[str, float | None] = {}
    for name, counter in RATES.items():
        first = getattr(before.figures, counter) if before is not None and same else None
        last = getattr(now.figures, counter)
        known = before is not None and first is not None and last is not None and last >= first
        rates[name] = (last - first) / max(1e-9, now.at - before.at) if known and before is not None else None
    return rates
