"""How a minivmm machine's last run ended: outcome.json, which its process writes unless it is killed."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from minivmm.outcome import Outcome, RunResult
from toolkit.vm import presence
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.provider import State, Status

FILE = "outcome.json"
AS_WISHED = {Outcome.SHUTDOWN, Outcome.EXITED, Outcome.HALTED, Outcome.SUSPENDED, Outcome.INTERRUPTED}
"""Outcomes of a machine that is `stopped` then; with any other it has `crashed`."""


def keep(machine: MachineDirectory, result: RunResult) -> None:
    """Raises StateError."""
    content = {
        "schema": 1,
        "outcome": result.outcome.value,
        "detail": result.detail,
        "code": result.code,
        "seconds": round(result.seconds, 3),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "exits": dict(result.exits),
        "registers": dict(result.registers),
        "dump": result.dump,
    }
    machine.write(FILE, json.dumps(content, indent=2).encode() + b"\n")


def is_kept(machine: MachineDirectory) -> bool:
    """Whether its last run has ended; its process may be about to."""
    return (machine / FILE).exists()


def forget(machine: MachineDirectory) -> None:
    """A new run begins."""
    presence.forget(machine)
    (machine / FILE).unlink(missing_ok=True)


def ended(machine: MachineDirectory) -> Status:
    """The state of a machine without a process."""
    if presence.left_behind(machine):
        return Status(State.CRASHED, detail="its process was killed or died, or the host went down under it")
    try:
        content = json.loads((machine / FILE).read_bytes())
        outcome = {outcome.value: outcome for outcome in Outcome}[content["outcome"]]
        code = "" if content["code"] is None else f" with code {content['code']}"
        detail = f"{outcome.value}{code}: {content['detail'] or outcome.meaning}"
    except (OSError, ValueError, KeyError, TypeError):  # it never ran, or there was no room to write
        return Status(State.STOPPED)
    return Status(State.STOPPED if outcome in AS_WISHED else State.CRASHED, detail=detail)
