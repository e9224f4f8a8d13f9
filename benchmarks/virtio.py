"""What Python adds to a disk request: kick to completion without a VM, against the bare preadv it cannot do without.

The mock driver's rings are set up once; a turn is one chain made available again and one write of QueueNotify. The
disk is in the page cache.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from benchmarks import Effort, Figure
from benchmarks.statistics import Summary, summarize
from minivmm.errors import HostError
from minivmm.virtio.block import HEADER, Block, Disk, RequestHeader, RequestType
from minivmm.virtio.driver import MockDriver
from minivmm.virtio.mmio import QUEUE_NOTIFY

DISK_SIZE = 8 << 20
SIZES = {4096: ("4 KiB", 5000), 1 << 20: ("1 MiB", 200)}  # bytes: name, requests a sample
MAX_SMALL_US = 20.0


def run(effort: Effort) -> list[Figure]:
    """Microseconds a read, and of the preadv in it."""
    figures = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "disk.img"
        path.write_bytes(os.urandom(DISK_SIZE))
        for size, (what, requests) in SIZES.items():
            ours, bare = _measure(path, size, requests, effort.rounds)
            name, added = f"virtio-blk request, {what}", f"adds {ours.median - bare.median:.1f} us"
            bound, met = (f"<= {MAX_SMALL_US:g} us", ours.median <= MAX_SMALL_US) if size == 4096 else ("", None)
            figures.append(Figure(name, "us", *ours, "preadv", *bare, bound, met, added))
    return figures


def _measure(path: Path, size: int, requests: int, rounds: int) -> tuple[Summary, Summary]:
    """Medians of whole requests and of preadv alone, in microseconds; the two take turns. Raises HostError."""
    driver = MockDriver(Block(Disk(path, read_only=True)))
    driver.start()
    queue = driver.queues[0]
    buffers = driver.buffers(HEADER.pack(RequestHeader(RequestType.IN, 0, 8)), into=(size, 1))
    head = queue.post(buffers)
    queue.kick()
    if queue.used()[0].len != size + 1:
        raise HostError("the disk did not answer", cause="; ".join(driver.transport.faults))

    def request() -> None:
        queue.post_head(head)
        driver.transport.write(QUEUE_NOTIFY, 4, 0)

    file = os.open(path, os.O_RDONLY)
    view = [driver.memory.view(buffers[1].address, size)]
    whole, bare = [], []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        for _ in range(requests):
            request()
        middle = time.perf_counter_ns()
        for _ in range(requests):
            os.preadv(file, view, 4096)
        end = time.perf_counter_ns()
        whole.append((middle - start) / requests / 1000)
        bare.append((end - middle) / requests / 1000)
    os.close(file)
    view.clear()
    driver.close()
    return summarize(whole), summarize(bare)
