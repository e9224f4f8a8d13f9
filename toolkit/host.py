"""What this host can do: facts, each with a state, and for every shortcoming its cause and the command that mends it.

Gathering changes nothing: files are read, programs asked for their versions, sockets for theirs, /dev/kvm opened and a
throw-away VM run to time its exits. Commands are given with the package names of Debian and Ubuntu.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from minivmm.errors import HostError, KvmMissing, VtkError
from toolkit.asking import answer_of

ANSWER_TIMEOUT = 3.0  # seconds a program or a daemon has to say what it is
MEMORY_WANTED = 2 << 30  # bytes free below which whole Linux guests get tight

REQUIRABLE = {
    "kvm": "a usable /dev/kvm, whatever its back end",
    "kvm-hw": "a usable /dev/kvm on VMX or SVM",
    "nested": "KVM that gives its guests VMX or SVM",
    "qemu": "qemu-system-x86_64",
    "qemu-kvm": "QEMU's KVM accelerator, and a usable /dev/kvm for it",
    "qemu-tcg": "QEMU's TCG accelerator",
    "qemu-riscv64": "qemu-system-riscv64",
    "libvirt": "a libvirt daemon with its QEMU driver, or the library",
    "libvirt-python": "the library by which vtk speaks to libvirt",
    "virsh": "libvirt's command line",
    "containers": "a container engine that answers on its socket",
    "podman": "the podman command",
    "gcc": "gcc",
    "clang": "clang",
    "zig": "the Zig compiler that builds the guests",
    "hugepages": "transparent or reserved huge pages",
}
"""What `vtk doctor --require` takes; each is the name of a fact."""


class State(Enum):
    """How it stands."""

    OK = "ok"
    WARN = "warn"  # works, with a shortcoming the cause names
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing the host has or lacks."""

    group: str
    name: str
    state: State
    value: str
    cause: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Host:
    """Everything that was found, in the order of the report."""

    facts: tuple[Fact, ...]

    def __getitem__(self, name: str) -> Fact:
        """The fact called `name`. Raises KeyError."""
        for fact in self.facts:
            if fact.name == name:
                return fact
        raise KeyError(name)

    def summary(self) -> dict[str, object]:
        """The host in a few words, for the head of a report of measurements."""
        shown = {"cpu": "cpu", "cpus": "cpus", "memory": "memory", "kernel": "kernel", "kvm": "kvm"}
        shown |= {"exit_cost": "exit-cost", "qemu": "qemu"}
        values = {fact.name: fact.value for fact in self.facts if fact.state is not State.MISSING}
        return {key: values[name] for key, name in shown.items() if name in values}


def gather(*, measure: bool = True) -> Host:
    """Looks at everything: about 0.3 s, a little more the first time QEMU is asked. `measure` times KVM's exits too."""
    facts = [*_system(), *_kvm(measure), *_qemu(), *_libvirt(), *_containers(), *_compilers()]
    known = {fact.name: fact for fact in facts}
    if (kvm := known["kvm"]).state is not State.OK and known["qemu-kvm"].state is State.OK:
        unusable = replace(kvm, group="qemu", name="qemu-kvm", value="compiled in; this host's KVM is not usable")
        facts[facts.index(known["qemu-kvm"])] = unusable
    return Host(tuple(facts))


