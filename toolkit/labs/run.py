"""One lab run to its result."""

from __future__ import annotations

import time
from enum import Enum
from typing import Any, NamedTuple

from minivmm.errors import HostError, VtkError
from toolkit.labs.host import Host
from toolkit.labs.registry import Lab
from toolkit.labs.verdict import Verdict

SCHEMA = 1


class Status(Enum):
    """How it ended."""

    HOLDS = "holds"
    FAILS = "fails"
    UNSUPPORTED = "unsupported"


class Result(NamedTuple):
    """What there is to say of one run. `reason` and `remedy`: why there is no verdict, or only a part of one."""

    lab: Lab
    status: Status
    verdict: Verdict
    reason: str = ""
    remedy: str = ""
    seconds: float = 0.0


def run(lab: Lab, host: Host) -> Result:
    """Carries out the experiment. Whatever the guests do, there is a result."""
    started = time.monotonic()
    try:
        verdict = lab.experiment(host)
    except HostError as error:
        return Result(lab, Status.UNSUPPORTED, Verdict(()), _reason(error), error.remedy)
    except VtkError as error:
        return Result(lab, Status.FAILS, Verdict(()), _reason(error), error.remedy, time.monotonic() - started)
    status = Status.HOLDS if verdict.holds else Status.FAILS
    return Result(lab, status, verdict, seconds=time.monotonic() - started)


def _reason(error: VtkError) -> str:
    return f"{error.message}: {error.cause}" if error.cause else error.message


def to_json(results: list[Result]) -> dict[str, Any]:
    """The document of `vtk lab run --json` (docs/cli.md)."""
    return {"schema": SCHEMA, "labs": [_lab_to_json(result) for result in results]}


def _lab_to_json(result: Result) -> dict[str, Any]:
    verdict = result.verdict
    return {
        "name": result.lab.name,
        "idea": result.lab.idea,
        "status": result.status.value,
        "reason": result.reason,
        "remedy": result.remedy,
        "seconds": round(result.seconds, 3),
        "checks": [check._asdict() for check in verdict.checks],
        "tables": [{**table._asdict(), "rows": [list(row) for row in table.rows]} for table in verdict.tables],
        "notes": list(verdict.notes),
    }
