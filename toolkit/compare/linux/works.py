"""The tables of `vtk compare --linux` and the work in each: what one operation is, and how its figure reads."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from toolkit.compare.linux.hardware import CLOCKS, CONSOLES, DISKS, MACHINES, NETWORKS

MIB = 1 << 20
SLEEP_NS = 1_000_000  # guest_os/linux/clock.c


class Figure(Enum):
    """How a measured time, or size, is said."""

    TIME = "time"
    THROUGHPUT = "throughput"  # bytes a second
    RATE = "rate"  # operations a second
    SIZE = "size"  # bytes: of memory, not of time


class Work(NamedTuple):
    """One row of a table."""

    name: str
    operation: str
    """What is done once."""
    figure: Figure = Figure.TIME
    amount: int = 1
    """Bytes an operation moves, for THROUGHPUT."""
    rate: str = ""
    """What operations a second are called, for RATE."""
    intended: int = 0
    """Nanoseconds an operation is meant to take: what is told is how much longer it takes."""


class LinuxTable(NamedTuple):
    """One table. Its first column is the baseline of the ratios."""

    name: str
    title: str
    columns: tuple[str, ...]
    works: tuple[Work, ...]

    def work(self, name: str) -> Work:
        """The row called `name`."""
        return next(work for work in self.works if work.name == name)


def together(count: int) -> tuple[Work, ...]:
    """The rows for `count` at once."""
    each = Work(f"cpu-{count}", f"a round of integer work, {count} at once: the time of each", Figure.RATE, rate="/s")
    if count == 1:
        return (each._replace(operation="a round of integer work, one alone"),)
    text = f"a round of integer work, {count} at once: what all do together"
    return (each, Work(f"cpu-{count}-all", text, Figure.RATE, rate="/s"))


TOGETHER = (1, 2, 4)
"""How many are run at once."""

TABLES = (
    LinuxTable(
        "disk",
        "Disk",
        tuple(device.name for device in DISKS),
        (
            Work("disk-read", "1 MiB read in sequence", Figure.THROUGHPUT, MIB),
            Work("disk-write", "1 MiB written in sequence", Figure.THROUGHPUT, MIB),
            Work("disk-random", "4 KiB read at a random place, one at a time", Figure.RATE, rate="IOPS"),
            Work("disk-random8", "4 KiB read at a random place, 8 jobs", Figure.RATE, rate="IOPS"),
            Work("disk-flush", "4 KiB written and flushed"),
        ),
    ),
    LinuxTable(
        "net",
        "Network",
        tuple(device.name for device in NETWORKS),
        (
            Work("net-roundtrip", "a 60-byte frame sent to the peer and back"),
            Work("net-send", "a 60-byte frame sent", Figure.RATE, rate="packets/s"),
            Work("net-receive", "a 60-byte frame received", Figure.RATE, rate="packets/s"),
            Work("net-send-large", "a 1514-byte frame sent", Figure.THROUGHPUT, 1514),
            Work("net-receive-large", "a 1514-byte frame received", Figure.THROUGHPUT, 1514),
        ),
    ),
    LinuxTable(
        "console",
        "Console",
        tuple(device.name for device in CONSOLES),
        (Work("console", "a line of 64 bytes written", Figure.THROUGHPUT, 64),),
    ),
    LinuxTable("clock", "Clocksource", CLOCKS, (Work("clock", "clock_gettime(CLOCK_MONOTONIC)"),)),
    LinuxTable(
        "machine",
        "Machine",
        MACHINES,
        (
            Work("boot", "from the start of QEMU to the first program of ours"),
            Work("overhead", "memory of QEMU, without the guest's RAM", Figure.SIZE),
            Work("sleep", "nanosleep of 1 ms: how much later it returns", intended=SLEEP_NS),
            Work("timer", "a timer set to 20 µs, its interrupt taken, its reader woken"),
        ),
    ),
    LinuxTable(
        "together",
        "Consolidation: several at once",
        ("process", "container", "microvm"),
        (
            Work("start", "from its start to its first line"),
            Work("memory", "memory it costs the host, the guest's RAM in use left out", Figure.SIZE),
            Work("guest-ram", "the guest's RAM in use", Figure.SIZE),
            *(work for count in TOGETHER for work in together(count)),
        ),
    ),
)

BY_NAME = {table.name: table for table in TABLES}
