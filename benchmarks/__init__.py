"""The figures this project promises, measured: each against a peer or a C twin in the same run, printed by `vtk bench`.

A benchmark is a module with `run(effort) -> list[Figure]`; the table below is the whole list.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, NamedTuple


class Benchmark(NamedTuple):
    """One benchmark: its module, and the question it answers."""

    module: str
    question: str
    slow: bool = False
    """Minutes: run only when named."""


BENCHMARKS: dict[str, Benchmark] = {
    "exit-loop": Benchmark("benchmarks.exit_loop", "what does Python add to an exit, against a C loop?"),
    "first-byte": Benchmark("benchmarks.first_byte", "how soon does a guest say its first byte, against QEMU?"),
    "start-up": Benchmark("benchmarks.start_up", "how long do `vtk --help` and a whole `vtk run hello` take?"),
    "block": Benchmark("benchmarks.block", "how fast is virtio-blk, against QEMU on the same KVM?"),
    "virtio": Benchmark("benchmarks.virtio", "what does Python add to a disk request, against the bare preadv?"),
    "notify": Benchmark("benchmarks.notify", "who should carry a kick: the exit, or an ioeventfd?"),
    "ring3": Benchmark("benchmarks.deprivileged", "what does it cost to leave ring 3, and to change its page tables?"),
    "paravirt": Benchmark("benchmarks.paravirt", "what does a hypercall cost, and what goes through one in a domain?"),
    "emulator": Benchmark(
        "benchmarks.emulator", "how fast are interpreter and translator, against each other and QEMU's translator?"
    ),
    "life-cycle": Benchmark("benchmarks.life_cycle", "do 10,000 machines leave anything behind?", slow=True),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    value and peer_value are medians in `unit`, mad and peer_mad their median absolute deviations. `bound` says what was
    promised, `met` whether it holds: None where nothing was promised, or where it cannot be told (`note` says why).
    """

    name: str
    unit: str
    value: float | None
    mad: float = 0.0
    peer: str = ""
    peer_value: float | None = None
    peer_mad: float = 0.0
    bound: str = ""
    met: bool | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """value / peer_value."""
        if self.value is None or not self.peer_value:
            return None
        return self.value / self.peer_value

    def to_json(self) -> dict[str, Any]:
        """The figure as `vtk bench --json` writes it."""
        return asdict(self) | {"ratio": self.ratio}


class Effort(NamedTuple):
    """How much to measure."""

    rounds: int = 9
    cycles: int = 10_000


def run(name: str, effort: Effort) -> list[Figure]:
    """Runs one benchmark by name. Raises KeyError for an unknown one, VtkError for what the host cannot do."""
    figures: list[Figure] = import_module(BENCHMARKS[name].module).run(effort)
    return figures
