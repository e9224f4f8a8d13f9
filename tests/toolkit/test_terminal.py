"""The escape key, however what is typed is cut up; raw mode, however it is left."""

from __future__ import annotations

import os
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.terminal import EscapeKey, Keys, is_ours, raw_mode

TYPED = st.lists(st.sampled_from([b"\x1d", b"q", b"x", b"a", b"\x03", b"\r"])).map(b"".join)


@given(TYPED, st.integers(0, 50))
def test_where_a_read_ends_changes_nothing(typed: bytes, cut: int) -> None:
    whole = EscapeKey().read(typed)
    pieces = EscapeKey()
    first = pieces.read(typed[:cut])
    second = Keys(b"", True) if first.quit else pieces.read(typed[cut:])
    assert (first.text + second.text, first.quit or second.quit) == whole


@given(st.binary().filter(lambda data: b"\x1d" not in data))
def test_without_the_escape_key_every_byte_passes(typed: bytes) -> None:
    assert EscapeKey().read(typed) == Keys(typed, False)


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        (b"ab\x1dqcd", Keys(b"ab", True)),
        (b"\x1dX", Keys(b"", True)),
        (b"\x1d\x1d", Keys(b"\x1d", False)),
        (b"a\x1dnb", Keys(b"ab", False)),
    ],
)
def test_the_escape_sequences(typed: bytes, keys: Keys) -> None:
    assert EscapeKey().read(typed) == keys


def test_raw_mode_is_undone_when_the_block_fails() -> None:
    master, slave = os.openpty()
    before = termios.tcgetattr(slave)
    inside = []

    def fail_in_raw_mode() -> None:
        with raw_mode(slave):
            inside.append(termios.tcgetattr(slave)[3])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_in_raw_mode()
    assert not inside[0] & (termios.ECHO | termios.ISIG | termios.ICANON)
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_a_terminal_of_another_session_is_not_ours() -> None:
    master, slave = os.openpty()
    assert not is_ours(slave)
    os.close(master)
    os.close(slave)
