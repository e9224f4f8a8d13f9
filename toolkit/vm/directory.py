"""A machine's directory, and the directory of all machines: $XDG_STATE_HOME/vtk/machines/NAME.

    config.json   what was decided when the machine was made; replaced whole or not at all
    image         the name of the image it was made from, where it was
    disk.qcow2    its disk: an overlay, the image is only read
    seed.iso      cloud-init's seed, where the image takes one: the key below, a host key, a name
    id_ed25519    the key that ssh uses, .pub beside it; known_hosts pins the guest's
    lock          flock(2)ed by the vtk that is changing the machine
    running       locked by the machine's process as long as it lives, and the process id in qemu.pid
    qmp.sock console.sock agent.sock console.log qemu.log   of the machine's process
    running.2 …   the same of a process that the machine has moved to, and `incoming` while it moves (presence)
    snapshots.json   what a machine must be like to be restored; the snapshots themselves are in disk.qcow2, those of a
                  machine without a disk in state.qcow2

A machine is made in a directory `.new-…` and gets its name by rename(2), and loses it so too: half a machine is never
seen. Creating and deleting hold the lock of the whole, so what such a name is found on then is left over, and removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

from minivmm.errors import ConfigError
from toolkit.vm.errors import MachineBusy, MachineExists, MachineMissing, StateError
from toolkit.vm.provider import SCHEMA, MachineConfig

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LOCK_TIMEOUT = 10.0  # seconds; a verb holds the lock for less, on a machine that answers
LOCK_PERIOD = 0.05  # seconds between tries
PRIVATE = 0o700
LEFT_OVER = (".new-", ".old-")


def user_state() -> Path:
    """Where vtk keeps what must outlive it: below $XDG_STATE_HOME (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "vtk")


def check_name(name: str, whose: str = "a machine") -> None:
    """Raises ConfigError for a name that cannot be anybody's."""
    if not NAME.fullmatch(name):
        shown = name if len(name) <= 80 else f"{name[:80]}…"
        raise ConfigError(
            f"{shown!r} cannot be {whose}'s name",
            cause="a name has up to 64 of a-z A-Z 0-9 . _ - and begins with a letter or a digit",
            remedy="web-1",
        )


class MachineDirectory:
    """One machine's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def config(self) -> MachineConfig:
        """Raises StateError when config.json is not one of ours, MachineMissing when the machine is gone."""
        file = self / "config.json"
        try:
            content = json.loads(file.read_bytes())
            if content["schema"] != SCHEMA:
                raise ValueError(f"written by another version of vtk (schema {content['schema']})")
            known = {field.name for field in fields(MachineConfig)}
            return MachineConfig(**{key: value for key, value in content.items() if key in known})
        except FileNotFoundError as error:
            if not self.path.is_dir():
                raise MachineMissing(self.name) from error
            raise self._damaged("config.json is missing") from error
        except OSError as error:
            raise StateError(f"{file} cannot be read", cause=error.strerror or str(error)) from error
        except (ValueError, TypeError, KeyError) as error:
            raise self._damaged(f"config.json: {error}") from error

    def write_config(self, config: MachineConfig) -> None:
        """Replaces config.json. Raises StateError."""
        self.write("config.json", json.dumps(config.to_dict(), indent=2).encode() + b"\n")

    def write(self, name: str, content: bytes, mode: int = 0o600) -> None:
        """Replaces a file: after a crash it has the old content or the new. Raises StateError."""
        part = self / f".{name}.part"
        try:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
            with open(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self / name)
        except OSError as error:
            raise _unusable(self / name, error) from error

    @contextlib.contextmanager
    def locked(self, verb: str, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
        """Nobody else changes the machine meanwhile. Raises MachineBusy, MachineMissing."""
        with _locked(self / "lock", lambda: MachineMissing(self.name), f"machine {self.name!r}", verb, timeout):
            yield

    @contextlib.contextmanager
    def held(self, name: str, what: str) -> Iterator[None]:
        """Holds the lock file `name` without waiting for it. Raises MachineBusy."""
        with _locked(self / name, lambda: MachineMissing(self.name), what, "use it", 0.0):
            yield

    def holder(self) -> str:
        """In words, who else is changing the machine now; "" when nobody is."""
        with contextlib.suppress(OSError), open(self / "lock", "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                told = file.read(200).decode(errors="replace").strip()
                return "" if told.endswith(f"process {os.getpid()}") else f"at work on it: {told}"
        return ""

    def listen(self, name: str) -> socket.socket:
        """A listening unix socket in the directory; a stale one is replaced. Raises StateError."""
        (self / name).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with self._short(name) as short:
                listener.bind(short)
            listener.listen(8)
        except OSError as error:
            listener.close()
            raise _unusable(self / name, error) from error
        return listener

    def connect(self, name: str, timeout: float) -> socket.socket:
        """Raises OSError."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout)
        try:
            with self._short(name) as short:
                connection.connect(short)
        except OSError:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def _short(self, name: str) -> Iterator[str]:
        """A path of any length by a name that fits in sockaddr_un's 108 bytes (unix(7))."""
        directory = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{directory}/{name}"
        finally:
            os.close(directory)

    def _damaged(self, cause: str) -> StateError:
        return StateError(
            f"machine {self.name!r} is damaged",
            cause=cause,
            remedy=f"mend {self / 'config.json'}, or vtk vm delete --force {self.name}",
        )


