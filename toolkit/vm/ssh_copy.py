"""`vtk vm cp`: files and trees between this host and guests, or between guests.

First everything that is to be copied is found, then it is copied: so the size of the work is known, and a tree copied
into itself ends. What fails is told and the rest is copied, as by cp(1); a guest that is gone ends it all.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from minivmm.errors import ConfigError
from toolkit.vm.directory import NAME, Machines
from toolkit.vm.machine import find
from toolkit.vm.ssh_connection import connected
from toolkit.vm.ssh_files import BLOCK, Facts, Files, Kind, LocalFiles, led_to, write_all

STREAM = "-"  # standard input or output
STDIN, STDOUT = 0, 1


class Place(NamedTuple):
    """PATH of this host, or NAME:PATH of a machine."""

    machine: str  # "" is this host
    path: str

    @classmethod
    def read(cls, text: str) -> Place:
        """A colon after a slash is a file's: ./a:b. Raises ConfigError."""
        head, colon, path = text.partition(":")
        if not colon or "/" in head:
            if not text:
                raise ConfigError("an empty name is no file's")
            return cls("", text)
        if not NAME.fullmatch(head):
            raise ConfigError(
                f"{head!r} cannot be a machine's name", cause="what precedes a colon is one", remedy=f"./{text}"
            )
        path = path.removeprefix("~/") if path != "~" else ""  # SFTP begins at the home, and knows no ~
        return cls(head, path or ".")

    @property
    def is_stream(self) -> bool:
        """Whether it is standard input or output."""
        return not self.machine and self.path == STREAM


@dataclass(slots=True)
class Copied:
    """What was done."""

    files: int = 0
    directories: int = 0
    links: int = 0
    bytes: int = 0
    seconds: float = 0.0
    failed: list[str] = field(default_factory=list)  # what was not, and why


class Item(NamedTuple):
    """One thing to copy."""

    source: Files
    path: str
    target: str
    facts: Facts
    named: bool = False  # by the person, and not by the tree it is in


Progress = Callable[[int, int], None]  # bytes copied, bytes in all


def copy(
    machines: Machines,
    sources: Sequence[str],
    destination: str,
    *,
    recursive: bool = False,
    preserve: bool = False,
    user: str | None = None,
    wait_timeout: float = 60.0,
    progress: Progress = lambda _done, _total: None,
) -> Copied:
    """Raises ConfigError for what cannot be meant, MachineMissing, Unsupported (no SFTP server), Unreachable."""
    began = time.monotonic()
    froms, to = [Place.read(text) for text in sources], Place.read(destination)
    _check(froms, to)
    copied = Copied()
    with contextlib.ExitStack() as held:
        opened: dict[str, Files] = {"": LocalFiles()}

        def files_of(place: Place) -> Files:
            if place.machine not in opened:
                from toolkit.vm.ssh_sftp import open_files

                machine = find(machines, place.machine)
                transport = held.enter_context(connected(machine, user=user, wait_timeout=wait_timeout))
                opened[place.machine] = open_files(machine, transport)
            return opened[place.machine]

        if to.is_stream:
            _to_stream(files_of(froms[0]), froms[0].path, copied)
        elif froms[0].is_stream:
            _from_stream(files_of(to), to.path, copied)
        else:
            target = files_of(to)
            copier = Copier(target, copied, preserve, progress)
            into = target.facts(to.path, follow=True)
            is_directory = into is not None and into.kind is Kind.DIRECTORY
            # A tree makes the directory it is copied to; a file, and several things, need one that is there.
            if not is_directory and (len(froms) > 1 or (to.path.endswith("/") and not recursive)):
                raise ConfigError(
                    f"{target.shown(to.path)} is no directory", cause="nothing can be copied into it", remedy="mkdir"
                )
            for place in froms:
                copier.find(files_of(place), place.path, to.path.rstrip("/") or "/", is_directory, recursive)
            copier.copy()
    copied.seconds = time.monotonic() - began
    return copied


def _check(froms: Sequence[Place], to: Place) -> None:
    if not to.machine and not any(place.machine for place in froms):
        raise ConfigError(
            "neither side is a machine's", cause="a machine's file is NAME:PATH", remedy="cp, for files of this host"
        )
    if any(not place.machine for place in froms) and not to.machine:
        raise ConfigError("one of the sources is this host's, and so is the destination", remedy="cp")
    if any(place.is_stream for place in (*froms, to)) and len(froms) > 1:
        raise ConfigError("standard input or output is one file", cause="several were named with it")


