"""This terminal as that of a command in a guest (RFC 4254, 6.2 and 6.7): keys as they are typed, the window's size,
and ssh(1)'s escape `~.`, which leaves a guest that does not answer any more."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit import terminal
from toolkit.vm.machine import Machine
from toolkit.vm.ssh_streams import Bell, Feeder, relay

if TYPE_CHECKING:
    from paramiko import Channel

ESCAPE = ord("~")
NEWLINES = b"\r\n"
HELP = b"\r\n~.  leave\r\n~?  this\r\n~~  send ~\r\n(at the beginning of a line)\r\n"
RESIZED, LEFT = b"w", b"q"
DEFAULT_SIZE = os.terminal_size((80, 24))


class TildeEscape:
    """Picks ssh(1)'s escapes (ESCAPE CHARACTERS) out of what is typed, wherever reads happen to cut it."""

    def __init__(self) -> None:
        self._line_begins = True
        self._escaped = False
        self.left = False
        self.asked = False  # for help

    def read(self, typed: bytes) -> bytes:
        """The bytes for the guest among `typed`. What follows `~.` is dropped."""
        text = bytearray()
        for byte in typed:
            if self._escaped:
                self._escaped = False
                if byte == ord("."):
                    self.left = True
                    return bytes(text)
                if byte == ord("?"):
                    self.asked = True
                    continue
                text.append(ESCAPE)
                if byte == ESCAPE:
                    self._line_begins = False
                    continue
            elif byte == ESCAPE and self._line_begins:
                self._escaped = True
                continue
            text.append(byte)
            self._line_begins = byte in NEWLINES
        return bytes(text)


class GuestTerminal:
    """The session, once the guest has made a terminal for it."""

    def __init__(self, channel: Channel, bell: Bell) -> None:
        self._channel = channel
        self._bell = bell
        self._escape = TildeEscape()

    def relay(self, machine: Machine, timeout: float | None) -> int | None:
        """The exit status; None when the person left. Raises Unreachable."""
        ours = terminal.is_ours(0)
        with contextlib.ExitStack() as held:
            if ours:
                held.enter_context(terminal.raw_mode(0, output=False))
                before = signal.signal(signal.SIGWINCH, lambda _signal, _frame: self._bell.ring(RESIZED))
                held.callback(signal.signal, signal.SIGWINCH, before)
            source = 0 if ours or not os.isatty(0) else b""
            feeder = Feeder(self._channel, source, self._typed if ours else lambda data: data)
            return relay(
                machine, self._channel, feeder, _show, _show, timeout=timeout, bell=self._bell, rung=self._rung
            )

    def _typed(self, data: bytes) -> bytes:
        text = self._escape.read(data)
        if self._escape.left:
            self._bell.ring(LEFT)
        if self._escape.asked:
            self._escape.asked = False
            _show(HELP)
        return text

    def _rung(self, what: bytes) -> bool:
        if RESIZED in what:
            size = window_size()
            self._channel.resize_pty(size.columns, size.lines)
        return LEFT in what


@contextlib.contextmanager
def on(channel: Channel) -> Iterator[GuestTerminal]:
    """Asks for a terminal like this one. Raises Unreachable when the guest has none."""
    bell = Bell()
    try:
        size = window_size()
        channel.get_pty(os.environ.get("TERM") or "dumb", size.columns, size.lines)
        yield GuestTerminal(channel, bell)
    finally:
        bell.close()


def window_size() -> os.terminal_size:
    """Of the terminal on standard input, or output."""
    for fd in (0, 1):
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(fd)
            return size if size.columns and size.lines else DEFAULT_SIZE
    return DEFAULT_SIZE


def _show(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
