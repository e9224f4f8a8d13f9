"""Who should carry a virtio notification: the exit itself, or an ioeventfd and a thread of ours (minivmm.slots)."""

from __future__ import annotations

from benchmarks import Effort, Figure
from benchmarks.sessions import measure
from toolkit.compare.results import Status
from toolkit.compare.techniques import Hvm

INLINE = Hvm("inline", "inline", "the vCPU's thread serves the queue")
IOEVENTFD = Hvm("ioeventfd", "ioeventfd", "a thread of ours serves the queue")


def run(effort: Effort) -> list[Figure]:
    """Microseconds a virtio-blk request, both ways."""
    results = measure([INLINE, IOEVENTFD], ["blk-rand", "blk-seq"], effort)
    figures = []
    for workload in ("blk-rand", "blk-seq"):
        inline, eventfd = results["inline", workload], results["ioeventfd", workload]
        name = f"{workload}, kick served inline"
        if inline.status is not Status.OK or eventfd.status is not Status.OK:
            figures.append(Figure(name, "us", None, note=inline.reason or eventfd.reason))
            continue
        assert inline.median is not None
        assert eventfd.median is not None
        mine = (inline.median / 1e3, (inline.mad or 0.0) / 1e3)
        peer = (eventfd.median / 1e3, (eventfd.mad or 0.0) / 1e3)
        figures.append(Figure(name, "us", *mine, "by ioeventfd and irqfd", *peer))
    return figures
