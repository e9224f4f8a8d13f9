"""virtio-blk: the same guest file, driver and disk under minivmm and under QEMU microvm, on the same KVM."""

from __future__ import annotations

from benchmarks import Effort, Figure
from benchmarks.sessions import measure
from toolkit.compare.results import Result, Status
from toolkit.compare.techniques import BY_NAME

WORKLOADS = {"blk-rand": ("4 KiB random reads", 4096), "blk-seq": ("1 MiB sequential reads", 1 << 20)}


def run(effort: Effort) -> list[Figure]:
    """Rates in MB/s: at least QEMU's."""
    results = measure([BY_NAME["hvm"], BY_NAME["qemu-kvm"]], list(WORKLOADS), effort)
    figures = []
    for workload, (what, size) in WORKLOADS.items():
        ours, theirs = results["hvm", workload], results["qemu-kvm", workload]
        mine = _rate(ours, size)
        if mine is None:
            figures.append(Figure(f"virtio-blk, {what}", "MB/s", None, note=ours.reason))
            continue
        peer = _rate(theirs, size)
        bound = ">= 1x QEMU's rate"
        if peer is None:
            figures.append(Figure(f"virtio-blk, {what}", "MB/s", *mine, bound=bound, note=theirs.reason))
            continue
        met = mine[0] >= peer[0]
        figures.append(Figure(f"virtio-blk, {what}", "MB/s", *mine, "QEMU microvm, kvm", *peer, bound, met))
    return figures


def _rate(result: Result, size: int) -> tuple[float, float] | None:
    """MB/s and its spread, of requests of `size` bytes; None when it was not measured."""
    if result.status is not Status.OK or not result.median:
        return None
    rate = size * 1e3 / result.median
    return rate, rate * (result.mad or 0.0) / result.median
