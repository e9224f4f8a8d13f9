"""What a comparison found, as records and as JSON. The JSON's schema is `schema.json` beside this file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any

from minivmm.errors import VtkError
from toolkit.compare.statistics import Estimate

SCHEMA_VERSION = 1
UNIT = "ns/op"
TOTAL = "exits"
"""KVM's name for the counter of all exits; the other keys of `Result.exits` are its parts, as far as anyone tells them
apart: KVM's own (`io_exits`, …), those to user space by reason (`user_io`, `user_mmio`, …), and a domain's."""
HYPERCALL = "hypercall_"
"""How the names of a domain's hypercalls begin there: `hypercall_mmu_update`. Those within a multicall are counted too.
Exceptions are `trap_14`, whatever else took a domain out of ring 3 `domain_system_call`, …"""


class ResultsError(VtkError):
    """A file that should hold the results of a comparison does not."""


class Status(StrEnum):
    """What became of one cell of the table."""

    OK = "ok"
    UNSUPPORTED = "unsupported"  # cannot be had here, or has no meaning under this technique
    FAILED = "failed"  # should have worked


@dataclass(frozen=True, slots=True)
class Result:
    """One cell: one workload under one technique. Times in nanoseconds an operation, marker already subtracted."""

    technique: str
    workload: str
    status: Status
    reason: str = ""
    """Why it is not `ok`."""
    remedy: str = ""
    """The command or step that mends it, where there is one."""
    unit: str = UNIT
    median: float | None = None
    mad: float | None = None
    samples: tuple[float, ...] = ()
    iterations: int = 0
    """Operations in one sample."""
    marker: float | None = None
    """What the begin and end markers themselves took, in nanoseconds a sample: subtracted from each."""
    checksum: str | None = None
    exits: dict[str, float] = field(default_factory=dict)
    """Exits from the guest by reason, per operation, as the technique's VMM counts them; empty where it does not."""

    @property
    def estimate(self) -> Estimate | None:
        """The time of one operation, or None where it was not measured."""
        if self.status is not Status.OK or self.median is None or self.mad is None:
            return None
        return Estimate(self.median, self.mad)


@dataclass(frozen=True, slots=True)
class Report:
    """A whole comparison."""

    host: dict[str, Any]
    """The machine it ran on, as `vtk doctor` knows it, for people; no field of it is relied on."""
    run: dict[str, Any]
    """How it was run: when, how long, with which settings."""
    results: tuple[Result, ...] = ()

    def find(self, technique: str, workload: str) -> Result | None:
        """The cell, or None where it is not part of this comparison."""
        for result in self.results:
            if result.technique == technique and result.workload == workload:
                return result
        return None

    @property
    def techniques(self) -> tuple[str, ...]:
        """The techniques compared, in the order of the results."""
        return tuple(dict.fromkeys(result.technique for result in self.results))

    @property
    def workloads(self) -> tuple[str, ...]:
        """The workloads compared, in the order of the results."""
        return tuple(dict.fromkeys(result.workload for result in self.results))


def to_json(report: Report) -> str:
    """The report as JSON text, one line a result so that two reports can be compared by eye."""
    head = json.dumps({"schema": SCHEMA_VERSION, "host": report.host, "run": report.run}, indent=2, allow_nan=False)
    rows = ",\n".join("    " + json.dumps(asdict(result), allow_nan=False) for result in report.results)
    return f'{head[:-2]},\n  "results": [\n{rows}\n  ]\n}}\n'


def read_document(text: str, schema_document: dict[str, Any]) -> dict[str, Any]:
    """The JSON document in `text`, found to be as the schema says. Raises ResultsError."""
    import jsonschema

    try:
        document: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise ResultsError("this is not JSON", cause=str(error)) from error
    try:
        jsonschema.validate(document, schema_document)
    except jsonschema.ValidationError as error:
        where = "/".join(str(part) for part in error.absolute_path) or "the document"
        raise ResultsError(
            "this is JSON, but not the results of a comparison", cause=f"{where}: {error.message}"
        ) from error
    return document


def from_json(text: str) -> Report:
    """The report in `text`. Raises ResultsError for anything that is not one."""
    document = read_document(text, schema())
    results = (
        Result(**{**row, "status": Status(row["status"]), "samples": tuple(row["samples"])})
        for row in document["results"]
    )
    return Report(document["host"], document.get("run", {}), tuple(results))


def load(path: str | Path) -> Report:
    """The report in a file. Raises ResultsError for a file that cannot be read or is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path} cannot be read", cause=str(error)) from error
    return from_json(text)


def schema() -> dict[str, Any]:
    """The JSON schema of a report (draft 2020-12)."""
    text = resources.files(__package__).joinpath("schema.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document