def _system() -> Iterator[Fact]:
    group = "system"
    kernel = os.uname()
    yield Fact(group, "kernel", State.OK, f"{kernel.sysname} {kernel.release} {kernel.machine}")
    release = re.search(r'^PRETTY_NAME="?([^"\n]*)', _read("/etc/os-release"), re.MULTILINE)
    yield Fact(group, "distribution", State.OK, release[1] if release else "unknown")
    model = re.search(r"^model name\s*:\s*(.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    yield Fact(group, "cpu", State.OK, model[1] if model else kernel.machine)
    yield Fact(group, "cpus", State.OK, str(len(os.sched_getaffinity(0))))
    yield Fact(group, "cpu-flags", State.OK, ", ".join(sorted(cpu_flags() & INTERESTING_FLAGS)) or "none of interest")
    yield _memory(group)
    yield _hugepages(group)


INTERESTING_FLAGS = frozenset(("vmx", "svm", "ept", "npt", "hypervisor", "pdpe1gb", "cx16", "avx2"))


def cpu_flags() -> frozenset[str]:
    """The first CPU's flags as Linux names them in /proc/cpuinfo."""
    flags = re.search(r"^flags\s*:\s*(.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return frozenset(flags[1].split()) if flags else frozenset()


def _memory(group: str) -> Fact:
    sizes = dict(re.findall(r"^(\w+):\s*(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE))
    total, free = (int(sizes.get(name, 0)) << 10 for name in ("MemTotal", "MemAvailable"))
    value = f"{total / (1 << 30):.1f} GiB, {free / (1 << 30):.1f} GiB free"
    if free < MEMORY_WANTED:
        return Fact(group, "memory", State.WARN, value, "whole Linux guests will not all fit", "end what is not needed")
    return Fact(group, "memory", State.OK, value)


def _hugepages(group: str) -> Fact:
    mode = re.search(r"\[(\w+)\]", _read("/sys/kernel/mm/transparent_hugepage/enabled"))
    reserved = re.search(r"^HugePages_Total:\s*(\d+)", _read("/proc/meminfo"), re.MULTILINE)
    count = int(reserved[1]) if reserved else 0
    value = f"transparent: {mode[1] if mode else 'no'}; reserved: {count}"
    if count or (mode and mode[1] != "never"):
        return Fact(group, "hugepages", State.OK, value)
    remedy = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
    return Fact(group, "hugepages", State.WARN, value, "guest memory is first touched 4 KiB at a time", remedy)


# --- KVM -------------------------------------------------------------------------------------------------------------
BACK_ENDS = {"kvm_intel": "vmx", "kvm_amd": "svm"}


def kvm_back_end() -> str:
    """`vmx`, `svm`, `software (kvm_pvm)` or another module's, or `` when none is loaded: from /sys/module."""
    modules = sorted(path.name for path in Path("/sys/module").glob("kvm_*"))
    for module in modules:
        if module in BACK_ENDS:
            return BACK_ENDS[module]
    return f"software ({modules[0]})" if modules else ""


def _kvm(measure: bool) -> Iterator[Fact]:
    group = "kvm"
    from minivmm.kvm.abi import Cap
    from minivmm.kvm.system import Kvm

    back_end = kvm_back_end()
    try:
        with Kvm() as kvm:
            capabilities = {cap.name: kvm.check_extension(cap) for cap in Cap}
    except HostError as error:
        cause, remedy = error.cause, error.remedy
        if isinstance(error, KvmMissing):
            cause, remedy = _why_no_kvm()
        for name in ("kvm", "kvm-hw", "nested"):
            yield Fact(group, name, State.MISSING, error.message, cause, remedy)
        return
    yield Fact(group, "kvm", State.OK, f"API 12, {back_end or 'unknown'} back end")
    yield _hardware(group, back_end)
    yield _nested(group, back_end)
    absent = sorted(name for name, value in capabilities.items() if not value)
    yield Fact(
        group,
        "kvm-capabilities",
        State.OK,
        f"{len(capabilities) - len(absent)} of the {len(capabilities)} vtk asks for"
        + (f"; without {', '.join(absent)}" if absent else ""),
    )
    if measure:
        yield from _exit_cost(group)


def _hardware(group: str, back_end: str) -> Fact:
    if back_end in ("vmx", "svm"):
        return Fact(group, "kvm-hw", State.OK, back_end)
    cause = "guest kernels are interpreted, and guest programs run natively: exits and kernel work cost more"
    return Fact(group, "kvm-hw", State.WARN, back_end or "unknown back end", cause, _why_no_kvm()[1])


def _nested(group: str, back_end: str) -> Fact:
    module = {"vmx": "kvm_intel", "svm": "kvm_amd"}.get(back_end)
    if module is None:
        return Fact(group, "nested", State.MISSING, "no", "only VMX and SVM back ends nest", "a host with VMX or SVM")
    if _read(f"/sys/module/{module}/parameters/nested").strip() in ("1", "Y"):
        return Fact(group, "nested", State.OK, "yes")
    remedy = f"sudo modprobe -r {module} && sudo modprobe {module} nested=1"
    return Fact(group, "nested", State.MISSING, "no", f"{module} was loaded with nested=0", remedy)


def _why_no_kvm() -> tuple[str, str]:
    """Cause and remedy of a host without hardware KVM, from what the CPU says of itself."""
    flags = cpu_flags()
    if "vmx" in flags:
        return "the CPU has VMX, the module is not loaded", "sudo modprobe kvm_intel"
    if "svm" in flags:
        return "the CPU has SVM, the module is not loaded", "sudo modprobe kvm_amd"
    if "hypervisor" in flags:
        return (
            "this is a virtual machine whose host gives it no VMX or SVM",
            "on its host: nested=1 for kvm_intel or kvm_amd, and the CPU model host-passthrough for this machine",
        )
    return (
        "the CPU has no VMX or SVM, or the firmware has switched it off",
        "enable VT-x or AMD-V (SVM) in the BIOS or UEFI setup",
    )


def _exit_cost(group: str) -> Iterator[Fact]:
    from minivmm.kvm.exit_cost import measure_exit_cost

    try:
        cost = measure_exit_cost()
    except VtkError as error:
        yield Fact(group, "exit-cost", State.WARN, "not measured", str(error.message), error.remedy)
    else:
        yield Fact(group, "exit-cost", State.OK, f"{cost / 1000:.2f} µs a PIO exit")


# --- other people's machines -----------------------------------------------------------------------------------------
def _qemu() -> Iterator[Fact]:
    group = "qemu"
    from toolkit.qemu import find

    found = {binary.target: binary for binary in find.binaries()}
    if qemu := found.get("x86_64"):
        yield Fact(group, "qemu", State.OK, f"QEMU {qemu.version_text}")
        yield Fact(group, "qemu-binary", State.OK, qemu.path)
        machines = [name for name in ("microvm", "pc", "q35") if name in qemu.machines]
        yield Fact(group, "qemu-machines", State.OK, f"{', '.join(machines)} ({len(qemu.machines)} in all)")
        for accelerator in ("kvm", "tcg"):
            if accelerator in qemu.accelerators:
                yield Fact(group, f"qemu-{accelerator}", State.OK, "compiled in")
            else:
                cause = f"{qemu.path} was built without it"
                yield Fact(group, f"qemu-{accelerator}", State.MISSING, "no", cause, find.INSTALL["x86_64"])
    else:
        for name in ("qemu", "qemu-kvm", "qemu-tcg"):
            yield _absent(group, name, "qemu-system-x86_64", find.INSTALL["x86_64"])
    if riscv := found.get("riscv64"):
        yield Fact(group, "qemu-riscv64", State.OK, f"QEMU {riscv.version_text}, {riscv.path}")
    else:
        yield _absent(group, "qemu-riscv64", "qemu-system-riscv64", find.INSTALL["riscv64"])


def _absent(group: str, name: str, program: str, remedy: str) -> Fact:
    return Fact(group, name, State.MISSING, "not installed", f"no {program} on PATH", remedy)


LIBVIRT_QEMU = "libvirt/connection-driver/libvirt_driver_qemu.so"


def _libvirt() -> Iterator[Fact]:
    group = "libvirt"
    daemon = _which("virtqemud", "libvirtd")
    library = [
        path for folder in ("lib/*-linux-gnu", "lib64", "lib") for path in Path("/usr").glob(f"{folder}/libvirt.so.0.*")
    ]
    drivers = [path for folder in ("lib/*", "lib64", "lib") for path in Path("/usr").glob(f"{folder}/{LIBVIRT_QEMU}")]
    if daemon and not drivers:
        cause = "its daemon is there, its driver for QEMU is not"
        yield Fact(group, "libvirt", State.WARN, daemon, cause, "sudo apt install libvirt-daemon-driver-qemu")
    elif daemon:
        version = re.search(r"\d+\.\d+\.\d+", answer_of(daemon, "--version", timeout=ANSWER_TIMEOUT))
        yield Fact(group, "libvirt", State.OK, f"{version[0] if version else 'version unknown'}, {daemon}")
    elif library:
        cause = "the library is there, its daemon is not"
        yield Fact(group, "libvirt", State.WARN, str(library[0]), cause, "sudo apt install libvirt-daemon-system")
    else:
        yield _absent(group, "libvirt", "virtqemud or libvirtd", "sudo apt install libvirt-daemon-system")
    yield _libvirt_python(group)
    yield _program(group, "virsh", "sudo apt install libvirt-clients")


def _libvirt_python(group: str) -> Fact:
    from importlib import metadata

    try:
        return Fact(group, "libvirt-python", State.OK, metadata.version("libvirt-python"))
    except metadata.PackageNotFoundError:
        cause = f"no libvirt-python in {sys.prefix}"
        remedy = "sudo apt install libvirt-dev pkg-config gcc, then pip install 'vtk[libvirt]'"
        return Fact(group, "libvirt-python", State.MISSING, "not installed", cause, remedy)


CONTAINER_SOCKETS = (
    ("/var/run/docker.sock", "Docker"),
    ("{runtime}/docker.sock", "Docker (rootless)"),
    ("/run/podman/podman.sock", "Podman"),
    ("{runtime}/podman/podman.sock", "Podman (rootless)"),
)


def _containers() -> Iterator[Fact]:
    group = "containers"
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    sockets = [(path.format(runtime=runtime), engine) for path, engine in CONTAINER_SOCKETS]
    if (configured := os.environ.get("DOCKER_HOST", "")).startswith("unix://"):
        sockets.insert(0, (configured.removeprefix("unix://"), "DOCKER_HOST"))
    cause, remedy = "no engine's socket is there", "sudo apt install docker.io"
    if _which("docker", "dockerd"):
        cause, remedy = "Docker is installed and its daemon does not run", "sudo systemctl start docker"
    for path, engine in sockets:
        try:
            version = _engine_version(path)
        except FileNotFoundError:
            continue
        except PermissionError:
            cause, remedy = f"{path} may not be opened by this user", "sudo usermod -aG docker $USER, then log in again"
        except OSError as error:
            cause = f"{path} does not answer: {error.strerror or error}"
        else:
            yield Fact(group, "containers", State.OK, f"{engine} {version}, {path}")
            break
    else:
        yield Fact(group, "containers", State.MISSING, "no engine answers", cause, remedy)
    yield _program(group, "podman", "sudo apt install podman")


def container_engine() -> Fact:
    """The fact `containers` alone: the engine that answers, or why none does."""
    return next(iter(_containers()))


def _engine_version(path: str) -> str:
    """Asks an engine what it is: `GET /version` of the Docker Engine API, which Podman serves too. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_TIMEOUT)
        connection.connect(path)
        connection.sendall(b"GET /version HTTP/1.0\r\nHost: localhost\r\n\r\n")
        answer = bytearray()
        while len(answer) < 1 << 20 and (data := connection.recv(65536)):
            answer += data
    version = re.search(rb'"Version"\s*:\s*("(?:[^"\\]|\\.)*")', answer)
    if version is None:
        raise OSError(f"no version in its answer ({len(answer)} bytes)")
    return str(json.loads(version[1]))


def _compilers() -> Iterator[Fact]:
    group = "compilers"
    yield _program(group, "gcc", "sudo apt install gcc")
    yield _program(group, "clang", "sudo apt install clang")
    from importlib import metadata

    try:
        yield Fact(group, "zig", State.OK, f"{metadata.version('ziglang')} (ziglang in {sys.prefix})")
    except metadata.PackageNotFoundError:
        if path := shutil.which("zig"):
            yield Fact(group, "zig", State.OK, f"{answer_of(path, 'version', timeout=ANSWER_TIMEOUT).strip()}, {path}")
        else:
            yield _absent(group, "zig", "ziglang package and no zig", "pip install 'vtk[guests]'")


def _program(group: str, name: str, remedy: str) -> Fact:
    path = shutil.which(name)
    if path is None:
        return _absent(group, name, name, remedy)
    version = re.search(r"\d+\.\d+(\.\d+)?", answer_of(path, "--version", timeout=ANSWER_TIMEOUT))
    return Fact(group, name, State.OK, f"{version[0] if version else 'version unknown'}, {path}")


def _which(*names: str) -> str | None:
    """The first of `names` on PATH or in the directories of daemons, which are not on everyone's PATH."""
    search = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    return next(filter(None, (shutil.which(name, path=search) for name in names)), None)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
