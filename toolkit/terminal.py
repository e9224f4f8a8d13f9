"""The terminal: raw mode that is always undone, and the escape key that takes a person out of a guest's console."""

from __future__ import annotations

import os
import signal
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

ESCAPE = 0x1D  # Ctrl-], telnet's
QUIT_KEYS = b"qQxX"
BANNER = "Ctrl-] then q ends the machine; Ctrl-] twice sends Ctrl-] to the guest"


def is_ours(fd: int) -> bool:
    """Whether `fd` is a terminal this process may read and set: in the background it may not (SIGTTIN, SIGTTOU)."""
    try:
        return os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:  # not this session's terminal
        return False


@contextmanager
def raw_mode(fd: int, *, output: bool = True) -> Iterator[None]:
    """Keys reach the guest one by one and unchanged, Ctrl-C and Ctrl-Z included, and are not echoed by the terminal.

    Output processing stays on, so that a guest's bare newline still returns the carriage; without `output` it is off:
    a terminal in the guest has done it already, and a bare newline means one. The settings found are restored however
    the block is left, and raw mode is entered again when the shell has continued a stopped process.
    """
    found = termios.tcgetattr(fd)
    raw = termios.tcgetattr(fd)
    raw[0] &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR)
    raw[0] &= ~(termios.IGNCR | termios.ICRNL | termios.IXON)
    if not output:
        raw[1] &= ~termios.OPOST
    raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0

    def enter(_signal: int = 0, _frame: FrameType | None = None) -> None:
        termios.tcsetattr(fd, termios.TCSADRAIN, raw)

    before = signal.signal(signal.SIGCONT, enter)
    try:
        enter()
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, found)
        signal.signal(signal.SIGCONT, before)


class Keys(NamedTuple):
    """What was typed: bytes for the guest, and whether to end the machine."""

    text: bytes
    quit: bool


class EscapeKey:
    """Picks the escape sequences out of what is typed, wherever reads happen to cut it."""

    def __init__(self) -> None:
        self._escaped = False

    def read(self, typed: bytes) -> Keys:
        """The bytes for the guest among `typed`. What follows a quit key is dropped."""
        text = bytearray()
        for byte in typed:
            if not self._escaped:
                if byte == ESCAPE:
                    self._escaped = True
                else:
                    text.append(byte)
                continue
            self._escaped = False
            if byte in QUIT_KEYS:
                return Keys(bytes(text), True)
            if byte == ESCAPE:
                text.append(ESCAPE)
            # Any other key: the person thought better of it. Neither key reaches the guest.
        return Keys(bytes(text), False)
