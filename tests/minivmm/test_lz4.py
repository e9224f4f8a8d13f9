"""LZ4 legacy frames come out as they went in, and damaged ones are refused."""

from __future__ import annotations

import shutil
import struct
import subprocess
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivmm.boot.lz4 import BLOCK_SIZE, MAGIC, Lz4Error, decompress

LIMIT = 32 << 20


def length(count: int) -> tuple[int, bytes]:
    """A length as the token's four bits and the bytes after it."""
    if count < 15:
        return count, b""
    return 15, b"\xff" * ((count - 15) // 255) + bytes([(count - 15) % 255])


def sequence(literals: bytes, distance: int = 0, match: int = 0) -> bytes:
    """One sequence; the last of a block has no match."""
    high, literal_bytes = length(len(literals))
    if not match:
        return bytes([high << 4]) + literal_bytes + literals
    low, match_bytes = length(match - 4)
    return bytes([high << 4 | low]) + literal_bytes + literals + struct.pack("<H", distance) + match_bytes


def block(data: bytes) -> bytes:
    """`data` packed greedily: always the latest earlier place where four bytes are the same."""
    seen: dict[bytes, int] = {}
    out, start, position = bytearray(), 0, 0
    while position + 4 <= len(data):
        key = data[position : position + 4]
        found = seen.get(key)
        seen[key] = position
        if found is None or position - found > 0xFFFF:
            position += 1
            continue
        match = 4
        while position + match < len(data) and data[found + match] == data[position + match]:
            match += 1
        out += sequence(data[start:position], position - found, match)
        position += match
        start = position
    return bytes(out + sequence(data[start:]))


def frame(*blocks: bytes) -> bytes:
    return MAGIC + b"".join(struct.pack("<I", len(block)) + block for block in blocks)


@given(st.lists(st.one_of(st.binary(max_size=600), st.binary(min_size=1, max_size=3).map(lambda part: part * 500))))
@settings(deadline=None)
def test_content_comes_out_as_it_went_in(parts: list[bytes]) -> None:
    content = b"".join(parts)
    assert decompress(frame(block(content)), LIMIT) == content
    assert decompress(frame(*map(block, parts)) + struct.pack("<I", len(content)), LIMIT) == content


@pytest.mark.skipif(shutil.which("lz4") is None, reason="the lz4 program is not on PATH (try: sudo apt install lz4)")
def test_frames_of_the_lz4_program_are_read() -> None:
    content = b"".join(struct.pack("<Q", number * number) for number in range(1 << 17)) * 10  # two blocks
    assert len(content) > BLOCK_SIZE
    packed = subprocess.run(["lz4", "-l", "-9", "-c"], input=content, capture_output=True, timeout=60, check=True)
    assert decompress(packed.stdout, LIMIT) == content


@pytest.mark.parametrize(
    ("what", "packed"),
    [
        ("no LZ4 legacy frame", b"\x04\x22\x4d\x18" + bytes(16)),
        ("does not fit the frame", frame(block(b"content"))[:-3]),
        ("does not fit the frame", MAGIC + bytes(8)),
        ("in the middle of a sequence", frame(b"\xf0\xff\xff")),
        ("in the middle of a sequence", frame(sequence(b"abcd", 4, 4))),
        ("literals beyond the block", frame(b"\x90four")),
        ("0 bytes back", frame(sequence(b"abcd", 0, 4) + sequence(b"efghi"))),
        ("5 bytes back, where 4 are", frame(sequence(b"abcd", 5, 4) + sequence(b"efghi"))),
        ("larger than 8 MiB", frame(sequence(b"a", 1, BLOCK_SIZE) + sequence(b"efghi"))),
        ("more than 33554432 bytes", frame(*[sequence(b"a", 1, BLOCK_SIZE - 6) + sequence(b"efghi")] * 5)),
    ],
)
def test_a_malformed_frame_is_refused_in_words(what: str, packed: bytes) -> None:
    with pytest.raises(Lz4Error, match=what):
        decompress(packed, LIMIT)


@given(st.binary(max_size=200), st.integers(0, 250), st.binary(min_size=1, max_size=4))
def test_any_damage_is_an_error_or_content(content: bytes, at: int, replacement: bytes) -> None:
    damaged = bytearray(frame(block(content * 2)))
    damaged[at : at + len(replacement)] = replacement
    with suppress(Lz4Error):
        decompress(bytes(damaged), LIMIT)
