"""Debian's own kernels: the image to boot and the modules to load, in the order they need each other."""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from minivmm.errors import ImageError
from toolkit.images import debian_package

ELF64_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
ELF64_SHDR = struct.Struct("<IIQQQQIIQQ")
MODULE_SUFFIXES = (".ko", ".xz")  # Debian 12 does not compress modules, later ones do


class DebianKernel(NamedTuple):
    """One kernel of Debian's, unpacked."""

    release: str  # as `uname -r` says it
    vmlinuz: Path  # a bzImage
    modules: Path  # the directory /lib/modules/RELEASE

    def module_files(self, wanted: Iterable[str]) -> list[Path]:
        """The files of the modules named, and of all they depend on, every one after those it needs.

        Those that are built into the kernel have no file and are left out. Raises ImageError for a module that this
        kernel does not have.
        """
        files = {
            _module_name(path): path for path in sorted(self.modules.rglob("*.ko*")) if path.suffix in MODULE_SUFFIXES
        }
        builtin = self._builtin()
        ordered: dict[str, Path] = {}

        def visit(name: str, path_to: tuple[str, ...]) -> None:
            if name in ordered or name in builtin:
                return
            if name not in files:
                raise ImageError(self.modules, " <- ".join([f"no module {name!r}", *reversed(path_to)]))
            if name in path_to:
                raise ImageError(self.modules, " -> ".join(["modules need each other", *path_to, name]))
            for needed in module_depends(files[name]):
                visit(needed, (*path_to, name))
            ordered[name] = files[name]

        for name in wanted:
            visit(name.replace("-", "_"), ())
        return list(ordered.values())

    def _builtin(self) -> set[str]:
        """The modules this kernel has built in: modules.builtin lists their files, one a line (kbuild.rst)."""
        listed = self.modules / "modules.builtin"
        lines = listed.read_text().splitlines() if listed.is_file() else []
        return {_module_name(Path(line)) for line in lines}


def fetch(flavour: str = "amd64", cache: Path | None = None) -> DebianKernel:
    """The newest kernel of a flavour (`amd64`, `cloud-amd64`) that this system's apt offers.

    Raises debian_package.PackageMissing: also on Ubuntu, whose kernels are packaged in another way.
    """
    cache = cache or debian_package.cache_directory()
    kept = sorted(cache.glob(f"linux-image-[0-9]*-{flavour}_*/"), key=lambda path: path.stat().st_mtime)
    try:
        package = debian_package.depends(f"linux-image-{flavour}", rf"linux-image-[0-9]\S*-{flavour}", cache)
        root = debian_package.unpacked(package, cache)
    except debian_package.PackageMissing:
        if not kept:
            raise
        root = kept[-1]
    (vmlinuz,) = (root / "boot").glob("vmlinuz-*")
    release = vmlinuz.name.removeprefix("vmlinuz-")
    # Since Debian 13 /lib is a link to /usr/lib and packages name the latter.
    (modules,) = (path for path in root.glob(f"**/lib/modules/{release}") if path.is_dir())
    return DebianKernel(release, vmlinuz, modules)


def read_module(path: Path) -> bytes:
    """A module's ELF file, decompressed when its name says it is compressed. Raises ImageError."""
    data = path.read_bytes()
    try:
        return lzma.decompress(data) if path.suffix == ".xz" else data
    except lzma.LZMAError as error:
        raise ImageError(path, "does not decompress", cause=str(error)) from error


def module_depends(path: Path) -> list[str]:
    """The modules that the one at `path` names in the `depends` entry of its .modinfo section (comma-separated)."""
    for entry in _section(path, read_module(path), b".modinfo").split(b"\0"):
        if entry.startswith(b"depends="):
            return [name.replace("-", "_") for name in entry.decode().removeprefix("depends=").split(",") if name]
    return []


def _module_name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")


def _section(path: Path, elf: bytes, name: bytes) -> bytes:
    """The content of an ELF64 section (System V ABI, chapter 4: section header table)."""
    try:
        header = ELF64_EHDR.unpack_from(elf)
        shoff, shentsize, shnum, shstrndx = header[6], header[11], header[12], header[13]
        sections = [ELF64_SHDR.unpack_from(elf, shoff + shentsize * index) for index in range(shnum)]
        names_offset, names_size = sections[shstrndx][4:6]
        names = elf[names_offset : names_offset + names_size]
        for section in sections:
            if names[section[0] :].split(b"\0", 1)[0] == name:
                offset, size = section[4:6]
                return elf[offset : offset + size]
    except (struct.error, IndexError, OverflowError) as error:  # OverflowError: an offset past 2^63
        raise ImageError(path, "not a whole ELF64 file", cause=str(error)) from error
    raise ImageError(path, f"no section {name.decode()}")
