"""Where images are kept: one directory an image, whole or not there, at $XDG_DATA_HOME/vtk/images/NAME.

    NAME/image.json                     what it is: the fields of `Image`
    NAME/vmlinuz, initrd, disk.qcow2    what it consists of
    .building/NAME/                     an image in the making; NAME.lock beside it is held by whoever makes it
    .replaced/NAME/                     the image a new one is about to take the place of
    .lock                               held while names change, and while an overlay is put on an image

An image gets its name by one rename, after everything in it has reached the disk. What a killed process left under
`.building` is removed by the next build of that name; an image under `.replaced` whose successor never arrived gets
its name back.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from toolkit.images.errors import ImageExists, ImageInUse, ImageNameError, ImageNotFound, StoreBroken

Kind = Literal["tiny", "debian", "cloud"]

SCHEMA = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
USER_FILE = "image"  # in a machine's directory: the name of the image its disk is an overlay on


class Image(NamedTuple):
    """One image of the store."""

    name: str
    kind: Kind
    directory: Path
    kernel: Path | None  # for direct boot; a bzImage
    initrd: Path | None
    disk: Path | None  # qcow2; machines get overlays on it
    cmdline: str  # what the kernel needs to be told
    user: str  # the one to log in as by ssh
    created: str  # ISO 8601, UTC
    inputs: dict[str, Any]  # what it was made from: the same inputs make the same image

    @property
    def size(self) -> int:
        """Bytes it takes on the host's disk."""
        return sum(file.stat().st_blocks * 512 for file in self.directory.iterdir() if file.is_file())

    def to_json(self) -> dict[str, Any]:
        """The image as `--json` prints it: paths whole."""
        return self._asdict() | {
            "directory": str(self.directory),
            "kernel": self.kernel and str(self.kernel),
            "initrd": self.initrd and str(self.initrd),
            "disk": self.disk and str(self.disk),
            "size": self.size,
        }


class Staging:
    """An image in the making: files go into `directory`, `publish` gives them the name."""

    def __init__(self, store: ImageStore, name: str, directory: Path) -> None:
        self.store = store
        self.name = name
        self.directory = directory

    def publish(
        self,
        kind: Kind,
        *,
        kernel: str | None = None,
        initrd: str | None = None,
        disk: str | None = None,
        cmdline: str = "",
        user: str = "root",
        inputs: dict[str, Any],
        replace: bool = False,
    ) -> Image:
        """Makes the directory the image `name`; files are given by their names in it.

        Raises ImageExists, ImageInUse.
        """
        record = {
            "schema": SCHEMA,
            "kind": kind,
            "kernel": kernel,
            "initrd": initrd,
            "disk": disk,
            "cmdline": cmdline,
            "user": user,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "inputs": inputs,
        }
        (self.directory / "image.json").write_text(json.dumps(record, indent=2) + "\n")
        for file in self.directory.iterdir():
            _sync(file)
        _sync(self.directory)
        self.store.take_in(self.name, self.directory, replace)
        return self.store.get(self.name)


