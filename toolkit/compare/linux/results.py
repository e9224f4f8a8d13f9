"""The records of `vtk compare --linux`: those of `vtk compare`, with what they lack. Their schema is `schema.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from toolkit.compare.results import Report, Result, Status, read_document

BYTES = "bytes"


@dataclass(frozen=True, slots=True)
class Row(Result):
    """One cell: `technique` is the hardware (`nvme`), `workload` the work (`disk-read`).

    `unit` is `ns/op`, or `bytes` for memory, whose median is bytes.
    """

    table: str = ""
    """The table it stands in: disk, net, console, clock, machine, together."""
    accelerator: str = ""
    """Who executes the guest's instructions: tcg or kvm; for what is no machine too, as the machines beside it."""
    device: dict[str, str] = field(default_factory=dict)
    """What the guest and QEMU say the hardware is: driver, name, pci, id, qemu."""


def row(result: Result, table: str, accelerator: str, device: dict[str, str] | None = None) -> Row:
    """A cell's result as a row of a table."""
    values = {entry.name: getattr(result, entry.name) for entry in fields(Result)}
    return Row(**values, table=table, accelerator=accelerator, device=device or {})


def rows_of(report: Report, table: str, accelerator: str) -> list[Row]:
    """The rows of one table."""
    return [row for row in linux_rows(report) if (row.table, row.accelerator) == (table, accelerator)]


def linux_rows(report: Report) -> list[Row]:
    """The rows of a report."""
    return [result for result in report.results if isinstance(result, Row)]


def tables_of(report: Report) -> list[tuple[str, str]]:
    """Table and accelerator of each table, in order."""
    return list(dict.fromkeys((row.table, row.accelerator) for row in linux_rows(report)))


def find(rows: Iterable[Row], technique: str, workload: str) -> Row | None:
    """One cell of a table."""
    return next((row for row in rows if (row.technique, row.workload) == (technique, workload)), None)


def from_json(text: str) -> Report:
    """The report in `text`. Raises ResultsError for anything that is not one."""
    document = read_document(text, schema())
    rows = (
        Row(**{**entry, "status": Status(entry["status"]), "samples": tuple(entry["samples"])})
        for entry in document["results"]
    )
    return Report(document["host"], document.get("run", {}), tuple(rows))


def load(path: str | Path) -> Report:
    """The report in a file. Raises ResultsError for one that is none, OSError for a file that cannot be read."""
    return from_json(Path(path).read_text(encoding="utf-8"))


def schema() -> dict[str, Any]:
    """The JSON schema of a report (draft 2020-12)."""
    text = resources.files(__package__).joinpath("schema.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document
