"""QEMU as one more machine: found on the host (`find`), driven over QMP (`machine`).

QemuMachine has the verbs of `minivmm.Machine` (run, start, wait, stop, send, exits, close) and the same outcomes,
and takes the same guest files, so whatever drives one drives the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.qemu.errors import QemuError, QemuMissing
    from toolkit.qemu.find import QemuBinary, find_qemu
    from toolkit.qemu.machine import QemuMachine
    from toolkit.qemu.microvm import Accelerator, Microvm

__all__ = ["Accelerator", "Microvm", "QemuBinary", "QemuError", "QemuMachine", "QemuMissing", "find_qemu"]

# asyncio and qemu.qmp take 100 ms to import: nobody pays for them who only asks whether QEMU is there.
_HOME = {
    "Accelerator": "microvm",
    "Microvm": "microvm",
    "QemuBinary": "find",
    "QemuError": "errors",
    "QemuMachine": "machine",
    "QemuMissing": "errors",
    "find_qemu": "find",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
