"""Two ways to run what was compiled for another processor: looked at each time, or made into machine code once."""

from __future__ import annotations

import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from toolkit.labs.counting import Counting, Counts, Work, do_work
from toolkit.labs.host import Host
from toolkit.labs.registry import lab
from toolkit.labs.verdict import Check, Table, Verdict

if TYPE_CHECKING:
    from minivmm.emulator.trace import Event

WORKLOAD = "cpu"
BATCHES = (1, 1, 3)  # the second when everything is known, the third for three times as much of it
MEMORY = 32 << 20  # bytes
ENGINES = ("interpret", "translate")
EVENTS = ("lookups", "blocks", "chains", "exits")
SELDOM = 1000  # of the guest's instructions at least, for each look-up that a translator may need once warm

# Adds 1 ten times, writes `addi a0,a0,2` over its own addi, adds that ten times, and exits with the sum.
SUM, TURN = 30, 16
OVERWRITES_ITSELF = """
auipc s0,0
addi a0,zero,0
addi t2,zero,2
again:
addi t0,zero,10
turn:
addi a0,a0,1
addi t0,t0,-1
bne t0,zero,turn
lw t1,16(s0)
lui t3,0x100
add t1,t1,t3
sw t1,16(s0)
fence.i
addi t2,t2,-1
bne t2,zero,again
slli a0,a0,16
lui t0,0x3
addi t0,t0,0x333
add a0,a0,t0
lui t1,0x100
sw a0,0(t1)
"""


@lab("translation", idea="an interpreter pays for every execution, a translator for every piece of code")
def translation(host: Host) -> Verdict:
    """Claim: a program runs on a processor it was not compiled for, with the same result. An interpreter looks up each
    block of code every time it is executed; a translator makes machine code of it once, keeps that in a buffer, and
    hears of it no more. What is overwritten is translated again.
    Experiment: the bench guest, compiled for RISC-V, does the same work three times under both engines, each with a
    trace of what it does: blocks looked up and made, jumps chained, translated code left. Then a program that writes
    over its own instructions.
    Source: Bellard, QEMU, a Fast and Portable Dynamic Translator, USENIX 2005; the notes, "emulation".
    """
    native = _native()
    works = {engine: _works(engine, host) for engine in ENGINES}
    interpreted, translated = (works[engine] for engine in ENGINES)
    answers = {str(work.answer["checksum"]) for done in works.values() for work in done}
    warm, more = interpreted[1].counts["lookups"], interpreted[2].counts["lookups"]
    kept = translated[2].counts
    sums = {engine: _overwrite(engine, host) for engine in ENGINES}
    checks = (
        Check("both have the result of the host's own program", answers == {native}, f"checksum {native}"),
        Check(
            "interpreted, three times the work is three times the look-ups",
            2.9 < more / max(warm, 1) < 3.1,
            f"{warm:,}, then {more:,}",
        ),
        Check(
            "translated, nearly nothing is made or looked up once it is warm",
            kept["blocks"] <= translated[0].counts["blocks"] // 10 and kept["lookups"] * SELDOM < kept["instructions"],
            f"{kept['blocks']} made, {kept['lookups']} looked up in {kept['instructions']:,} instructions",
        ),
        Check(
            "a program that overwrites itself has the right sum under both",
            all(one.code == SUM for one in sums.values()),
            ", ".join(f"{engine}: {one.code}" for engine, one in sums.items()),
        ),
        Check(
            "because what was overwritten is made anew",
            all(one.made >= 2 and one.dropped >= 1 for one in sums.values()),
            ", ".join(f"{engine}: made {one.made} times" for engine, one in sums.items()),
        ),
    )
    return Verdict(checks, (_table(works),))


# -- the same work on three machines


def _native() -> str:
    """The checksum of the same workload, compiled for this processor."""
    import guest_os

    told = subprocess.run(
        [guest_os.native()], input=f"run {WORKLOAD} 1\nquit\n", capture_output=True, text=True, check=True, timeout=60
    ).stdout
    return told.partition('"checksum":"')[2].partition('"')[0]


def _works(engine: str, host: Host) -> list[Work]:
    import guest_os
    from minivmm import RiscvMachine
    from minivmm.emulator.trace import Tracer

    events: Counts = Counter()
    console = Counting()

    def count(event: Event) -> None:
        events[event.kind] += 1

    with RiscvMachine(
        guest_os.image("bench", "riscv64"),
        memory=MEMORY,
        console=console,
        accelerator=engine,
        tracer=Tracer(count, frozenset(EVENTS)),
    ) as machine:
        console.counted = lambda: {**events, "instructions": machine.figures.instructions}
        works, _ = do_work(machine, console, WORKLOAD, BATCHES, host.deadline)
    return works


def _table(works: dict[str, list[Work]]) -> Table:
    names = ("instructions", *EVENTS)
    rows = [
        (f"{engine}, {batches} × {WORKLOAD}", *(f"{work.counts[name]:,}" for name in names))
        for engine, done in works.items()
        for batches, work in zip(BATCHES, done, strict=True)
    ]
    return Table("the same work three times, what each engine did for it", ("", *names), tuple(rows))


# -- code that changes


class Sum(NamedTuple):
    """How the program that overwrites itself ended."""

    code: int | None
    made: int
    """How often the block that is overwritten was made."""
    dropped: int
    """How often stores took translated or decoded code away."""


def _overwrite(engine: str, host: Host) -> Sum:
    from minivmm import RiscvMachine
    from minivmm.emulator.assembly import program
    from minivmm.emulator.physical import RAM_BASE
    from minivmm.emulator.trace import Tracer

    seen: Counter[tuple[str, int]] = Counter()

    def count(event: Event) -> None:
        if event.kind == "blocks":
            seen["made", event.pc] += 1
        elif event.details.get("reason") == "store":
            seen["dropped", 0] += 1

    with tempfile.TemporaryDirectory(prefix="vtk-lab-") as directory:
        image = Path(directory) / "overwrites-itself.bin"
        image.write_bytes(program(OVERWRITES_ITSELF, RAM_BASE))
        tracer = Tracer(count, frozenset({"blocks", "flushes"}))
        with RiscvMachine(image, memory=4 << 20, accelerator=engine, tracer=tracer) as machine:
            result = machine.run(host.deadline)
    return Sum(result.code, seen["made", RAM_BASE + TURN], seen["dropped", 0])
