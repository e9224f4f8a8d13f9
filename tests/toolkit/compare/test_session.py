"""Whatever bytes come, in whatever pieces: lines of the protocol come out whole, and memory stays bounded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivmm.outcome import Outcome, RunResult
from toolkit.compare.session import (
    MAX_LINE,
    MAX_PENDING,
    TAIL,
    LineBuffer,
    MachineSession,
    ProcessSession,
    SessionEnded,
    SessionSilent,
)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40)))
def test_only_whole_lines_that_begin_with_a_brace_come_out(pieces: list[bytes]) -> None:
    buffer = LineBuffer()
    for now, piece in enumerate(pieces):
        buffer.feed(piece, now)

    expected = [line for line in b"".join(pieces).split(b"\n")[:-1] if line.startswith(b"{")]
    assert [line for _, line in buffer.lines] == expected


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=20).map(lambda text: b"{" + text.replace(b"\n", b"") + b"\n")))
def test_a_line_is_stamped_when_its_newline_comes(lines: list[bytes]) -> None:
    buffer = LineBuffer()
    clock = 0
    stamps = []
    for line in lines:
        for index in range(len(line)):
            clock += 1
            assert buffer.feed(line[index : index + 1], clock) is (index == len(line) - 1)
        stamps.append(clock)

    assert [stamp for stamp, _ in buffer.lines][:MAX_PENDING] == stamps[:MAX_PENDING]


@pytest.mark.parametrize("piece", [b"x" * 1000, b"{" * 1000, b"{}\n" * 300, b"text\n" * 200, b"\n"])
def test_a_flood_does_not_grow(piece: bytes) -> None:
    buffer = LineBuffer()
    for _ in range(1000):
        buffer.feed(piece, 0)

    assert len(buffer.lines) <= MAX_PENDING
    assert len(buffer._partial) <= MAX_LINE + len(piece)
    assert len(buffer._tail) <= TAIL
    assert len(buffer.text()) <= TAIL


def test_an_overlong_line_is_dropped_whole_and_the_next_is_read() -> None:
    buffer = LineBuffer()
    for _ in range(40):
        buffer.feed(b"{" * 1000, 0)
    buffer.feed(b'}\n{"ready":1}\n', 7)

    assert list(buffer.lines) == [(7, b'{"ready":1}')]


def test_text_is_kept_printable() -> None:
    buffer = LineBuffer()
    buffer.feed(b"\x1b[31mred\xff\nnext", 0)

    assert buffer.text() == "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}\nnext"


def test_a_program_that_is_not_there_is_a_session_that_ended() -> None:
    with pytest.raises(SessionEnded, match="cannot be started: No such file"):
        ProcessSession(["/nonexistent/bench"])


def test_a_process_that_ends_is_reaped_with_its_children() -> None:
    session = ProcessSession(["/bin/sh", "-c", "sleep 60 & echo '{\"pid\":'$!'}'; wait"])
    _, line = session.read_line(time.monotonic() + 10)
    child = int(line.split(b":")[1].rstrip(b"}"))

    session.close()

    for _ in range(1000):  # init reaps an orphan in its own time
        state = _state(child)
        if state in ("", "Z"):
            break
        time.sleep(0.01)
    assert state in ("", "Z")


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class FakeMachine:
    """A machine whose guest is a thread's worth of Python: it answers each command, and ends at `quit`."""

    def __init__(self, console: Callable[[bytes], None], end: RunResult) -> None:
        self._console = console
        self._end = end
        self._over = threading.Event()
        self.closed = False

    def start(self, timeout: float = 60.0) -> None:
        assert timeout == 9.0
        self._console(b'{"ready":')
        self._console(b'"bench"}\r\n')

    def wait(self) -> RunResult:
        self._over.wait()
        return self._end

    def stop(self) -> None:
        self._over.set()

    def send(self, data: bytes) -> None:
        if data == b"quit\n":
            self._console(b"bye\n")
            self._over.set()

    def close(self) -> None:
        self.closed = True


def machine_session(end: RunResult) -> tuple[MachineSession, list[FakeMachine]]:
    machines: list[FakeMachine] = []

    def build(console: Callable[[bytes], None]) -> FakeMachine:
        machines.append(FakeMachine(console, end))
        return machines[0]

    return MachineSession(build, lifetime=9.0, counters=lambda: {"io": 3}), machines


def test_a_machine_is_heard_and_its_end_is_told() -> None:
    session, machines = machine_session(RunResult(Outcome.EXITED, code=3))
    before = time.monotonic_ns()
    stamp, line = session.read_line(time.monotonic() + 10)
    assert line == b'{"ready":"bench"}\r'
    assert stamp <= before
    assert session.exits() == {"io": 3}

    session.send_line("quit")

    with pytest.raises(SessionEnded, match="the machine ended: exited with code 3"):
        session.read_line(time.monotonic() + 10)
    with pytest.raises(SessionEnded):
        session.send_line("run cpu 1")
    assert session.text() == "bye\n"
    session.close()
    assert machines[0].closed


def test_a_machine_that_says_nothing_is_silent_at_the_deadline() -> None:
    session, machines = machine_session(RunResult(Outcome.INTERRUPTED))
    session.read_line(time.monotonic() + 10)

    with pytest.raises(SessionSilent, match="no answer in time"):
        session.read_line(time.monotonic() + 0.01)

    session.close()
    assert machines[0].closed
