"""Any line a guest may send is either what the protocol says or one of the protocol's errors."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivmm.errors import VtkError
from toolkit.compare import protocol
from toolkit.compare.session import SessionEnded

CHECKSUM = "0123456789abcdef"


class Script:
    """A session that says the lines given, a microsecond apart, and then ends."""

    def __init__(self, lines: Iterable[object]) -> None:
        self.lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        self.sent: list[str] = []
        self._now = 0

    def send_line(self, line: str) -> None:
        self.sent.append(line)

    def read_line(self, deadline: float) -> tuple[int, bytes]:
        assert deadline > 0
        if not self.lines:
            raise SessionEnded("the script ended")
        self._now += 1000
        return self._now, self.lines.pop(0)

    def exits(self) -> dict[str, int]:
        return {}

    def text(self) -> str:
        return ""

    def close(self) -> None:
        pass


def run(*lines: object, batches: int = 2) -> protocol.Sample:
    return protocol.run(Script(lines), "cpu", batches, 1.0)


def test_a_run_is_timed_from_begin_to_end() -> None:
    script = Script([{"begin": "cpu"}, {"end": "cpu", "checksum": CHECKSUM, "ops": 20}])

    assert protocol.run(script, "cpu", 2, 1.0) == protocol.Sample(1000, 20, CHECKSUM)
    assert script.sent == ["run cpu 2"]


def test_the_ready_line_names_the_workloads() -> None:
    assert protocol.read_ready(Script([{"ready": "bench", "workloads": ["a", "b"]}]), 1.0) == ("a", "b")


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"ready": "hello"},
        {"ready": "bench"},
        {"ready": "bench", "workloads": [1]},
        b"[]",
        b"{",
        b"\xff",
        b"1" * 5000,
    ],
)
def test_another_first_line_breaks_the_protocol(line: object) -> None:
    with pytest.raises(protocol.ProtocolBroken):
        protocol.read_ready(Script([line]), 1.0)


@pytest.mark.parametrize(
    "end",
    [
        {"end": "call", "checksum": CHECKSUM, "ops": 20},
        {"end": "cpu", "ops": 20},
        {"end": "cpu", "checksum": CHECKSUM.upper(), "ops": 20},
        {"end": "cpu", "checksum": CHECKSUM + "0", "ops": 20},
        {"end": "cpu", "checksum": CHECKSUM},
        {"end": "cpu", "checksum": CHECKSUM, "ops": 1},
        {"end": "cpu", "checksum": CHECKSUM, "ops": -20},
        {"end": "cpu", "checksum": CHECKSUM, "ops": True},
        {"end": "cpu", "checksum": CHECKSUM, "ops": 20.0},
        {"end": "cpu", "checksum": CHECKSUM, "ops": 1 << 64},
        {"begin": "cpu"},
    ],
)
def test_another_end_line_breaks_the_protocol(end: object) -> None:
    with pytest.raises(protocol.ProtocolBroken):
        run({"begin": "cpu"}, end)


def test_operations_without_batches_break_the_protocol() -> None:
    with pytest.raises(protocol.ProtocolBroken):
        run({"begin": "cpu"}, {"end": "cpu", "checksum": CHECKSUM, "ops": 20}, batches=0)


def test_an_error_line_is_a_refusal_before_and_after_begin() -> None:
    with pytest.raises(protocol.WorkloadRefused, match="no disk"):
        run({"error": "no disk"})
    with pytest.raises(protocol.WorkloadRefused, match="batches differ"):
        run({"begin": "cpu"}, {"error": "batches differ"})


def test_unsupported_is_told_from_an_error() -> None:
    with pytest.raises(protocol.WorkloadUnsupported) as caught:
        run({"error": "unsupported: a process has no ports"})
    assert caught.value.message == "a process has no ports"
    with pytest.raises(protocol.WorkloadRefused) as refused:
        run({"error": "it is unsupported: no"})
    assert not isinstance(refused.value, protocol.WorkloadUnsupported)


def test_a_refusal_of_any_length_is_quoted_briefly_and_printably() -> None:
    with pytest.raises(protocol.WorkloadRefused) as caught:
        run({"error": "\x1b[2J" + "x" * 10_000})
    assert len(caught.value.message) <= protocol.MAX_REASON + 1
    assert "\x1b" not in caught.value.message


NEAR_MISSES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["cpu", CHECKSUM]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["begin", "end", "checksum", "ops", "error", "ready"]), inner, max_size=4)
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60) | NEAR_MISSES, max_size=4), st.integers(0, 3))
def test_no_line_raises_anything_else(lines: list[object], batches: int) -> None:
    try:
        sample = run(*lines, batches=batches)
    except VtkError:
        return
    assert sample.ops >= batches
    assert sample.ns > 0
