"""Builds the guests and the native program from their sources.

The compiler is `zig cc` from PyPI (`ziglang`), or gcc; both get the same sources and equivalent flags. Objects are kept
under a name made of everything they depend on (source, headers, flags, compiler), so nothing is compiled twice and
nothing stale is linked. A file appears in its final place by rename: two builds at once are safe.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from guest_os.catalog import NATIVE, ROOT, STAMP, build_directory, guests, is_fresh, stamp_of
from minivmm.errors import VtkError

# A platform's hardware layer (include/hal.h) and its linker script; hal/x86 belongs to both.
LAYERS = {"bare": ("hal/x86_64", "guest.ld"), "xen": ("hal/xen_x86_64", "guest.ld")}
SOURCE_FOLDERS = (
    *("include", "kernel", "hal/x86", "drivers", "guests", "programs", "workloads", "native"),
    *(folder for folder, _ in LAYERS.values()),
)

# fmt: off
COMMON_FLAGS = (
    "-O2", "-g0", "-std=gnu11", "-Wall", "-Wextra", "-Werror",
    "-ffreestanding", "-fno-builtin", "-fno-stack-protector", "-fno-pic", "-fno-pie", "-fno-strict-aliasing",
    "-fno-asynchronous-unwind-tables", "-fomit-frame-pointer", "-ffunction-sections", "-fdata-sections",
)
# fmt: on
# Interrupts use the stack of what they interrupt, below its stack pointer: the kernel has no red zone.
KERNEL_FLAGS = (*COMMON_FLAGS, "-mno-red-zone", "-mcmodel=kernel")
PROGRAM_FLAGS = (*COMMON_FLAGS, "-mcmodel=small", "-DPROGRAM")
NATIVE_FLAGS = (*COMMON_FLAGS, "-mcmodel=small", "-DNATIVE")


class BuildError(VtkError):
    """A guest cannot be built: no such guest, no compiler, or the compiler refused a source."""


@dataclass(frozen=True)
class Compiler:
    """How to compile and link. No vector or x87 instructions: the kernel would have to save their registers, and
    software back ends of KVM do not know them in kernel code."""

    name: str
    version: str
    compile: list[str]
    link: list[str]
    executable: str


def compiler(name: str) -> Compiler:
    """The compiler called `name`, "zig" or "gcc". Raises BuildError when it is not there."""
    if name == "zig":
        found = util.find_spec("ziglang")
        if found is None or not found.submodule_search_locations:
            raise BuildError(
                "the guests cannot be built: no compiler",
                cause="the Python package ziglang is not installed",
                remedy="pip install ziglang==0.17.1",
            )
        zig = str(Path(found.submodule_search_locations[0]) / "zig")
        flags = ["-mcpu=x86_64-mmx-sse-sse2-x87", "-fno-sanitize=all"]
        return Compiler(
            "zig",
            metadata.version("ziglang"),
            [zig, "cc", "-target", "x86_64-freestanding-none", *flags],
            [zig, "ld.lld", "-static", "--gc-sections"],
            zig,
        )
    if name == "gcc":
        gcc = shutil.which("gcc")
        if gcc is None:
            raise BuildError("gcc is not installed", remedy="apt-get install gcc")
        version = subprocess.run([gcc, "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()
        command = [gcc, "-mgeneral-regs-only", "-fcf-protection=none"]
        link = [gcc, "-nostdlib", "-static", "-no-pie", "-Wl,--gc-sections,--build-id=none,--no-warn-rwx-segments"]
        return Compiler("gcc", version, command, link, gcc)
    raise BuildError(f"no compiler is called {name!r}", remedy="use zig or gcc")


def build(names: Iterable[str] | None = None, compiler_name: str = "zig") -> dict[str, Path]:
    """Builds what changed and returns the file of each name (`native` is the host program); all of them by default.

    Raises BuildError with the compiler's words when a source does not compile."""
    known = [*(name for guest in guests().values() for name in guest.images.values()), NATIVE]
    wanted = known if names is None else list(names)
    for name in wanted:
        if name not in known:
            raise BuildError(f"no guest is called {name!r}", remedy=f"one of: {', '.join(known)}")
    return _Build(compiler(compiler_name), build_directory(compiler_name)).run(wanted)


@dataclass(frozen=True)
class _Unit:
    """One source compiled with one set of flags."""

    source: Path
    flags: tuple[str, ...]


