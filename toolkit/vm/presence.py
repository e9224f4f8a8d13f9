"""Whether a machine's process lives, and which one it is: told by locks that the kernel drops when the process ends.

A process id in a file says neither: the process may be gone and its number another's. So the machine's process is given
an open file, `running`, with a lock on it (fcntl(2), open file description locks: a child that inherits the description
holds the lock as long as it lives). And the holder of QEMU's own lock on its pid file is named by F_GETLK.

A machine that moves from one process to another has two for a while, so there are two slots: the names of a process'
files end in its slot. The machine is the process that was there first, until that one ends; `incoming` says which came
later. So the move is done at the moment the kernel drops the old process' lock, whoever is killed when.
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
from toolkit.vm.errors import StateError, WrongState

FLOCK = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid
RUNNING = "running"
PID_FILE = "qemu.pid"
SLOTS = ("", ".2")  # what the names of a process' files end in
INCOMING = "incoming"  # has the slot of the process that a machine is moving to, as long as it moves
POLL_PERIOD = 0.02  # seconds between looks at a lock


def slot_of(machine: MachineDirectory) -> str | None:
    """The slot of the machine's process; None when none lives."""
    living = [slot for slot in SLOTS if _lock_on(machine / (RUNNING + slot)) is not None]
    if len(living) == 2:
        later = incoming(machine)
        living.remove(SLOTS[1] if later is None else later)
    return living[0] if living else None


def incoming(machine: MachineDirectory) -> str | None:
    """The slot of the process that the machine is moving to, or was when a vtk was killed."""
    try:
        slot = (machine / INCOMING).read_text().rstrip("\n")
    except OSError:
        return None
    return slot if slot in SLOTS else None


def file_name(machine: MachineDirectory, name: str, slot: str | None = None) -> str:
    """The name of a file of the process in `slot`, by default the machine's."""
    return name + ((slot_of(machine) or "") if slot is None else slot)


def claim(machine: MachineDirectory, slot: str = "") -> int:
    """An open, locked `running`, for the machine's process to inherit. Raises WrongState when one has it; OSError."""
    fd = os.open(machine / (RUNNING + slot), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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


def expect(machine: MachineDirectory, slot: str) -> None:
    """A process is about to be started in `slot`: its pid file is there, and empty until the process has locked it.

    Raises StateError.
    """
    file = machine / (PID_FILE + slot)
    try:
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StateError(f"{file} cannot be written", cause=error.strerror or str(error)) from error


def is_expected(machine: MachineDirectory, slot: str) -> bool:
    """Whether the process in `slot`, which lives without a locked pid file, will have one. Else it is ending.

    QEMU writes to its pid file as soon as it has locked it, and removes it before it ends. Then the kernel takes its
    memory down, and drops its locks last: 10 ms for a small guest, a second and more for a Linux under TCG.
    """
    return _size(machine / (PID_FILE + slot)) == 0


def is_alive(machine: MachineDirectory, slot: str | None = None) -> bool:
    """Whether the machine's process lives, or the one in `slot`."""
    return any(_lock_on(machine / (RUNNING + one)) is not None for one in (SLOTS if slot is None else (slot,)))


def process_id(machine: MachineDirectory, slot: str | None = None) -> int | None:
    """The machine's process, or the one in `slot`, once it has locked its pid file."""
    return _lock_on(machine / file_name(machine, PID_FILE, slot))


def left_behind(machine: MachineDirectory) -> bool:
    """Whether the last process ended without removing its pid file, which QEMU does whenever it can."""
    return any(_size(machine / (PID_FILE + slot)) for slot in SLOTS)


def forget(machine: MachineDirectory, slot: str | None = None) -> None:
    """The process in `slot`, by default in both, is known to have ended."""
    for one in SLOTS if slot is None else (slot,):
        (machine / (PID_FILE + one)).unlink(missing_ok=True)
    (machine / INCOMING).unlink(missing_ok=True)


def wait_for_end(machine: MachineDirectory, timeout: float, slot: str | None = None) -> bool:
    """Whether the machine's processes, or the one in `slot`, are gone within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while is_alive(machine, slot):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_PERIOD)
    return True


def kill(machine: MachineDirectory, timeout: float, slot: str | None = None) -> bool:
    """SIGKILL, to the process in `slot`, by default to both. Whether they are gone within `timeout` seconds."""
    for one in SLOTS if slot is None else (slot,):
        pid = process_id(machine, one)
        if pid is None:
            continue
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                # Held by a descriptor and still the lock's holder: the number cannot have passed to another process.
                if process_id(machine, one) == pid:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    select.select([pidfd], [], [], timeout)
            finally:
                os.close(pidfd)
    return wait_for_end(machine, timeout, slot)


def _size(file: Path) -> int | None:
    """Bytes; None when it is not there."""
    try:
        return file.stat().st_size
    except OSError:
        return None


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
