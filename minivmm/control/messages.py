"""What goes over the wire (docs/interop/qmp-spec): JSON texts cut out of a client's bytes, checked, and answered.

A client's texts need no separator, so braces are counted. A line's end inside a string, which JSON forbids, and one
between texts end what is there: after junk, the next line is understood again. What a client can make the server hold
is bounded by MAX_TEXT, what it can make it do by MAX_DEPTH.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

MAX_TEXT = 64 << 10  # bytes of one request
MAX_DEPTH = 64  # of nested objects and arrays
_MARK = re.compile(rb'["\\{}\[\]\n]')

GENERIC_ERROR = "GenericError"
COMMAND_NOT_FOUND = "CommandNotFound"
DEVICE_NOT_ACTIVE = "DeviceNotActive"


class QmpError(Exception):
    """A request that cannot be carried out: what the error response says (2.4.2). `id` is the request's."""

    def __init__(self, desc: str, kind: str = GENERIC_ERROR) -> None:
        super().__init__(desc)
        self.desc = desc
        self.kind = kind
        self.id: Any = None
        self.has_id = False


class TooMuch(Exception):
    """A text longer or deeper than any request is: the connection cannot go on."""


class Request(NamedTuple):
    """2.3: { "execute": name, "arguments": object, "id": any }."""

    name: str
    arguments: dict[str, Any]
    id: Any = None
    has_id: bool = False


class Splitter:
    """Cuts the bytes of one connection into texts."""

    def __init__(self) -> None:
        self._text = bytearray()  # begun and not yet ended
        self._seen = 0  # bytes of it that were looked at
        self._depth = 0
        self._in_string = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The texts that end in `data`. Raises TooMuch."""
        self._text += data
        while (end := self._find_end()) is not None:
            text = bytes(self._text[:end]).strip()
            del self._text[:end]
            self._seen = self._depth = 0
            self._in_string = False
            if text:
                yield text
        if len(self._text) > MAX_TEXT:
            raise TooMuch(f"a request longer than {MAX_TEXT} bytes")

    def _find_end(self) -> int | None:
        """Where the text ends; None when that has not come yet."""
        text = self._text
        while (mark := _MARK.search(text, self._seen)) is not None:
            at, byte = mark.start(), mark[0]
            self._seen = at + 1
            if byte == b"\n":
                if self._in_string or not self._depth:
                    return at + 1
            elif self._in_string:
                if byte == b'"':
                    self._in_string = False
                elif byte == b"\\":
                    if at + 1 == len(text):
                        self._seen = at  # what it escapes has not come yet
                        return None
                    self._seen = at + 2
            elif byte == b'"':
                self._in_string = True
            elif byte in b"{[":
                if not self._depth and text[:at].strip():
                    return at  # junk before it
                self._depth += 1
                if self._depth > MAX_DEPTH:
                    raise TooMuch(f"a request nested more than {MAX_DEPTH} deep")
            elif byte in b"}]":
                self._depth -= 1
                if self._depth <= 0:
                    return at + 1
        self._seen = len(text)
        return None


def parse(text: bytes) -> Request:
    """The request that `text` is. Raises QmpError, with the request's id where it can be known."""
    try:
        content = json.loads(
            text.decode(), parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_without_duplicates
        )
    except ValueError as error:
        raise QmpError(f"Invalid JSON syntax: {error}") from error
    if not isinstance(content, dict):
        raise QmpError("QMP input must be a JSON object")
    try:
        return _request(content)
    except QmpError as error:
        error.id, error.has_id = content.get("id"), "id" in content
        raise


def _request(content: dict[str, Any]) -> Request:
    if unexpected := sorted(content.keys() - {"execute", "arguments", "id"}):
        raise QmpError(f"QMP input member '{unexpected[0]}' is unexpected")
    if "execute" not in content:
        raise QmpError("QMP input lacks member 'execute'")
    name, arguments = content["execute"], content.get("arguments", {})
    if not isinstance(name, str):
        raise QmpError("QMP input member 'execute' must be a string")
    if not isinstance(arguments, dict):
        raise QmpError("QMP input member 'arguments' must be an object")
    return Request(name, arguments, content.get("id"), "id" in content)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):  # could not be sent back as an id
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("duplicate key")
    return content


# --- the server's side: one line each, ended by CRLF (2.1) -----------------------------------------------------------
def success(request: Request, value: Any) -> bytes:
    """2.4.1."""
    return _line({"return": value} | ({"id": request.id} if request.has_id else {}))


def failure(error: QmpError) -> bytes:
    """2.4.2."""
    content = {"error": {"class": error.kind, "desc": error.desc}}
    return _line(content | ({"id": error.id} if error.has_id else {}))


def event(name: str, data: dict[str, Any]) -> bytes:
    """2.5, stamped with the time of day."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    content: dict[str, Any] = {"event": name, **({"data": data} if data else {})}
    return _line(content | {"timestamp": {"seconds": seconds, "microseconds": nanoseconds // 1000}})


def greeting(version: dict[str, Any]) -> bytes:
    """2.2."""
    return _line({"QMP": {"version": version, "capabilities": []}})


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\r\n"
