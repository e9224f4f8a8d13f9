"""Starting a machine's QEMU process, and what a running one is made of."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minivmm.errors import HostError, ImageError
from toolkit.host import kvm_back_end
from toolkit.qemu.errors import QemuError, QemuMissing
from toolkit.qemu.find import QemuBinary, find_qemu
from toolkit.qemu.microvm import Accelerator
from toolkit.vm import presence
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.errors import StateError
from toolkit.vm.monitor import Conversation
from toolkit.vm.provider import MIB, MachineConfig
from toolkit.vm.q35 import Launch, arguments, sockets

OLDEST = (6, 0, 0)  # -action (6.0), fd= of a listening socket's chardev, open file description locks
START_TIMEOUT = 30.0  # seconds until QEMU has set the machine up; 0.1 to 0.3 on an idle machine
KILL_TIMEOUT = 10.0  # seconds the kernel has to take a killed process down
TYPE_SUFFIX = "-machine"  # of QOM's name for a machine type
ELF_MAGIC = b"\x7fELF"
BZIMAGE_MAGIC, BZIMAGE_MAGIC_OFFSET = b"HdrS", 0x202  # Linux, Documentation/arch/x86/boot.rst: the setup header
LISTENERS = ("qmp.sock", "console.sock", "agent.sock")


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a machine its guest can tell: a saved state fits no other."""

    memory: int  # bytes
    cpus: int
    type: str  # QEMU's machine type with its version, pc-q35-7.2
    accelerator: str
    disk: bool
    seed: bool

    def differences(self, other: Shape) -> list[str]:
        """In words, what `other` has that this one has not."""
        ours, theirs = (asdict(shape) | {"memory": f"{shape.memory // MIB}M"} for shape in (self, other))
        return [f"{key}: {ours[key]} then, {theirs[key]} now" for key in ours if ours[key] != theirs[key]]


def shape_of(monitor: Conversation, config: MachineConfig) -> Shape:
    """That of a machine that is up, asked of its process: its configuration may have changed since it was started."""
    name: str = monitor.execute("qom-get", {"path": "/machine", "property": "type"})
    kvm: dict[str, Any] = monitor.execute("query-kvm")
    return Shape(
        memory=monitor.execute("query-memory-size-summary")["base-memory"],
        cpus=len(monitor.execute("query-cpus-fast")),
        type=name.removesuffix(TYPE_SUFFIX),
        accelerator=(Accelerator.KVM if kvm["enabled"] else Accelerator.TCG).value,
        disk=bool(config.disk),
        seed=config.seed,
    )


def binary_for(accelerator: Accelerator) -> QemuBinary:
    """Raises QemuMissing."""
    binary = find_qemu("x86_64")
    if binary.version < OLDEST:
        raise QemuMissing(
            f"{binary.path} is too old",
            cause=f"it is QEMU {binary.version_text}, and machines need {'.'.join(map(str, OLDEST))}",
            remedy="sudo apt install qemu-system-x86, or a newer one first on PATH",
        )
    if accelerator.value not in binary.accelerators:
        raise QemuMissing(
            f"{binary.path} has no accelerator {accelerator.value}",
            cause=f"it was built with {', '.join(binary.accelerators)}",
            remedy="sudo apt install qemu-system-x86",
        )
    return binary


def launch(machine: MachineDirectory, config: MachineConfig, how: Launch) -> None:
    """Starts the process. Returns when it has set the machine up: its first process ends then (-daemonize).

    Raises QemuMissing, QemuError with QEMU's words, ImageError, StateError, WrongState when the slot is taken.
    """
    binary = binary_for(how.accelerator)
    for file in (config.kernel, config.initrd, config.disk):
        _check_readable(file)
    if config.kernel:
        _check_kernel(config.kernel)
    if how.incoming is None and config.disk and presence.left_behind(machine):
        _reclaim(machine / "disk.qcow2")
    try:
        running = presence.claim(machine, how.slot)
    except OSError as error:
        raise StateError(f"{machine / presence.RUNNING} cannot be used", cause=error.strerror or str(error)) from error
    try:
        _spawn(machine, config, how, arguments(binary.path, machine, config, how), running)
    finally:
        os.close(running)