class _Build:
    """One run of the build with one compiler into one directory."""

    def __init__(self, compiler: Compiler, directory: Path) -> None:
        self.compiler = compiler
        self.directory = directory
        self.objects = directory / "objects"
        headers = [header for folder in SOURCE_FOLDERS for header in _sources(folder, ".h")]
        self.base = _digest(compiler.name.encode(), compiler.version.encode(), *(h.read_bytes() for h in headers))
        self.used: set[str] = set()

    def run(self, wanted: list[str]) -> dict[str, Path]:
        """Builds every guest when a source changed since the last build, else nothing."""
        stamp = _source_stamp(self.compiler.executable)
        places = {name: self.directory / _file(name) for name in wanted}
        if is_fresh(self.directory) and all(place.exists() for place in places.values()):
            return places
        try:
            self.objects.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BuildError(f"cannot write {self.directory}", cause=str(error)) from error
        with (
            tempfile.TemporaryDirectory(dir=self.directory, prefix="tmp-") as scratch,
            ThreadPoolExecutor(os.cpu_count() or 2) as pool,
        ):
            self._build_all(Path(scratch), pool)
            (Path(scratch) / STAMP).write_text(stamp, encoding="utf-8")
            os.replace(Path(scratch) / STAMP, self.directory / STAMP)
        self._forget_unused()
        return places

    def _build_all(self, scratch: Path, pool: ThreadPoolExecutor) -> None:
        embedding = ROOT / "kernel" / "programs.S"
        shared = [*_sources("workloads", ".c"), ROOT / "kernel" / "text.c"]
        kernel = [*_sources("kernel"), *_sources("hal/x86"), *_sources("drivers"), *_sources("workloads", ".c")]
        kernel_units = [_Unit(source, KERNEL_FLAGS) for source in kernel if source != embedding]
        layer_units = {
            platform: [_Unit(source, KERNEL_FLAGS) for source in _sources(folder)]
            for platform, (folder, _) in LAYERS.items()
        }
        program_units = [_Unit(source, PROGRAM_FLAGS) for source in [*_sources("programs"), *shared]]
        native_units = [_Unit(source, NATIVE_FLAGS) for source in [*_sources("native"), *shared]]
        mains = guests()
        main_units = {name: _Unit(guest.source, KERNEL_FLAGS) for name, guest in mains.items()}

        layers = [unit for units in layer_units.values() for unit in units]
        units = [*kernel_units, *layers, *program_units, *native_units, *main_units.values()]
        made = dict(zip(units, pool.map(self._compile, units), strict=True))

        user = scratch / "user.elf"
        self._link([made[unit] for unit in program_units], user, ROOT / "programs" / "user.ld")
        embedded = self._compile(_Unit(embedding, (*KERNEL_FLAGS, f"-I{scratch}")), user.read_bytes())
        objects = [*(made[unit] for unit in kernel_units), embedded]

        def link(name: str, parts: list[Path], script: Path | None) -> None:
            output = scratch / _file(name)
            self._link(parts, output, script)
            os.replace(output, self.directory / _file(name))

        links = [pool.submit(link, NATIVE, [made[unit] for unit in native_units], None)]
        for guest in mains.values():
            for platform, name in guest.images.items():
                folder, script = LAYERS[platform]
                parts = [made[main_units[guest.name]], *objects, *(made[unit] for unit in layer_units[platform])]
                links.append(pool.submit(link, name, parts, ROOT / folder / script))
        for done in links:
            done.result()

    def _compile(self, unit: _Unit, embedded: bytes = b"") -> Path:
        """The object of one unit: found under its key, or compiled and put there."""
        flags = [flag for flag in unit.flags if not flag.startswith("-I")]
        key = _digest(self.base, unit.source.read_bytes(), embedded, repr((unit.source.name, flags)).encode())
        output = self.objects / f"{unit.source.stem}-{key.hex()[:24]}.o"
        self.used.add(output.name)
        if not output.exists():
            temporary = output.with_suffix(f".{os.getpid()}.{threading.get_ident()}.o")
            includes = [f"-I{folder}" for folder in (ROOT / "include", ROOT / "hal/x86", unit.source.parent)]
            self._call(
                [*self.compiler.compile, *unit.flags, *includes, "-c", str(unit.source), "-o", str(temporary)],
                unit.source,
            )
            os.replace(temporary, output)
        return output

    def _link(self, objects: list[Path], output: Path, script: Path | None) -> None:
        script_flags = ["-T", str(script)] if script else []
        self._call([*self.compiler.link, *script_flags, *map(str, objects), "-o", str(output)], output)

    def _call(self, command: list[str], subject: Path) -> None:
        caches = {name: str(self.directory / "zig-cache") for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
        try:
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **caches}, check=False)
        except OSError as error:
            raise BuildError(f"cannot run {command[0]}", cause=str(error)) from error
        if done.returncode != 0:
            raise BuildError(f"{self.compiler.name} refused {subject.name}", cause=done.stderr.strip()[-4000:])

    def _forget_unused(self) -> None:
        """Removes objects nobody used for an hour (not sooner: another build may be about to link them)."""
        for path in self.objects.iterdir():
            try:
                if path.name not in self.used and path.stat().st_mtime < time.time() - 3600:
                    path.unlink()
            except FileNotFoundError:
                continue


def _sources(folder: str, *suffixes: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).iterdir() if path.suffix in (suffixes or (".c", ".S")))


def _source_stamp(executable: str) -> str:
    """The stamp of everything a build reads: the folders, the files in them, the compiler and this file."""
    paths = [executable, "build.py", "catalog.py"]
    for folder in SOURCE_FOLDERS:
        paths.append(folder)
        paths.extend(f"{folder}/{source.name}" for source in _sources(folder, ".c", ".h", ".S", ".ld"))
    return stamp_of(paths)


def _file(name: str) -> str:
    return name if name == NATIVE else f"{name}.elf"


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()
