"""The bench protocol (docs/guest.md) on a session: one command, its begin and end lines, one sample.

The other side is not trusted: it may answer late, never, wrongly, with half a line or with ten million. Each of these
is one of a few errors that says what happened.

VtkError
├── WorkloadRefused      the program answered with an error line: it is well and can go on
│   └── WorkloadUnsupported   it has no such workload, by nature: a process has no control registers
└── SessionLost          (session.py) the session cannot be used any further
    └── ProtocolBroken   a line came that is not what the protocol says
"""

from __future__ import annotations

import json
import re
import time
from typing import Any, NamedTuple

from minivmm.errors import VtkError
from toolkit.compare.session import Session, SessionLost

UNSUPPORTED = "unsupported:"  # an error text that starts so is a fact about the technique, not a failure
MAX_REASON = 300  # letters of the guest's own words that reach a report
CHECKSUM = re.compile(r"[0-9a-f]{16}")


class WorkloadRefused(VtkError):
    """The program said why it does not run this workload."""


class WorkloadUnsupported(WorkloadRefused):
    """The workload has no meaning under this technique."""


class ProtocolBroken(SessionLost):
    """A line came that is not what the protocol says."""


class Sample(NamedTuple):
    """One `run` command as the host saw it."""

    ns: int
    """From the newline of the begin line to the newline of the end line."""
    ops: int
    """Operations done, by the program's own count."""
    checksum: str


def read_ready(session: Session, timeout: float) -> tuple[str, ...]:
    """Waits for the program's first line; the names of its workloads. Raises SessionLost."""
    _, message = _read(session, time.monotonic() + timeout)
    names = message.get("workloads")
    if message.get("ready") != "bench" or not isinstance(names, list):
        raise ProtocolBroken(f"the ready line expected, {_quote(message)} came")
    if not all(isinstance(name, str) for name in names):
        raise ProtocolBroken("the ready line names workloads by something other than text")
    return tuple(names)


def run(session: Session, workload: str, batches: int, timeout: float) -> Sample:
    """Runs `batches` batches (0: only the markers) within `timeout` seconds, preparation included.

    Raises WorkloadRefused, after which the session can be used further, or SessionLost, after which it cannot.
    """
    deadline = time.monotonic() + timeout
    session.send_line(f"run {workload} {batches}")
    begun, message = _read(session, deadline)
    _raise_refusal(message)
    if message.get("begin") != workload:
        raise ProtocolBroken(f"the begin line of {workload} expected, {_quote(message)} came")
    done, message = _read(session, deadline)
    _raise_refusal(message)  # what only shows while running: two batches that differ, a disk error
    if message.get("end") != workload:
        raise ProtocolBroken(f"the end line of {workload} expected, {_quote(message)} came")
    ops, checksum = message.get("ops"), message.get("checksum")
    if type(ops) is not int or not (batches <= ops < 1 << 63 if batches else ops == 0):
        raise ProtocolBroken(f"{_quote(ops)} is no number of operations for {batches} batches")
    if not isinstance(checksum, str) or not CHECKSUM.fullmatch(checksum):
        raise ProtocolBroken(f"{_quote(checksum)} is no checksum: 16 hexadecimal digits expected")
    return Sample(done - begun, ops, checksum)


def _read(session: Session, deadline: float) -> tuple[int, dict[str, Any]]:
    now, line = session.read_line(deadline)
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolBroken(f"a line that is not JSON came: {_quote(line.decode('utf-8', 'replace'))}") from error
    if not isinstance(message, dict):
        raise ProtocolBroken(f"an object expected, {_quote(message)} came")
    return now, message


def _raise_refusal(message: dict[str, Any]) -> None:
    if "error" not in message:
        return
    text = str(message["error"])
    if text.startswith(UNSUPPORTED):
        raise WorkloadUnsupported(_short(text.removeprefix(UNSUPPORTED).strip()) or "the program does not say why")
    raise WorkloadRefused(_short(text) or "the program reports an error without saying which")


def _short(text: str) -> str:
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return text if len(text) <= MAX_REASON else text[:MAX_REASON] + "…"


def _quote(value: object) -> str:
    return _short(json.dumps(value, ensure_ascii=False))
