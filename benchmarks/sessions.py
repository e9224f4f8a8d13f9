"""Guest workloads as benchmarks: the comparison's own runner, with the techniques and workloads a benchmark names."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import guest_os
from benchmarks import Effort
from minivmm.errors import HostError
from toolkit.compare.cell import Settings
from toolkit.compare.results import Result, Status
from toolkit.compare.runner import Comparison
from toolkit.compare.techniques import Bench, Technique

DISK_SIZE = 64 << 20
MEMORY = 64 << 20


def measure(
    techniques: Sequence[Technique], workloads: Sequence[str], effort: Effort, *, target: float = 0.2
) -> dict[tuple[str, str], Result]:
    """Results by (technique, workload), samples of all techniques taken in turn. Raises HostError for a failed cell."""
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as directory:
        disk = Path(directory) / "disk.img"
        guest_os.write_disk(disk, DISK_SIZE)
        bench = Bench(disk, MEMORY, lifetime=600.0)
        settings = Settings(target=target, samples=effort.rounds, budget=60.0)
        Comparison(techniques, workloads, bench, settings, results, _quietly).run()
    for result in results:
        if result.status is Status.FAILED:
            raise HostError(f"{result.workload} under {result.technique} failed", cause=result.reason)
    return {(result.technique, result.workload): result for result in results}


def _quietly(done: int, total: int, what: str) -> None:
    """No progress: `vtk bench` says which benchmark runs."""
