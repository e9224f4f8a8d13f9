"""Bytes become requests whatever they are, and however they arrive."""

from __future__ import annotations

import json
from itertools import pairwise, takewhile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minivmm.control import messages
from minivmm.control.messages import MAX_DEPTH, MAX_TEXT, QmpError, Request, Splitter, TooMuch, parse

words = st.text('aé😀"\\{}[]: \n', max_size=8)
values = st.none() | st.integers() | words | st.lists(words, max_size=3) | st.dictionaries(words, words, max_size=3)
hostile = st.binary() | st.lists(st.sampled_from(list(b'{}[]"\\\n: ,a1\xff')), max_size=40).map(bytes)


def accepts(splitter: Splitter, data: bytes) -> bool:
    try:
        list(splitter.feed(data))
    except TooMuch:
        return False
    return True


def split(*chunks: bytes) -> list[bytes]:
    splitter = Splitter()
    return [text for chunk in chunks for text in splitter.feed(chunk)]


@given(
    st.lists(st.dictionaries(words, values, max_size=3), max_size=3),
    st.sampled_from([b"", b"\n", b"\r\n", b"  "]),
    st.sets(st.integers(0, 200), max_size=5),
)
def test_objects_are_found_however_the_bytes_are_cut_and_joined(
    objects: list[dict[str, object]], between: bytes, cuts: set[int]
) -> None:
    stream = between.join(json.dumps(content).encode() for content in objects)
    ends = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    texts = split(*(stream[start:end] for start, end in pairwise(ends)))
    assert [json.loads(text) for text in texts] == objects


@given(st.lists(hostile, max_size=5))
@example([b'{"a\\', b'"}'])
def test_no_bytes_do_more_than_be_refused(chunks: list[bytes]) -> None:
    for text in split(*chunks):
        try:
            parse(text)
        except QmpError as error:
            json.loads(messages.failure(error))


@given(hostile)
def test_after_any_junk_a_new_line_is_understood(junk: bytes) -> None:
    splitter = Splitter()
    list(splitter.feed(junk))
    # Two lines: the first may end inside an array that the junk began, the second one ends with that.
    list(splitter.feed(b'"\n' + b"}" * junk.count(b"{") + b"]" * junk.count(b"[") + b"\n"))
    assert parse(list(splitter.feed(b'\n{"execute": "stop"}'))[-1]) == Request("stop", {})


def test_what_a_client_can_have_held_is_bounded() -> None:
    splitter = Splitter()
    fed = sum(1 for _ in takewhile(lambda _: accepts(splitter, b'{"execute": "' + b"x" * 4096), range(1000)))
    assert fed * 4096 <= MAX_TEXT
    with pytest.raises(TooMuch):
        split(b"[" * (MAX_DEPTH + 1))
    assert split(b'"' + b"y" * (MAX_TEXT - 2) + b'"') == []


@pytest.mark.parametrize(
    ("text", "desc"),
    [
        (b"[]", "must be a JSON object"),
        (b"{}", "lacks member 'execute'"),
        (b'{"execute": 1}', "must be a string"),
        (b'{"execute": "a", "arguments": []}', "'arguments' must be an object"),
        (b'{"execute": "a", "control": {}}', "'control' is unexpected"),
        (b'{"execute": "a", "execute": "b"}', "duplicate key"),
        (b'{"execute": "a", "id": NaN}', "NaN"),
        (b'{"execute": "a", "id": 1e999}', "too large"),
        (b'{"execute": "\xff"}', "syntax"),
        (b'{"execute": "a", "id": ' + b"9" * 5000 + b"}", "syntax"),
    ],
)
def test_what_is_no_request_is_said_to_be_none(text: bytes, desc: str) -> None:
    with pytest.raises(QmpError, match=desc):
        parse(text)


def test_the_id_of_a_bad_request_comes_back() -> None:
    with pytest.raises(QmpError) as refused:
        parse(b'{"execute": 1, "id": ["\\ud800", null]}')
    assert json.loads(messages.failure(refused.value))["id"] == ["\ud800", None]
