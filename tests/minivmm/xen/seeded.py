"""Seeded mistakes: a line of our own code as somebody might have written it, for a search that must find it."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any


def mistaken(right: Callable[..., Any], line: str, mistake: str) -> Callable[..., Any]:
    """The function or method `right` with `mistake` in place of `line`, which stands in it once."""
    source = textwrap.dedent(inspect.getsource(right))
    assert source.count(line) == 1, f"{right.__name__} has changed"
    namespace: dict[str, Any] = dict(right.__globals__)
    code = "from __future__ import annotations\n" + source.replace(line, mistake)
    exec(compile(code, right.__name__, "exec"), namespace)
    wrong: Callable[..., Any] = namespace[right.__name__]
    return wrong
