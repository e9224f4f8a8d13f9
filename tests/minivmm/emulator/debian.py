"""Debian's programs for riscv64, had through apt: the host's own mirror and keys, another suite and architecture."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.user_cache import user_cache

SUITE, ARCHITECTURE = "trixie", "riscv64"
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SOURCES = """Types: deb deb-src
URIs: {mirror}
Suites: {suite}
Components: main
Architectures: {architecture}
Signed-By: {keys}
"""
TIMEOUT = 600  # seconds, for one apt-get


def _run(*command: str, cwd: Path | None = None) -> str:
    """Skips the test where the command cannot do it."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not on PATH: packages are fetched on Debian and its relatives only")
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False, cwd=cwd)
    if done.returncode:
        pytest.skip(f"{' '.join(command[:1])} failed: {done.stderr.strip()[-300:]}")
    return done.stdout


class Debian:
    """Packages of the suite, kept in the user's cache: what is there is not fetched again."""

    def __init__(self) -> None:
        self.directory = user_cache("packages") / f"{SUITE}-{ARCHITECTURE}"

    def program(self, package: str, path: str) -> Path:
        """A file of a package."""
        files = self.directory / package
        if not (files / path).exists():
            self._apt("download", package)
            (archive,) = self.directory.glob(f"{package}_*.deb")
            _run("dpkg-deb", "-x", str(archive), str(files))
        return files / path

    def source(self, package: str) -> Path:
        """The directory of a source package as its authors made it, without Debian's changes."""
        files = self.directory / f"{package}-source"
        if not files.is_dir():
            self._apt("source", "--download-only", package)
            (archive,) = self.directory.glob(f"{package}_*.orig.tar.*")
            files.mkdir()
            _run("tar", "-xf", str(archive), "-C", str(files), "--strip-components=1")
        return files

    def _apt(self, *arguments: str) -> None:
        parts, lists, cache = (self.directory / name for name in ("sources", "lists", "cache"))
        for place in (parts, lists / "partial", cache / "archives" / "partial"):
            place.mkdir(parents=True, exist_ok=True)
        options = (
            *("-o", f"APT::Architecture={ARCHITECTURE}", "-o", f"APT::Architectures::={ARCHITECTURE}"),
            *("-o", "Dir::Etc::SourceList=/dev/null", "-o", f"Dir::Etc::SourceParts={parts}"),
            *("-o", f"Dir::State::Lists={lists}", "-o", "Dir::State::Status=/dev/null"),
            *("-o", f"Dir::Cache={cache}", "-o", "APT::Sandbox::User=root", "-q"),
        )
        if not any(lists.glob("*_Packages*")):
            indexes = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Origin: Debian")
            mirrors = [line for line in indexes.splitlines() if re.fullmatch(r"\S+/debian/?", line)]
            if not mirrors or not KEYS.exists():
                pytest.skip("apt here has no Debian mirror, or no keys of Debian's")
            text = SOURCES.format(mirror=mirrors[0], suite=SUITE, architecture=ARCHITECTURE, keys=KEYS)
            (parts / "debian.sources").write_text(text)
            _run("apt-get", *options, "update")
        _run("apt-get", *options, *arguments, cwd=self.directory)

    def lua(self) -> Path:
        """Lua, compiled from Debian's source as it is: by Debian's cross compiler where that is, else by zig."""
        program = self.directory / "lua"
        if not program.exists():
            gcc = shutil.which("riscv64-linux-gnu-gcc")
            zig = (sys.executable, "-m", "ziglang", "cc", "-target", "riscv64-linux-musl")
            compiler = (gcc,) if gcc else zig
            sources = [str(path) for path in (self.source("lua5.4") / "src").glob("*.c") if path.name != "luac.c"]
            fresh = program.with_suffix(".new")
            _run(*compiler, "-static", "-O2", "-DLUA_USE_POSIX", *sources, "-lm", "-o", str(fresh))
            fresh.rename(program)
        return program
