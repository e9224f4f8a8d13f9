"""What a process costs the host in memory: its proportional set size, from /proc/PID/smaps (proc(5)).

PSS shares each page among those that map it, so what several machines have in common (QEMU's code) is counted once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from minivmm.errors import HostError

GUEST_RAM = "/memfd:memory-backend-memfd"  # QEMU's name for it
HEADER = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)")
PSS = re.compile(r"Pss: +(\d+) kB")


class MemoryUnreadable(HostError):
    """A process's memory map may not be read, or the process is gone."""


class Memory(NamedTuple):
    """Bytes."""

    own: int
    """All but the guest's RAM."""
    guest: int
    """The guest's RAM, as far as it was touched."""


def memory_of(pid: int) -> Memory:
    """What process `pid` costs. Raises MemoryUnreadable."""
    try:
        text = Path(f"/proc/{pid}/smaps").read_text(errors="replace")
    except OSError as error:
        raise MemoryUnreadable(
            f"the memory of process {pid} cannot be read", cause=error.strerror or str(error), remedy="run as its user"
        ) from error
    own = guest = 0
    mapping = ""
    for line in text.splitlines():
        if found := PSS.fullmatch(line):
            size = int(found[1]) << 10
            if mapping.startswith(GUEST_RAM):
                guest += size
            else:
                own += size
        elif found := HEADER.fullmatch(line):
            mapping = found[1]
    return Memory(own, guest)


def parent_of(pid: int) -> int:
    """The parent process. Raises MemoryUnreadable when the process is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError as error:
        raise MemoryUnreadable(f"process {pid} is gone", cause=error.strerror or str(error)) from error
    found = re.search(r"^PPid:\s*(\d+)$", status, re.MULTILINE)
    return int(found[1]) if found else 0
