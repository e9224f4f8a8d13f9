"""What `vtk run` says of a run: the outcome for a person, one JSON object, counters."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import click

from minivmm.outcome import Outcome, RunResult
from toolkit.machines import BARE, RISCV64, XEN, Plan

SCHEMA = 1
REGISTERS_A_ROW = 3
WHENCE = {
    BARE: "exits to user space",
    XEN: "hypercalls, and what else it left ring 3 for",
    RISCV64: "what was emulated",
}
"""What RunResult.exits counts."""


def print_outcome(result: RunResult, *, mid_line: bool) -> None:
    """One line on standard error, more for a crash; none for an ordinary end whose output somebody else processes."""
    if result.outcome is Outcome.SHUTDOWN and not sys.stdout.isatty():
        return
    lead = "\n" if mid_line and sys.stdout.isatty() else ""
    detail = f": {result.detail}" if result.detail else ""
    click.echo(f"{lead}vtk: {result.outcome.value} after {result.seconds:.3f} s{detail}", err=True)
    registers = [f"{name:<7}{value:016x}" for name, value in result.registers.items()]
    for row in range(0, len(registers), REGISTERS_A_ROW):
        click.echo("  " + "  ".join(registers[row : row + REGISTERS_A_ROW]), err=True)
    for line in result.dump.splitlines():
        click.echo(f"  {line}", err=True)


def print_lockstep(outcome: Outcome, counts: Mapping[str, int]) -> None:
    """What was compared, on standard error; a difference has been told as the outcome."""
    if outcome is not Outcome.DIVERGED:
        click.echo(
            f"vtk: lockstep: {counts['instructions']:,} instructions interpreted and translated, "
            f"compared {counts['compared']:,} times, memory {counts['memory_compared']:,} times: no difference",
            err=True,
        )


def print_json(guest: str, planned: Plan, result: RunResult) -> None:
    """The whole result as one line on standard output."""
    import json

    click.echo(
        json.dumps(
            {
                "schema": SCHEMA,
                "guest": guest,
                "image": str(planned.image),
                "platform": planned.platform,
                "accelerator": planned.accelerator,
                "outcome": result.outcome.value,
                "detail": result.detail,
                "code": result.code,
                "exit_status": result.exit_status,
                "seconds": round(result.seconds, 6),
                "exits": dict(result.exits),
                "registers": dict(result.registers),
                "dump": result.dump,
                "console": result.console.decode(errors="replace"),
            }
        )
    )


def print_stats(planned: Plan, result: RunResult, counters: dict[str, int]) -> None:
    """The counters that count something, the largest first, on standard error."""
    for title, numbers in ((WHENCE[planned.platform], result.exits), ("KVM's counters", counters)):
        shown = {name: number for name, number in numbers.items() if number}
        if shown:
            click.echo(f"{title}:", err=True)
        for name, number in sorted(shown.items(), key=lambda item: -item[1]):
            click.echo(f"  {name:<28}{number:>14,}", err=True)
