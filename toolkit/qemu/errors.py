"""Errors of QEMU as a machine.

HostError
├── QemuMissing   no QEMU binary, or one without the accelerator asked for
└── QemuError     QEMU did not start, died, or refused a command: `words` is what it said
"""

from __future__ import annotations

from minivmm.errors import HostError


class QemuMissing(HostError):
    """There is no QEMU that can do what was asked."""


class QemuError(HostError):
    """QEMU failed. `words` is its standard error, or the QMP error's description."""

    def __init__(self, message: str, words: str = "", *, remedy: str = "") -> None:
        super().__init__(message, cause=words.strip(), remedy=remedy)
        self.words = words