def _spawn(machine: MachineDirectory, config: MachineConfig, how: Launch, line: list[str], running: int) -> None:
    inherited = [running]
    if how.incoming is None:
        presence.forget(machine)
        if (machine / "console.log").exists():
            (machine / "console.log").replace(machine / "console.log.1")
    else:
        inherited.append(how.incoming)
    presence.expect(machine, how.slot)
    (machine / "qemu.log").unlink(missing_ok=True)
    with contextlib.ExitStack() as held:
        # The sockets listen before QEMU is there: who connects early waits, and nobody finds them missing.
        listeners = [held.enter_context(machine.listen(name + how.slot)).fileno() for name in LISTENERS]
        qmp, console, agent = listeners
        log = held.enter_context(open(machine / "qemu.log", "ab+"))
        try:
            done = subprocess.run(
                [*line, *sockets(machine, how, qmp=qmp, console=console, agent=agent)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=machine.path,
                pass_fds=(*inherited, *listeners),
                start_new_session=True,  # the terminal's Ctrl-C is not for QEMU
                timeout=START_TIMEOUT,
                check=False,
            )
        except OSError as error:
            raise QemuError(f"{line[0]} does not start", error.strerror or str(error)) from error
        except subprocess.TimeoutExpired as error:
            presence.kill(machine, KILL_TIMEOUT, how.slot)
            raise QemuError(
                f"QEMU has not set machine {config.name!r} up within {START_TIMEOUT:g} s",
                remedy=f"vtk vm logs --qemu {config.name}",
            ) from error
        log.seek(0)
        words = log.read().decode(errors="replace").strip()
    if done.returncode != 0:
        words = words or _why_silent(machine, done.returncode)
        raise QemuError(f"QEMU does not start machine {config.name!r}", words)


def _why_silent(machine: MachineDirectory, status: int) -> str:
    """Why QEMU may have failed without a word: there is no room for its log either."""
    if os.statvfs(machine.path).f_bavail == 0:
        return f"{os.strerror(errno.ENOSPC)}, at {machine.path}"
    return f"it ended with status {status}"


def _reclaim(disk: Path) -> None:
    """The last process was killed: what it left in the disk is freed. QEMU itself refuses a disk that is broken."""
    from toolkit.images.errors import ImageBuildFailed, ToolMissing
    from toolkit.images.overlay import reclaim

    with contextlib.suppress(ImageBuildFailed, ToolMissing):
        reclaim(disk)


def choose_accelerator(asked: str) -> tuple[Accelerator, list[str]]:
    """Who executes the guest, and why not KVM. Raises HostError when KVM was asked for and cannot be used."""
    if asked == "tcg":
        return Accelerator.TCG, []
    from minivmm.kvm.system import Kvm

    try:
        Kvm().close()
    except HostError as error:
        if asked == "kvm":
            raise
        return Accelerator.TCG, [f"running under emulation (TCG): {error.message}"]
    back_end = kvm_back_end()
    if asked == "kvm" or back_end in ("vmx", "svm"):
        return Accelerator.KVM, []
    reason = f"under this host's {back_end or 'unknown'} KVM a whole operating system is slower still (--accel kvm)"
    return Accelerator.TCG, [f"running under emulation (TCG): {reason}"]


def _check_readable(file: str) -> None:
    if not file:
        return
    try:
        with Path(file).open("rb"):
            return
    except OSError as error:
        raise ImageError(file, "cannot be read", cause=error.strerror or str(error)) from error


def _check_kernel(file: str) -> None:
    """Raises ImageError for what QEMU would load as a kernel of 1995 and jump into."""
    with Path(file).open("rb") as kernel:
        head = kernel.read(BZIMAGE_MAGIC_OFFSET + len(BZIMAGE_MAGIC))
    if not head.startswith(ELF_MAGIC) and head[BZIMAGE_MAGIC_OFFSET:] != BZIMAGE_MAGIC:
        raise ImageError(
            file,
            "is no kernel",
            cause="it is neither a Linux bzImage nor an ELF file",
            remedy="--kernel with the vmlinuz of a /boot, or a vmlinux with a PVH note",
        )