class ImageStore:
    """The images of one directory; several processes may use it at once."""

    def __init__(self, path: Path | None = None, machines: Path | None = None) -> None:
        """`path` is the store, `machines` where machines say which image they are on (`USER_FILE`)."""
        data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
        state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        self.path = path or Path(data, "vtk", "images")
        self.machines = machines or Path(state, "vtk", "machines")

    def get(self, name: str) -> Image:
        """The image of that name. Raises ImageNameError, ImageNotFound, StoreBroken."""
        directory = self.path / checked_name(name)
        if not directory.is_dir() and (self.path / ".replaced" / name).is_dir():
            with self._locked():  # its successor is about to arrive, or never will
                pass
        try:
            record = json.loads((directory / "image.json").read_bytes())
            return self._image(name, record)
        except FileNotFoundError:
            raise ImageNotFound(
                directory,
                f"there is no image {name!r}",
                remedy="vtk image list; vtk image build tiny",
            ) from None
        except OSError as error:
            raise _broken(self.path, error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise StoreBroken(
                f"image {name!r} cannot be read",
                cause=f"{directory / 'image.json'} is not what this version of vtk writes: {error!r}",
                remedy=f"vtk image delete {name}, and build it again",
            ) from error

    def find(self, name: str, inputs: dict[str, Any]) -> Image | None:
        """The image of that name, made from `inputs`; None when the name is free.

        Raises ImageExists when it was made from something else.
        """
        try:
            image = self.get(name)
        except ImageNotFound:
            return None
        if image.inputs != inputs:
            differing = sorted(key for key in {*image.inputs, *inputs} if image.inputs.get(key) != inputs.get(key))
            raise ImageExists(
                f"there is an image {name!r}, made from something else",
                cause="these differ: " + ", ".join(f"{key} ({image.inputs.get(key)})" for key in differing),
                remedy=f"another --name, or --replace, or vtk image delete {name}",
            )
        return image

    def list(self) -> Sequence[Image]:
        """All images, by name. Those that cannot be read are left out: `unreadable` names them."""
        images = []
        for name in self._names():
            with contextlib.suppress(ImageNotFound, StoreBroken):
                images.append(self.get(name))
        return images

    def unreadable(self) -> dict[str, str]:
        """The images `list` leaves out, each with the reason."""
        reasons = {}
        for name in self._names():
            try:
                self.get(name)
            except ImageNotFound:
                reasons[name] = "it has no image.json"
            except StoreBroken as error:
                reasons[name] = error.cause
        return reasons

    def users(self, name: str) -> Sequence[str]:
        """The machines whose disk is an overlay on the image."""
        users = []
        for file in sorted(self.machines.glob(f"*/{USER_FILE}")):
            with contextlib.suppress(OSError, UnicodeDecodeError):  # deleted meanwhile; not a machine's
                if file.read_text().strip() == name:
                    users.append(file.parent.name)
        return users

    def delete(self, name: str) -> None:
        """Removes the image, also one that cannot be read. Raises ImageNotFound, ImageInUse."""
        directory = self.path / checked_name(name)
        if not directory.is_dir():
            self.get(name)
        with self._locked():
            self._refuse_if_used(name)
            gone = self._private(".deleted") / name
            with _no_file_system_errors(self.path):
                shutil.rmtree(gone, ignore_errors=True)
                try:
                    directory.rename(gone)
                except FileNotFoundError:
                    raise ImageNotFound(directory, f"there is no image {name!r}", remedy="vtk image list") from None
                shutil.rmtree(gone)

    @contextlib.contextmanager
    def in_use(self, name: str) -> Iterator[Image]:
        """The image, which stays while the block runs: a machine says that it is on it, and makes its overlay, here."""
        with self._locked():
            yield self.get(name)

    @contextlib.contextmanager
    def build(self, name: str, *, waiting: Callable[[str], None] = lambda _: None) -> Iterator[Staging]:
        """An empty directory to make image `name` in; it is removed when the block ends without `publish`.

        One process at a time makes an image of a name; `waiting` is told when another one does.
        """
        name = checked_name(name)
        with _no_file_system_errors(self.path):
            building = self._private(".building")
            with _lock(building / f"{name}.lock", lambda: waiting(f"another vtk is building {name!r}: waiting for it")):
                directory = building / name
                shutil.rmtree(directory, ignore_errors=True)
                directory.mkdir()
                try:
                    yield Staging(self, name, directory)
                finally:
                    shutil.rmtree(directory, ignore_errors=True)

    def take_in(self, name: str, directory: Path, replace: bool) -> None:
        """Renames a finished directory to the image's. Raises ImageExists, ImageInUse."""
        place = self.path / name
        with self._locked():
            if place.exists():
                if not replace:
                    raise ImageExists(
                        f"there is an image {name!r}", remedy=f"vtk image delete {name}, or another --name"
                    )
                self._refuse_if_used(name)
                before = self._private(".replaced") / name
                place.rename(before)
                directory.rename(place)
                shutil.rmtree(before, ignore_errors=True)
            else:
                directory.rename(place)
            _sync(self.path)

    def _image(self, name: str, record: dict[str, Any]) -> Image:
        if record["schema"] != SCHEMA:
            raise ValueError(f"schema {record['schema']}")
        directory = self.path / name
        files = {key: directory / record[key] if record[key] else None for key in ("kernel", "initrd", "disk")}
        for file in files.values():
            if file is not None and not file.is_file():
                raise ValueError(f"{file.name} is gone")
        return Image(
            name=name,
            kind=record["kind"],
            directory=directory,
            **files,
            cmdline=record["cmdline"],
            user=record["user"],
            created=record["created"],
            inputs=record["inputs"],
        )

    def _names(self) -> Sequence[str]:
        try:
            places = [*self.path.iterdir(), *self.path.glob(".replaced/*")]
            return sorted({place.name for place in places if NAME.fullmatch(place.name) and place.is_dir()})
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _broken(self.path, error) from error

    def _refuse_if_used(self, name: str) -> None:
        if users := self.users(name):
            raise ImageInUse(
                self.path / name,
                f"image {name!r} is in use",
                cause="the disks of these machines are overlays on it: " + ", ".join(users),
                remedy=f"vtk vm delete {' '.join(users)}",
            )

    def _private(self, kind: str) -> Path:
        directory = self.path / kind
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Names do not change while the block runs, save by it."""
        with _no_file_system_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            with _lock(self.path / ".lock", lambda: None):
                for before in self.path.glob(".replaced/*"):
                    if (self.path / before.name).is_dir():
                        shutil.rmtree(before)
                    else:
                        before.rename(self.path / before.name)
                yield


def checked_name(name: str) -> str:
    """`name`, when it can be an image's. Raises ImageNameError."""
    if NAME.fullmatch(name) is None:
        raise ImageNameError(
            f"{name!r} cannot be the name of an image",
            cause="a name is 1 to 63 letters, digits, '.', '_' and '-' of ASCII, and starts with a letter or digit",
            remedy="choose another name",
        )
    return name


@contextlib.contextmanager
def _lock(file: Path, busy: Callable[[], None]) -> Iterator[None]:
    """Holds the lock file; calls `busy` before waiting for another process. The kernel frees it when its owner dies."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _no_file_system_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: OSError) -> StoreBroken:
    remedies = {
        errno.ENOSPC: "make room (vtk image list shows sizes), or set XDG_DATA_HOME to another file system",
        errno.EDQUOT: "make room (vtk image list shows sizes), or set XDG_DATA_HOME to another file system",
        errno.EACCES: "set XDG_DATA_HOME to a directory of yours",
        errno.EPERM: "set XDG_DATA_HOME to a directory of yours",
        errno.EROFS: "set XDG_DATA_HOME to a directory that can be written",
    }
    return StoreBroken(
        f"the image store {path} cannot be used",
        cause=str(error),
        remedy=remedies.get(error.errno or 0, "check that file system"),
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