class Copier:
    """Finds what there is to copy, then copies it."""

    def __init__(self, target: Files, copied: Copied, preserve: bool, progress: Progress) -> None:
        self._target = target
        self._copied = copied
        self._preserve = preserve
        self._progress = progress
        self._items: list[Item] = []
        self._total = 0

    def find(self, source: Files, path: str, to: str, into: bool, recursive: bool) -> None:
        """What is named `path`, to be copied to `to`, or `into` the directory that is. A link that is named is
        followed; one within a tree is copied as a link."""
        with self._telling(source, path):
            facts = source.facts(path, follow=True)
            if facts is None:
                raise FileNotFoundError("no such file or directory")
            if facts.kind is Kind.DIRECTORY and not recursive:
                raise IsADirectoryError("a directory: -r copies it")
            if facts.kind is Kind.OTHER:
                raise OSError(f"neither a file nor a directory: a {Kind.OTHER.value}")
            name = os.path.basename(path.rstrip("/"))
            goal = os.path.join(to, name) if into and name not in ("", ".", "..") else to
            if facts.kind is Kind.FILE:
                goal = led_to(self._target, goal)
            self._add(Item(source, path, goal, facts, named=True))

    def _add(self, item: Item) -> None:
        waiting = [item]
        while waiting:
            item = waiting.pop()
            if item.facts.kind is Kind.OTHER:
                self._failed(item.source, item.path, f"not copied: a {Kind.OTHER.value}")
                continue
            self._items.append(item)
            if item.facts.kind is Kind.FILE:
                self._total += item.facts.size
            if item.facts.kind is Kind.DIRECTORY:
                with self._telling(item.source, item.path):
                    entries = item.source.entries(item.path)
                    waiting += [
                        Item(item.source, os.path.join(item.path, name), os.path.join(item.target, name), facts)
                        for name, facts in sorted(entries, reverse=True)
                    ]

    def copy(self) -> None:
        """All that was found."""
        lost: set[str] = set()  # directories that could not be made: nothing can go into them
        made: list[Item] = []
        for item in self._items:
            if os.path.dirname(item.target) in lost:
                lost.add(item.target)
                continue
            if not self._copy(item, made):
                lost.add(item.target)
        for item in reversed(made):  # now that nothing is written into them any more
            with self._telling(self._target, item.target):
                self._target.settle(item.target, item.facts, preserve=self._preserve)

    def _copy(self, item: Item, made: list[Item]) -> bool:
        where = self._target if item.facts.kind is Kind.DIRECTORY else item.source
        with self._telling(where, item.target if where is self._target else item.path):
            if item.facts.kind is Kind.DIRECTORY:
                self._make_directory(item, made)
            elif item.facts.kind is Kind.LINK:
                self._target.make_link(item.target, item.source.link_target(item.path))
                self._copied.links += 1
            else:
                before = self._copied.bytes
                chunks = self._counted(item.source.read(item.path))
                try:
                    self._target.write(item.target, chunks, item.facts, preserve=self._preserve)
                except BaseException:
                    self._copied.bytes = before
                    raise
                finally:
                    chunks.close()
                self._copied.files += 1
            return True
        return False

    def _make_directory(self, item: Item, made: list[Item]) -> None:
        # Below what was named, a link is not gone through: the other side may have made it, to lead us elsewhere.
        there = self._target.facts(item.target, follow=item.named)
        if there is not None and there.kind is not Kind.DIRECTORY:
            raise NotADirectoryError(f"there is a {there.kind.value} of that name")
        if there is None:
            self._target.make_directory(item.target, item.facts.mode)
            self._copied.directories += 1
        if there is None or self._preserve:
            made.append(item)

    def _counted(self, chunks: Generator[bytes, None, None]) -> Generator[bytes, None, None]:
        with contextlib.closing(chunks):
            for chunk in chunks:
                yield chunk
                self._copied.bytes += len(chunk)
                self._progress(self._copied.bytes, max(self._total, self._copied.bytes))

    @contextlib.contextmanager
    def _telling(self, files: Files, path: str) -> Iterator[None]:
        """What fails is one more that failed."""
        try:
            yield
        except OSError as error:
            self._failed(files, path, error.strerror or str(error) or type(error).__name__)

    def _failed(self, files: Files, path: str, why: str) -> None:
        self._copied.failed.append(f"{files.shown(path)}: {why}")


def _to_stream(source: Files, path: str, copied: Copied) -> None:
    with contextlib.closing(source.read(path)) as chunks:
        while True:
            try:  # around the reading alone: an output that nobody reads is the caller's
                chunk = next(chunks, b"")
            except OSError as error:
                copied.failed.append(f"{source.shown(path)}: {error.strerror or error}")
                return
            if not chunk:
                break
            write_all(STDOUT, chunk)
            copied.bytes += len(chunk)
    copied.files += 1


def _from_stream(target: Files, path: str, copied: Copied) -> None:
    def chunks() -> Iterator[bytes]:
        while data := os.read(STDIN, BLOCK):
            yield data
            copied.bytes += len(data)

    there = target.facts(path, follow=True)
    if there is not None and there.kind is Kind.DIRECTORY:
        raise ConfigError(f"{target.shown(path)} is a directory", cause="standard input has no name to be there by")
    try:
        target.write(led_to(target, path), chunks(), None, preserve=False)
    except OSError as error:
        copied.bytes = 0
        copied.failed.append(f"{target.shown(path)}: {error.strerror or error}")
        return
    copied.files += 1
