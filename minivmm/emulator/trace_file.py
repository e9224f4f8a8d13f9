"""A trace as a file: lines for a person, or JSON that Perfetto and chrome://tracing open.

The JSON is the array of the Trace Event Format: what takes time is a complete event (ph X), the rest are instants.
"""

from __future__ import annotations

import json
from typing import TextIO

from minivmm.emulator.trace import Event
from minivmm.errors import HostError

LIMIT = 1_000_000
"""Events that are written; the rest is counted."""
COUNTS = ("instructions", "bytes", "microseconds", "blocks", "unchained", "number")
"""Details that are not addresses or registers: told in decimal."""


class TraceFile:
    """Writes events to `file`, which stays the caller's. limit: events, then nothing more but how many there were."""

    def __init__(self, file: TextIO, *, as_json: bool = False, limit: int = LIMIT) -> None:
        self._file = file
        self._as_json = as_json
        self._limit = limit
        self._start = 0
        self._fault: OSError | None = None
        self.seen = 0
        """Events so far."""
        if as_json:
            self._write('[\n{"ph":"M","pid":1,"tid":1,"name":"thread_name","args":{"name":"hart 0"}}')

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
            self._write(",\n" + json.dumps(_trace_event(event, self._start), separators=(",", ":")))
        else:
            self._write(f"{event.retired:>12} {event.kind:<12} {event.pc:#014x}  {event.text}\n")

    def finish(self) -> None:
        """Says what was left out, and ends the array. Raises HostError when something could not be written."""
        if self._as_json:
            note = {"ph": "M", "pid": 1, "tid": 1, "name": "left_out", "args": {"events": self.left_out}}
            self._write(f",\n{json.dumps(note)}\n]\n" if self.left_out else "\n]\n")
        elif self.left_out:
            self._write(f"cut: {self.left_out:,} more events, beyond the {self._limit:,} that are written\n")
        try:
            self._file.flush()
        except OSError as error:
            self._fault = self._fault or error
        if self._fault is not None:
            raise HostError("the trace could not be written", cause=self._fault.strerror or str(self._fault))

    def _write(self, text: str) -> None:
        """A fault is kept for finish(): it is no fault of the guest that is running."""
        if self._fault is None:
            try:
                self._file.write(text)
            except OSError as error:
                self._fault = error


def _trace_event(event: Event, start: int) -> dict[str, object]:
    """Times in microseconds."""
    name = event.text.partition("  ")[0] if event.kind == "instructions" else event.text.partition(":")[0]
    shown: dict[str, object] = {"pc": hex(event.pc), "retired": event.retired}
    for key, value in event.details.items():
        shown[key] = hex(value) if isinstance(value, int) and key not in COUNTS else value
    common = {"name": name, "cat": event.kind, "pid": 1, "tid": 1, "ts": (event.at - start) / 1000, "args": shown}
    if event.duration:
        return common | {"ph": "X", "dur": event.duration / 1000}
    return common | {"ph": "i", "s": "t"}
