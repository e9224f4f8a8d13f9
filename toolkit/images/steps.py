"""One long-running program of an image's making: watched, told of, ended with us."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from toolkit.images.errors import ImageBuildFailed

# The kernel tells the first process only, and mmdebstrap's first process waits for the others: so here is one before it
# that passes a SIGTERM on to all, and stays until the program has cleaned up.
TELL_ALL = """
exec 3<&0
trap 'trap "" TERM; kill -TERM 0; wait "$!"' TERM
"$@" <&3 3<&- &
exec 3<&-
wait "$!"
"""

LAST_WORDS = 15  # lines of standard error that an error shows
END_GRACE = 10.0  # seconds between SIGTERM, at which mmdebstrap cleans up, and SIGKILL


def run(
    command: Sequence[str],
    name: str,
    *,
    timeout: float,
    scratch: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
    source: IO[bytes] | None = None,
    target: IO[bytes] | None = None,
) -> None:
    """Runs `command` to its end; its standard error goes line by line to `progress`. Raises ImageBuildFailed.

    `scratch` is where it makes its temporary files. It is ended when the time is up, when an exception (Ctrl-C)
    passes through here, and, by the kernel, when this thread dies.
    """
    words: deque[str] = deque(maxlen=LAST_WORDS)
    setpriv = shutil.which("setpriv")
    process = subprocess.Popen(
        [*([setpriv, "--pdeathsig", "TERM", "--", "sh", "-c", TELL_ALL, name] if setpriv else []), *command],
        stdin=source or subprocess.DEVNULL,
        stdout=target or subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a terminal's Ctrl-C comes through us
        env=os.environ | {"LC_ALL": "C.UTF-8"} | ({"TMPDIR": str(scratch)} if scratch else {}),
    )
    late = threading.Event()

    def end_late() -> None:
        late.set()
        _signal(process, signal.SIGKILL)

    watchdog = threading.Timer(timeout, end_late)
    watchdog.start()
    try:
        assert process.stderr is not None
        for line in process.stderr:
            text = line.decode(errors="replace").rstrip()
            if text:
                words.append(text)
                progress(text)
        status = process.wait()
    except BaseException:
        _end(process)
        raise
    finally:
        watchdog.cancel()
        if process.stderr is not None:
            process.stderr.close()
    if late.is_set():
        raise ImageBuildFailed(f"{name} did not end within {timeout:.0f} s", cause="\n".join(words))
    if status != 0:
        raise ImageBuildFailed(f"{name} failed with status {status}", cause="\n".join(words))


def _end(process: subprocess.Popen[bytes]) -> None:
    _signal(process, signal.SIGTERM)
    try:
        process.wait(END_GRACE)
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To all it started too: they share its session, and so its process group."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
