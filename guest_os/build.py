"""Builds the guests and the programs of the workloads from their sources.

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
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from guest_os.catalog import PROCESSES, ROOT, STAMP, build_directory, guests, is_fresh, stamp_of
from minivmm.errors import VtkError


@dataclass(frozen=True)
class Platform:
    """What a guest is built for: the processor, and the folders of its hardware layer (include/hal.h); the last one has
    the linker script."""

    processor: str
    layer: tuple[str, ...]

    @property
    def script(self) -> Path:
        """How its images are linked."""
        return ROOT / self.layer[-1] / "guest.ld"


PLATFORMS = {
    "bare": Platform("x86_64", ("hal/x86", "hal/x86_64")),
    "xen": Platform("x86_64", ("hal/x86", "hal/xen_x86_64")),
    "riscv64": Platform("riscv64", ("hal/riscv64",)),
}


@dataclass(frozen=True)
class Process:
    """The workloads as a program without a kernel of ours: what makes a place for them, and what it has instead of some
    of them."""

    folders: tuple[str, ...]
    flags: tuple[str, ...]
    replaced: frozenset[str] = frozenset()


PROCESS_OF = {
    "x86_64": Process(("native", "native/x86_64"), ("-mcmodel=small",)),
    "riscv64": Process(("native", "native/riscv64"), ("-mcmodel=medany",)),
    # uint64_t is no long there, and the formats of text.h are ours.
    "wasm32": Process(("wasi",), ("-Wno-format",), frozenset({"divzero.c", "pgfault.c"})),
}
SOURCE_FOLDERS = (
    *("include", "kernel", "drivers", "guests", "programs", "workloads"),
    *(f"processor/{processor}" for processor in PROCESS_OF),
    *dict.fromkeys(folder for process in PROCESS_OF.values() for folder in process.folders),
    *dict.fromkeys(folder for platform in PLATFORMS.values() for folder in platform.layer),
)

# fmt: off
COMMON_FLAGS = (
    "-O2", "-g0", "-std=gnu11", "-Wall", "-Wextra", "-Werror",
    "-ffreestanding", "-fno-builtin", "-fno-stack-protector", "-fno-pic", "-fno-pie", "-fno-strict-aliasing",
    "-fno-asynchronous-unwind-tables", "-fomit-frame-pointer", "-ffunction-sections", "-fdata-sections",
)
# fmt: on
# Interrupts use the stack of what they interrupt, below its stack pointer: an x86 kernel has no red zone.
KERNEL_FLAGS = {
    "x86_64": (*COMMON_FLAGS, "-mno-red-zone", "-mcmodel=kernel"),
    "riscv64": (*COMMON_FLAGS, "-mcmodel=medany"),
}
PROGRAM_FLAGS = {
    "x86_64": (*COMMON_FLAGS, "-mcmodel=small", "-DPROGRAM"),
    "riscv64": (*COMMON_FLAGS, "-mcmodel=medany", "-DPROGRAM"),
}
PROCESS_FLAGS = (*COMMON_FLAGS, "-DNATIVE")


class BuildError(VtkError):
    """A guest cannot be built: no such guest, no compiler, or the compiler refused a source."""


@dataclass(frozen=True)
class Compiler:
    """How to compile for each processor it knows, and to link. No vector or floating-point instructions: the kernel
    would have to save their registers, and software back ends of KVM do not know them in kernel code."""

    name: str
    version: str
    compile: dict[str, list[str]]
    link: dict[str, list[str]]
    executable: str

    def makes(self, image: str) -> bool:
        """Whether it knows the processor of the image called so."""
        return platform_of(image).processor in self.compile

    @property
    def processes(self) -> dict[str, str]:
        """The programs of the workloads it makes: what each is called, and its processor."""
        return {name: processor for processor, name in PROCESSES.items() if processor in self.compile}


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
        targets = {
            "x86_64": "-mcpu=x86_64-mmx-sse-sse2-x87",
            "riscv64": "-mcpu=generic_rv64+m+a+c",
            "wasm32": "-mcpu=generic+bulk_memory",
        }
        compile_commands = {
            processor: [zig, "cc", "-target", f"{processor}-freestanding-none", target, "-fno-sanitize=all"]
            for processor, target in targets.items()
        }
        links = {processor: [zig, "ld.lld", "-static", "--gc-sections", "--no-relax"] for processor in targets}
        # The stack below everything else: one that runs over is a trap, and no variable is overwritten.
        links["wasm32"] = [zig, "wasm-ld", "--no-entry", "--gc-sections", "--stack-first", "-z", "stack-size=65536"]
        return Compiler("zig", metadata.version("ziglang"), compile_commands, links, zig)
    if name == "gcc":
        gcc = shutil.which("gcc")
        if gcc is None:
            raise BuildError("gcc is not installed", remedy="apt-get install gcc")
        version = subprocess.run([gcc, "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()
        compile_commands = {"x86_64": [gcc, "-mgeneral-regs-only", "-fcf-protection=none"]}
        linker_flags = ["-nostdlib", "-static", "-no-pie", "-Wl,--gc-sections,--build-id=none,--no-warn-rwx-segments"]
        links = {"x86_64": [gcc, *linker_flags]}
        cross = shutil.which("riscv64-linux-gnu-gcc")
        if cross is not None:
            compile_commands["riscv64"] = [cross, "-march=rv64imac_zicsr_zifencei", "-mabi=lp64"]
            links["riscv64"] = [cross, "-mabi=lp64", *linker_flags, "-Wl,--no-relax"]
        return Compiler("gcc", version, compile_commands, links, gcc)
    raise BuildError(f"no compiler is called {name!r}", remedy="use zig or gcc")


def build(names: Iterable[str] | None = None, compiler_name: str = "zig") -> dict[str, Path]:
    """Builds what changed and returns the file of each name (`native` is the host program, catalog.PROCESSES has the
    others'); all of them by default.

    Raises BuildError with the compiler's words when a source does not compile."""
    chosen = compiler(compiler_name)
    images = [name for guest in guests().values() for name in guest.images.values() if chosen.makes(name)]
    known = [*images, *chosen.processes]
    wanted = known if names is None else list(names)
    for name in wanted:
        if name not in known:
            raise BuildError(f"no guest is called {name!r}", remedy=f"one of: {', '.join(known)}")
    return _Build(chosen, build_directory(compiler_name)).run(wanted)


def platform_of(image: str) -> Platform:
    """What the image called so is built for (catalog.image_name)."""
    return PLATFORMS[image.partition(".")[2] or "bare"]


@dataclass(frozen=True)
class _Unit:
    """One source compiled with one set of flags."""

    source: Path
    processor: str
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
        jobs = [
            self._link_process(name, processor, scratch, pool) for name, processor in self.compiler.processes.items()
        ]
        for processor in {platform.processor for platform in PLATFORMS.values()} & self.compiler.compile.keys():
            kernel = self._kernel(processor, scratch, pool)
            for name, platform in PLATFORMS.items():
                if platform.processor == processor:
                    jobs += self._link_guests(name, platform, kernel, scratch, pool)
        for done in jobs:
            done.result()

    def _link_process(self, name: str, processor: str, scratch: Path, pool: ThreadPoolExecutor) -> Future[None]:
        """Starts linking a program of the workloads."""
        process = PROCESS_OF[processor]
        workloads = [source for source in _sources("workloads", ".c") if source.name not in process.replaced]
        places = [source for folder in process.folders for source in _sources(folder)]
        objects = self._compile_all(
            [*places, *workloads, ROOT / "kernel" / "text.c"], processor, (*PROCESS_FLAGS, *process.flags), pool
        )

        def link() -> None:
            self._link(processor, objects, scratch / name, None)
            os.replace(scratch / name, self.directory / name)

        return pool.submit(link)

    def _kernel(self, processor: str, scratch: Path, pool: ThreadPoolExecutor) -> list[Path]:
        """What every kernel for that processor has, the programs embedded."""
        flags, folder = KERNEL_FLAGS[processor], scratch / processor
        embedding = ROOT / "kernel" / "programs.S"
        workloads = _sources("workloads", ".c")
        sources = [*_sources("kernel"), *_sources("drivers"), *workloads]
        sources.remove(embedding)
        objects = self._compile_all(sources, processor, flags, pool)

        programs = [*_sources("programs"), *_sources(f"processor/{processor}"), *workloads, ROOT / "kernel" / "text.c"]
        user = folder / "user.elf"
        folder.mkdir()
        parts = self._compile_all(programs, processor, PROGRAM_FLAGS[processor], pool)
        self._link(processor, parts, user, ROOT / "programs" / "user.ld")
        unit = _Unit(embedding, processor, (*flags, f"-I{folder}"))
        return [*objects, self._compile(unit, user.read_bytes())]

    def _link_guests(
        self, name: str, platform: Platform, kernel: list[Path], scratch: Path, pool: ThreadPoolExecutor
    ) -> list[Future[None]]:
        """Starts linking every guest of a platform."""
        flags = KERNEL_FLAGS[platform.processor]
        mains = [guest for guest in guests().values() if name in guest.platforms]
        sources = [*(guest.source for guest in mains), *(s for folder in platform.layer for s in _sources(folder))]
        made = self._compile_all(sources, platform.processor, flags, pool)
        main_objects, layer = made[: len(mains)], made[len(mains) :]

        def link(image: str, parts: list[Path]) -> None:
            output = scratch / _file(image)
            self._link(platform.processor, parts, output, platform.script)
            os.replace(output, self.directory / _file(image))

        return [
            pool.submit(link, guest.images[name], [main, *kernel, *layer])
            for guest, main in zip(mains, main_objects, strict=True)
        ]

    def _compile_all(
        self, sources: list[Path], processor: str, flags: tuple[str, ...], pool: ThreadPoolExecutor
    ) -> list[Path]:
        return list(pool.map(self._compile, [_Unit(source, processor, flags) for source in sources]))

    def _compile(self, unit: _Unit, embedded: bytes = b"") -> Path:
        """The object of one unit: found under its key, or compiled and put there."""
        flags = [flag for flag in unit.flags if not flag.startswith("-I")]
        named = repr((unit.source.name, unit.processor, flags)).encode()
        key = _digest(self.base, unit.source.read_bytes(), embedded, named)
        output = self.objects / f"{unit.source.stem}-{key.hex()[:24]}.o"
        self.used.add(output.name)
        if not output.exists():
            temporary = output.with_suffix(f".{os.getpid()}.{threading.get_ident()}.o")
            folders = [
                *("include", f"processor/{unit.processor}", f"native/{unit.processor}"),
                *(["hal/x86"] if unit.processor == "x86_64" else []),
            ]
            includes = [f"-I{folder}" for folder in (*(ROOT / folder for folder in folders), unit.source.parent)]
            command = [*self.compiler.compile[unit.processor], *unit.flags, *includes]
            self._call([*command, "-c", str(unit.source), "-o", str(temporary)], unit.source)
            os.replace(temporary, output)
        return output

    def _link(self, processor: str, objects: list[Path], output: Path, script: Path | None) -> None:
        script_flags = ["-T", str(script)] if script else []
        self._call([*self.compiler.link[processor], *script_flags, *map(str, objects), "-o", str(output)], output)

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
    return name if name in PROCESSES.values() else f"{name}.elf"


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()
