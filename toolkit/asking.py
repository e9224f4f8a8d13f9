"""Asking a program of the host something short: its version, what it supports."""

from __future__ import annotations

import subprocess


def answer_of(*command: str, timeout: float) -> str:
    """What `command` prints on standard output; "" when it is not there, or does not answer within `timeout` s."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
