"""Killing a verb at each of its steps in turn: before every change that it makes to the world outside it.

CPython's audit events (PEP 578) come before the step is done, so killing at the first, the second, … of them leaves
the world as a SIGKILL or a power cut in every interesting moment would. No clock is involved.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

CHANGES = frozenset(
    "os.mkdir os.rename os.remove os.rmdir os.truncate os.link os.symlink fcntl.flock fcntl.fcntl"  # noqa: SIM905
    " socket.bind socket.connect subprocess.Popen shutil.rmtree".split()
)
WRITING = os.O_WRONLY | os.O_RDWR
COUNT_MAX = 1000


def _changes(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        return bool(arguments[2] & WRITING)
    return event in CHANGES


def killed_before(step: int, verb: Callable[[], object]) -> bool:
    """Runs `verb` in a child of this process, killed before its `step`th change, from 0 on.

    Returns False when it ended, well, before it came so far. A verb that fails is an AssertionError.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            steps = 0

            def count(event: str, arguments: tuple[Any, ...]) -> None:
                nonlocal steps
                if _changes(event, arguments):
                    if steps == step:
                        os.kill(os.getpid(), signal.SIGKILL)
                    steps += 1

            sys.addaudithook(count)
            verb()
            status = 0
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    if os.WIFSIGNALED(ended):
        assert os.WTERMSIG(ended) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(ended) == 0, f"the verb failed before step {step}"
    assert step < COUNT_MAX
    return False
