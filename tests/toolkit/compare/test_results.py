"""Results survive their JSON, and nothing else passes for results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolkit.compare.results import Report, Result, ResultsError, Status, from_json, load, schema, to_json

TIMES = st.floats(0.001, 1e12)
NAMES = st.text(min_size=1, max_size=12)
MEASURED = st.builds(
    Result,
    technique=NAMES,
    workload=NAMES,
    status=st.just(Status.OK),
    median=TIMES,
    mad=TIMES,
    samples=st.lists(TIMES, min_size=1, max_size=5).map(tuple),
    iterations=st.integers(1, 1 << 60),
    marker=TIMES,
    checksum=st.just("0123456789abcdef"),
    exits=st.dictionaries(NAMES, st.floats(0, 1e6), max_size=3),
)
ABSENT = st.builds(
    Result,
    technique=NAMES,
    workload=NAMES,
    status=st.sampled_from([Status.FAILED, Status.UNSUPPORTED]),
    reason=NAMES,
    remedy=st.text(max_size=12),
)
REPORTS = st.builds(
    Report,
    host=st.dictionaries(NAMES, st.text() | st.integers(), max_size=3),
    run=st.dictionaries(NAMES, st.text() | st.booleans(), max_size=3),
    results=st.lists(MEASURED | ABSENT, max_size=5).map(tuple),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # of a busy host
@given(REPORTS)
def test_a_report_comes_back_from_its_json_as_it_was(report: Report) -> None:
    assert from_json(to_json(report)) == report


def test_the_schema_is_a_valid_schema() -> None:
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(schema())


def document(**changes: Any) -> dict[str, Any]:
    result = {
        "technique": "native",
        "workload": "cpu",
        "status": "ok",
        "reason": "",
        "unit": "ns/op",
        "median": 1.0,
        "mad": 0.0,
        "samples": [1.0],
        "iterations": 1,
        "checksum": "0123456789abcdef",
        "exits": {},
    }
    return {"schema": 1, "host": {}, "results": [result | changes]}


def test_the_fields_agreed_on_are_enough() -> None:
    assert from_json(json.dumps(document())).results[0].median == 1.0


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "fine"},
        {"unit": "s"},
        {"checksum": "xyz"},
        {"checksum": None},
        {"samples": []},
        {"samples": ["1"]},
        {"median": None},
        {"mad": -1.0},
        {"exits": {"io": -1}},
        {"iterations": 0},
        {"status": "failed", "reason": "dead"},
        {"status": "failed", "median": None, "samples": []},
        {"surprise": 1},
    ],
)
def test_a_wrong_field_is_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(ResultsError, match="not the results of a comparison"):
        from_json(json.dumps(document(**changes)))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2, "host": {}, "results": []}', "{", "null"])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(ResultsError):
        from_json(text)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "binary"):
        with pytest.raises(ResultsError, match="cannot be read"):
            load(path)
