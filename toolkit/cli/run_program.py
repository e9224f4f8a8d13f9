"""`vtk run --user`: a Linux program for riscv64, on this terminal like any other program."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from minivmm.outcome import Outcome
from toolkit.cli import run_report
from toolkit.machines import LOCKSTEP

if TYPE_CHECKING:
    from minivmm.emulator.lockstep.process import LockstepProcess
    from minivmm.emulator.user.process import Process
    from toolkit.cli.run_trace import Tracing

MEMORY = 1 << 30  # bytes it may fill, where the user does not say
QUOTA = 1 << 30  # bytes it may write to files
SCHEMA = 1


def run(
    program: str,
    arguments: tuple[str, ...],
    memory: int | None,
    timeout: float | None,
    accelerator: str,
    root: Path | None,
    quota: int | None,
    stride: int | None,
    tracing: Tracing,
    as_json: bool,
    stats: bool,
) -> int:
    """Returns its exit status. stride: of a lock-step run, where the accelerator is that. Raises VtkError.

    With `as_json` what it writes to standard output goes to standard error, and the report is alone on standard output.
    """
    memory = MEMORY if memory is None else memory
    quota = QUOTA if quota is None else quota
    with tracing, _process(program, arguments, memory, accelerator, root, quota, stride, tracing) as process:
        if as_json:
            process.files.replace(1, os.dup(2))
        result = process.run(timeout)
        counters = process.figures
        unknown = dict(process.unknown.items())
    status = result.exit_status if result.code is None else result.code
    if as_json:
        report = {
            "schema": SCHEMA,
            "program": program,
            "accelerator": accelerator,
            "outcome": result.outcome.value,
            "detail": result.detail,
            "exit_status": status,
            "seconds": round(result.seconds, 6),
            "figures": counters,
            "unknown_system_calls": unknown,
        }
        click.echo(json.dumps(report))
    elif result.outcome not in (Outcome.SHUTDOWN, Outcome.EXITED):
        click.echo(f"vtk: {program}: {result.outcome.value} after {result.seconds:.3f} s: {result.detail}", err=True)
        for line in result.dump.splitlines():
            click.echo(f"  {line}", err=True)
    if accelerator == LOCKSTEP:
        run_report.print_lockstep(result.outcome, counters)
    for number, count in unknown.items():
        click.echo(f"vtk: {program}: system call {number} is not known here: ENOSYS, {count} times", err=True)
    if stats:
        for name, value in counters.items():
            click.echo(f"  {name:<28}{value:>14,}", err=True)
    return status


def _process(
    program: str,
    arguments: tuple[str, ...],
    memory: int,
    accelerator: str,
    root: Path | None,
    quota: int,
    stride: int | None,
    tracing: Tracing,
) -> Process | LockstepProcess:
    environment = [f"{name}={value}" for name, value in os.environ.items()]
    if accelerator == LOCKSTEP:
        from minivmm.emulator.lockstep.process import STRIDE, LockstepProcess

        stride = STRIDE if stride is None else stride
        return LockstepProcess(
            program, arguments, environment=environment, root=root, memory=memory, quota=quota, stride=stride
        )
    from minivmm.emulator.user.process import Process

    return Process(
        program,
        arguments,
        environment=environment,
        root=root,
        memory=memory,
        quota=quota,
        translate=accelerator == "translate",
        tracer=tracing.tracer(),
    )