class Machines:
    """All machines of this user."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or user_state() / "machines"

    def names(self) -> list[str]:
        """In alphabetical order. Raises StateError."""
        try:
            return sorted(entry.name for entry in os.scandir(self.root) if NAME.fullmatch(entry.name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unusable(self.root, error) from error

    def get(self, name: str) -> MachineDirectory:
        """Raises ConfigError for a name that cannot be, MachineMissing."""
        check_name(name)
        if not (self.root / name).is_dir():
            raise MachineMissing(name)
        return MachineDirectory(self.root / name)

    @contextlib.contextmanager
    def new(self, name: str) -> Iterator[MachineDirectory]:
        """A directory to fill, which becomes the machine's when the block ends well, and is removed when not.

        Raises ConfigError, MachineExists, MachineBusy, StateError.
        """
        check_name(name)
        with self._locked(f"create {name}"):
            if (self.root / name).exists():
                raise MachineExists(name)
            path = self.root / f".new-{secrets.token_hex(4)}"
            try:
                path.mkdir(PRIVATE)
                directory = MachineDirectory(path)
                directory.name = name
                yield directory
                path.rename(self.root / name)
                directory.path = self.root / name
            except OSError as error:
                raise _unusable(self.root / name, error) from error
            finally:
                shutil.rmtree(path, ignore_errors=True)

    def remove(self, machine: MachineDirectory) -> None:
        """Deletes the machine's files; the caller holds its lock. Raises StateError."""
        with self._locked(f"delete {machine.name}"):
            path = self.root / f".old-{secrets.token_hex(4)}"
            try:
                machine.path.rename(path)
            except OSError as error:
                raise _unusable(machine.path, error) from error
            shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self, verb: str) -> Iterator[None]:
        try:
            self.root.mkdir(PRIVATE, parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(self.root, error) from error
        gone = StateError(f"{self.root} was removed")
        with _locked(self.root / ".lock", lambda: gone, "the list of machines", verb, LOCK_TIMEOUT):
            for entry in os.scandir(self.root):
                if entry.name.startswith(LEFT_OVER):
                    shutil.rmtree(entry.path, ignore_errors=True)
            yield


@contextlib.contextmanager
def _locked(file: Path, gone: Callable[[], Exception], what: str, verb: str, timeout: float) -> Iterator[None]:
    """flock(2) on `file`, in which the holder says who it is. The kernel releases it when the holder dies."""
    deadline = time.monotonic() + timeout
    try:
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError as error:
        raise gone() from error
    except OSError as error:
        raise _unusable(file, error) from error
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
                    raise MachineBusy(f"{what} is in use", cause=f"by {holder}", remedy="try again later") from None
                time.sleep(LOCK_PERIOD)
        if not file.exists() or os.stat(file).st_ino != os.fstat(fd).st_ino:
            raise gone()  # deleted while we waited
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"vtk vm {verb}, process {os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _unusable(path: Path, error: OSError) -> StateError:
    return StateError(
        f"{path} cannot be used",
        cause=error.strerror or str(error),
        remedy="see to the permissions and the free space of that directory, or set XDG_STATE_HOME to another",
    )
