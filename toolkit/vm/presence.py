"""Whether a machine's process lives, and which one it is: told by locks that the kernel drops when the process ends.

A process id in a file says neither: the process may be gone and its number another's. So the machine's process is given
an open file, `running`, with a lock on it (fcntl(2), open file description locks: a child that inherits the description
holds the lock as long as it lives). And the holder of QEMU's own lock on its pid file is named by F_GETLK.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import time
from pathlib import Path

from toolkit.vm.directory import MachineDirectory
from toolkit.vm.errors import WrongState

FLOCK = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid
RUNNING = "running"
PID_FILE = "qemu.pid"
POLL_PERIOD = 0.02  # seconds between looks at a lock


def claim(machine: MachineDirectory) -> int:
    """An open, locked `running`, for the machine's process to inherit. Raises WrongState when one has it; OSError."""
    fd = os.open(machine / RUNNING, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        os.close(fd)
        if isinstance(error, BlockingIOError | PermissionError):  # EAGAIN or EACCES (fcntl(2))
            raise WrongState(
                f"machine {machine.name!r} has a process already", remedy=f"vtk vm show {machine.name}"
            ) from error
        raise
    return fd


def is_alive(machine: MachineDirectory) -> bool:
    """Whether the machine's process lives."""
    return _lock_on(machine / RUNNING) is not None


def process_id(machine: MachineDirectory) -> int | None:
    """The machine's process, once it has locked its pid file."""
    return _lock_on(machine / PID_FILE)


def left_behind(machine: MachineDirectory) -> bool:
    """Whether the last process ended without removing its pid file, which QEMU does whenever it can."""
    return (machine / PID_FILE).exists()


def wait_for_end(machine: MachineDirectory, timeout: float) -> bool:
    """Whether the process is gone within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while is_alive(machine):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_PERIOD)
    return True


def kill(machine: MachineDirectory, timeout: float) -> bool:
    """SIGKILL. Whether the process is gone within `timeout` seconds."""
    pid = process_id(machine)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                # Held by a descriptor and still the lock's holder: the number cannot have passed to another process.
                if process_id(machine) == pid:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    select.select([pidfd], [], [], timeout)
            finally:
                os.close(pidfd)
    return wait_for_end(machine, timeout)


def _lock_on(file: Path) -> int | None:
    """The process that holds a lock on `file`, -1 for an open file description's; None when nobody does."""
    try:
        fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # F_OFD_GETLK, for F_GETLK would not see a lock of this very process.
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(fd)
    kind, _, _, _, pid = FLOCK.unpack(answer)
    return None if kind == fcntl.F_UNLCK else int(pid)
