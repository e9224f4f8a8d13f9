"""Telling a person what takes so long."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click

LONG = 2.0  # seconds


@contextlib.contextmanager
def told_when_long(doing: str) -> Iterator[None]:
    """Says what is done on standard error when the block takes long."""
    import threading

    timer = threading.Timer(LONG, click.echo, [f"vtk: {doing} ..."], {"err": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
