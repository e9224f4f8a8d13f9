"""A machine's serial console on this terminal, or on standard input and output where they are files and pipes."""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import time
from collections.abc import Callable
from enum import Enum

from toolkit import terminal

BANNER = "Ctrl-] then q leaves the console; Ctrl-] twice sends Ctrl-] to the guest"
CHUNK = 4096  # bytes
KEPT = 64 << 10  # bytes of the last output in which a pattern is looked for


class Left(Enum):
    """Why a session ended."""

    BY_KEY = "left by the escape key"
    ENDED = "the machine has ended"
    FOUND = "the pattern was shown"
    DEADLINE = "the time is up"
    BROKEN_PIPE = "nobody reads the output"


def attend(
    connection: socket.socket,
    *,
    until: re.Pattern[bytes] | None = None,
    timeout: float | None = None,
    ready: Callable[[], None] = lambda: None,
) -> tuple[Left, bytes]:
    """Carries standard input to the machine and its output to standard output. Returns why it ended, and the last
    output. Input that ends leaves the machine connected: `until` or `timeout` ends the session then.

    `ready` is called once the terminal is the guest's, before a key is read.
    """
    interactive = terminal.is_ours(0)
    with terminal.raw_mode(0) if interactive else contextlib.nullcontext():
        if interactive:
            ready()
        return _carry(connection, interactive, until, timeout)


def _carry(
    connection: socket.socket, interactive: bool, until: re.Pattern[bytes] | None, timeout: float | None
) -> tuple[Left, bytes]:
    connection.setblocking(False)
    escape = terminal.EscapeKey()
    deadline = None if timeout is None else time.monotonic() + timeout
    seen, unsent, source = bytearray(), bytearray(), _open_input()
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return Left.DEADLINE, bytes(seen)
        reads: list[socket.socket | int] = [connection]
        if source is not None and not unsent:
            reads.append(source)
        readable, writable, _ = select.select(reads, [connection] * bool(unsent), [], left)
        if connection in readable:
            data = _received(connection)
            if not data:
                return Left.ENDED, bytes(seen)
            if not _written(data):
                return Left.BROKEN_PIPE, bytes(seen)
            seen += data
            if until is not None and until.search(seen):
                return Left.FOUND, bytes(seen)
            del seen[:-KEPT]
        if source is not None and source in readable:
            typed = _read(source)
            if not typed:
                source = None
            elif interactive:
                keys = escape.read(typed)
                unsent += keys.text
                if keys.quit:
                    return Left.BY_KEY, bytes(seen)
            else:
                unsent += typed
        if writable:
            with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                del unsent[: connection.send(unsent)]


def _open_input() -> int | None:
    """Standard input; None when it is closed, or is a terminal that belongs to somebody else just now."""
    try:
        os.fstat(0)
    except OSError:
        return None
    return 0 if terminal.is_ours(0) or not os.isatty(0) else None


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, CHUNK)
    except OSError:
        return b""


def _received(connection: socket.socket) -> bytes | None:
    try:
        return connection.recv(CHUNK)
    except OSError:  # ECONNRESET: the machine was killed
        return None


def _written(data: bytes) -> bool:
    """False when nobody reads."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(1, view) :]
        except BlockingIOError:
            select.select([], [1], [])
        except OSError:
            return False
    return True
