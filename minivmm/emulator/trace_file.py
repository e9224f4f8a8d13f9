"""A trace as a file: lines for a person, or JSON that Perfetto and chrome://tracing open.

The JSON is the array of the Trace Event Format: what takes time is a complete event (ph X), the rest are instants.
"""

from __future__ import annotations

import json
from types import TracebackType
from typing import Self, TextIO

from minivmm.emulator.trace import Event

COUNTS = ("instructions", "bytes", "microseconds", "blocks", "unchained", "number")
"""Details that are not addresses or registers: told in decimal."""
LIMIT = 1_000_000
"""Events that are written; the rest is counted."""


class TraceFile:
    """Writes events to `file`, which stays the caller's. limit: events, then nothing more but how many there were."""

    def __init__(self, file: TextIO, *, as_json: bool = False, limit: int = LIMIT) -> None:
        self._file = file
        self._as_json = as_json
        self._limit = limit
        self._start = 0
        self.seen = 0
        """Events so far."""
        if as_json:
            file.write('[\n{"ph":"M","pid":1,"tid":1,"name":"thread_name","args":{"name":"hart 0"}}')

    @property
    def left_out(self) -> int:
        """Events beyond the limit."""
        return max(self.seen - self._limit, 0)

    def __call__(self, event: Event) -> None:
        """One event."""
        self.seen += 1
        if self.seen > self._limit:
            return
        self._start = self._start or event.at
        if self._as_json:
            self._file.write(",\n" + json.dumps(_trace_event(event, self._start), separators=(",", ":")))
        else:
            self._file.write(f"{event.retired:>12} {event.kind:<12} {event.pc:#014x}  {event.text}\n")

    def finish(self) -> None:
        """Says what was left out, and ends the array."""
        if self._as_json:
            note = {"ph": "M", "pid": 1, "tid": 1, "name": "left_out", "args": {"events": self.left_out}}
            self._file.write(f",\n{json.dumps(note)}\n]\n" if self.left_out else "\n]\n")
        elif self.left_out:
            self._file.write(f"cut: {self.left_out} more events, beyond the {self._limit} that were asked for\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _where: TracebackType | None) -> None:
        self.finish()


def _trace_event(event: Event, start: int) -> dict[str, object]:
    """Times in microseconds."""
    name = event.text.partition("  ")[0] if event.kind == "instructions" else event.text.partition(":")[0]
    shown: dict[str, object] = {"pc": hex(event.pc), "retired": event.retired}
    shown |= {
        key: hex(value) if isinstance(value, int) and key not in COUNTS else value
        for key, value in event.details.items()
    }
    common = {"name": name, "cat": event.kind, "pid": 1, "tid": 1, "ts": (event.at - start) / 1000, "args": shown}
    if event.duration:
        return common | {"ph": "X", "dur": event.duration / 1000}
    return common | {"ph": "i", "s": "t"}
