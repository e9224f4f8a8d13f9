"""The end of an output that may be endless."""

from __future__ import annotations


class Tail:
    """Keeps the last `limit` bytes written."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()

    def write(self, data: bytes) -> None:
        """Takes what came, and lets go of what is too old. Cutting a bytearray's front moves no byte."""
        self._kept += data
        if len(self._kept) > self._limit:
            del self._kept[: -self._limit]

    def __bytes__(self) -> bytes:
        return bytes(self._kept)
