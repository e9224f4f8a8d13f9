"""Where vtk keeps what can be had again: below $XDG_CACHE_HOME (XDG Base Directory Specification), or ~/.cache."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(kind: str) -> Path:
    """The directory for one kind of things. It may not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "vtk", kind)
