"""LZ4 as the kernel's build writes it: the legacy frame (lz4_Frame_format.md, "Legacy frame").

A magic number, then blocks, each with its compressed size before it; nothing marks the end. A block
(lz4_Block_format.md) is sequences of literals and a match, a copy of what came out before.
"""

from __future__ import annotations

import struct

MAGIC = b"\x02\x21\x4c\x18"  # 0x184C2102, little-endian
BLOCK_SIZE = 8 << 20  # what a block unpacks to, at most
MIN_MATCH = 4
EXTENDED = 15  # a nibble of the token that says: add the bytes that follow
MORE = 255  # such a byte that is not the last


class Lz4Error(ValueError):
    """The bytes are no LZ4 legacy frame."""


def decompress(frame: bytes, limit: int) -> bytes:
    """The content of `frame`, after which four bytes may follow (the kernel's build notes the unpacked size there).

    Raises Lz4Error for what is malformed or unpacks to more than `limit` bytes.
    """
    if not frame.startswith(MAGIC):
        raise Lz4Error("no LZ4 legacy frame")
    content = bytearray()
    position = len(MAGIC)
    while len(frame) - position > 4:
        (size,) = struct.unpack_from("<I", frame, position)
        position += 4
        if not 0 < size <= len(frame) - position:
            raise Lz4Error(f"a block of {size} bytes at {position:#x} does not fit the frame")
        block = frame[position : position + size]
        try:
            content += _block(block)
        except IndexError:
            raise Lz4Error(f"the block at {position:#x} ends in the middle of a sequence") from None
        if len(content) > limit:
            raise Lz4Error(f"it unpacks to more than {limit} bytes")
        position += size
    return bytes(content)


def _block(block: bytes) -> bytearray:
    """One block unpacked. Raises Lz4Error, or IndexError where it is cut off.

    A kernel is some three million turns of this loop, 2 to 3 seconds: everything is local and inline.
    """
    out = bytearray()
    position, end, written = 0, len(block), 0
    while True:
        token = block[position]
        position += 1
        length = token >> 4
        if length:
            if length == EXTENDED:
                more = MORE
                while more == MORE:
                    more = block[position]
                    position += 1
                    length += more
            following = position + length
            if following > end:
                raise Lz4Error("literals beyond the block")
            out += block[position:following]
            position = following
            written += length
        if position == end:  # the last sequence has no match
            return out
        distance = block[position] | block[position + 1] << 8
        position += 2
        length = token & EXTENDED
        if length == EXTENDED:
            more = MORE
            while more == MORE:
                more = block[position]
                position += 1
                length += more
        length += MIN_MATCH
        if written + length > BLOCK_SIZE:  # before a byte is copied: a few bytes can ask for gigabytes
            raise Lz4Error("a block larger than 8 MiB")
        start = written - distance
        if start < 0 or not distance:
            raise Lz4Error(f"a match {distance} bytes back, where {written} are written")
        if length <= distance:
            out += out[start : start + length]
        else:  # it overlaps what it writes: the last `distance` bytes, over and over
            pattern = out[start:]
            out += (pattern * (length // distance + 1))[:length]
        written += length
