"""QEMU's RISC-V machine as a second opinion, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

QEMU = shutil.which("qemu-system-riscv64")
REASON = "qemu-system-riscv64 is not on PATH (try: sudo apt install qemu-system-misc)"

# QEMU's generic CPU without what ours does not have.
_ABSENT = "v h Zfh Zfhmin zba zbb zbc zbs sstc svinval svnapot svpbmt"
CPU = "rv64," + ",".join(f"{name}=off" for name in _ABSENT.split())


def run(image: Path, *, cpu: str = CPU, extra: tuple[str, ...] = (), timeout: float = 60) -> tuple[int, bytes]:
    """Runs a guest to its end: QEMU's exit status and what came over the serial port."""
    assert QEMU is not None
    done = subprocess.run(
        [
            *(QEMU, "-M", "virt", "-cpu", cpu, "-m", "64M", "-bios", "none", "-kernel", str(image)),
            *("-nographic", "-nodefaults", "-serial", "stdio", "-no-reboot", *extra),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=timeout,
        check=False,
    )
    return done.returncode, done.stdout
