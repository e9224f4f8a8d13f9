"""Files out of Debian packages, without installing them: fetched by apt-get, unpacked by dpkg-deb, kept in a cache.

The cache holds one directory a package and version, NAME_VERSION; a version that is there is not fetched again.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from minivmm.errors import HostError
from toolkit.user_cache import user_cache

Answer = TypeVar("Answer")
Options = Sequence[str]  # of apt-get and apt-cache: which package lists to use

FETCH_TIMEOUT = 600.0  # seconds, for one apt-get: a kernel is 70 MB


class PackageMissing(HostError):
    """A package could not be had: there is no apt, it knows no such package, or nothing could be fetched."""


def cache_directory() -> Path:
    """Where unpacked packages are kept."""
    return user_cache("packages")


def unpacked(name: str, cache: Path | None = None) -> Path:
    """The directory that holds the files of Debian package `name`, in apt's candidate version.

    When apt cannot say which version that is (no network, no apt), the newest one in the cache serves.
    Raises PackageMissing.
    """
    cache = cache or cache_directory()

    def fetched(options: Options) -> Path:
        directory = cache / _file_name(options, name).removesuffix(".deb")
        if not directory.is_dir():
            _fetch(options, name, directory)
        return directory

    try:
        return _with_lists(name, cache, fetched)
    except PackageMissing:
        kept = sorted(cache.glob(f"{name}_*/"), key=lambda directory: directory.stat().st_mtime)
        if kept:
            return kept[-1]
        raise


def depends(name: str, pattern: str, cache: Path | None = None) -> str:
    """The first dependency of package `name` that matches the regular expression `pattern`: a metapackage's target.

    Raises PackageMissing.
    """

    def matching(options: Options) -> str:
        text = _run(["apt-cache", *options, "depends", name], name)
        found = re.search(rf"^\s*Depends: ({pattern})$", text, re.MULTILINE)
        if found is None:
            raise PackageMissing(f"Debian package {name} needs no package named like {pattern}", cause=text)
        return found[1]

    return _with_lists(name, cache or cache_directory(), matching)


def _with_lists(name: str, cache: Path, ask: Callable[[Options], Answer]) -> Answer:
    """What `ask` answers with the system's package lists; failing that, with lists of our own.

    The system's may be absent (a fresh container) or stale. Our own are fetched into the cache, without root.
    """
    cache.mkdir(parents=True, exist_ok=True)
    try:
        return ask([])
    except PackageMissing:
        (cache / "apt-lists" / "partial").mkdir(parents=True, exist_ok=True)
        (cache / "apt-cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        own = [
            *("-o", f"Dir::State::Lists={cache / 'apt-lists'}"),
            *("-o", f"Dir::Cache={cache / 'apt-cache'}"),
            *("-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="),  # 75 MB, to save a second
        ]
        _run(["apt-get", *own, "-q", "update"], name)
        return ask(own)


def _file_name(options: Options, name: str) -> str:
    # A line reads: 'URI' FILE SIZE HASH
    text = _run(["apt-get", *options, "-q", "download", "--print-uris", name], name)
    found = re.search(r"^'[^']+' (\S+\.deb) ", text, re.MULTILINE)
    if found is None:
        raise PackageMissing(f"apt does not say where Debian package {name} is", cause=text.strip())
    return found[1]


def _fetch(options: Options, name: str, directory: Path) -> None:
    # Unpacked beside its place and renamed: a broken fetch leaves nothing that looks whole.
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".fetch-") as scratch_name:
        scratch = Path(scratch_name)
        # As root, apt would fetch as user _apt, who may not write here.
        _run(["apt-get", *options, "-q", "-o", "APT::Sandbox::User=root", "download", name], name, cwd=scratch)
        (package,) = scratch.glob("*.deb")
        _run(["dpkg-deb", "-x", str(package), "files"], name, cwd=scratch)
        try:
            (scratch / "files").rename(directory)
        except OSError:
            if not directory.is_dir():  # somebody else put the same version there meanwhile
                raise


def _run(command: list[str], package: str, cwd: Path | None = None) -> str:
    if shutil.which(command[0]) is None:
        raise PackageMissing(
            f"cannot fetch Debian package {package}",
            cause=f"this system has no {command[0]}: packages can be fetched on Debian and its relatives only",
        )
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=FETCH_TIMEOUT,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PackageMissing(
            f"cannot fetch Debian package {package}",
            cause=f"{command[0]} did not end within {FETCH_TIMEOUT:.0f} s",
        ) from error
    if done.returncode != 0:
        raise PackageMissing(
            f"cannot fetch Debian package {package}",
            cause=done.stderr.strip() or done.stdout.strip(),
            remedy="sudo apt-get update",
        )
    return done.stdout
