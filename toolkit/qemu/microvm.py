"""The QEMU microvm that is the twin of a minivmm machine, and the command line that makes it.

`-M microvm,acpi=off` has the layout minivmm has: RAM from 0 and again from 4 GiB, 8250 at 0x3f8, PIT, PIC, IOAPIC,
LAPIC, and virtio-mmio transports announced on the kernel command line. Everything else is added by name: debug
exit, pvpanic and the keyboard controller, whose reset line is how a PC guest reboots.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from minivmm.boot.loader import Boot, load
from minivmm.errors import ConfigError, ImageError
from minivmm.memory import GuestMemory

DEBUG_EXIT_PORT = 0xF4
VIRTIO_SLOTS = 8  # microvm with acpi=off
MAX_CPUS = 288  # QEMU's limit for microvm
BZIMAGE_MAGIC, BZIMAGE_MAGIC_AT = b"HdrS", 0x202  # Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header"
RESET_TRACE = "pckbd_kbd_write_command"
"""QEMU's trace event of a command byte written to port 0x64. It is how a reset asked for through the keyboard
controller is told from a triple fault: to QEMU's SHUTDOWN event both are `guest-reset`."""


class Accelerator(Enum):
    """Who executes the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


def default_cpu(accelerator: Accelerator) -> str:
    """QEMU's CPU model with all that the accelerator can give."""
    # ARCH_CAPABILITIES is offered by software back ends that then refuse the MSR (kvm_pvm, measured).
    return "host,-arch-capabilities" if accelerator is Accelerator.KVM else "max"


class DiskLike(Protocol):
    """`minivmm.Disk`, or anything shaped like it."""

    @property
    def path(self) -> str | Path: ...
    @property
    def read_only(self) -> bool: ...


class Shape(Protocol):
    """What QemuMachine needs of a machine's description."""

    @property
    def accelerator(self) -> Accelerator: ...
    @property
    def virtio_console(self) -> bool: ...
    @property
    def inherited(self) -> Sequence[int]:
        """Descriptors of ours, named on the command line, that QEMU is given."""

    @property
    def target(self) -> str:
        """The processor: of toolkit.qemu.find.TARGETS."""

    def check(self) -> None:
        """Raises VtkError for what QEMU would refuse less clearly."""

    def arguments(self, binary: str, *, qmp: int, serial: int, hvc: int | None, paused: bool) -> list[str]:
        """The whole command line. `qmp`, `serial` and `hvc` are inherited descriptors of connected sockets."""


@dataclass(frozen=True, slots=True)
class Microvm:
    """What the machine is made of."""

    image: Path
    accelerator: Accelerator = Accelerator.TCG
    memory: int = 64 << 20
    """Bytes."""
    cpus: int = 1
    cmdline: str = ""
    disks: Sequence[DiskLike] = ()
    virtio_console: bool = False
    rng: bool = False
    # QEMU's own defaults, written out: Linux hangs on a microvm without PIT or PIC (measured).
    pit: bool = True
    pic: bool = True
    rtc: bool = False
    cpu: str | None = None
    """QEMU's CPU model; None is `host` under KVM and `max` under TCG."""
    inherited: Sequence[int] = ()
    target: str = "x86_64"

    def check(self) -> None:
        """Raises ImageError or ConfigError for what QEMU would refuse less clearly, or not at all."""
        if self.memory < 1 << 20 or self.memory % (1 << 20):
            raise ConfigError(
                f"QEMU cannot give a guest {self.memory} bytes of memory",
                cause="it must be whole MiB, at least 1",
                remedy="--mem 64M",
            )
        if not 1 <= self.cpus <= MAX_CPUS:
            raise ConfigError(
                f"QEMU cannot give a guest {self.cpus} CPUs",
                cause=f"a microvm has from 1 to {MAX_CPUS}",
                remedy="--cpus 1",
            )
        slots = len(self.disks) + self.virtio_console + self.rng
        if slots > VIRTIO_SLOTS:
            raise ConfigError(
                f"{slots} virtio devices do not fit", cause=f"a microvm without ACPI has {VIRTIO_SLOTS} slots"
            )
        for disk in self.disks:
            check_disk(disk)
        _check_image(self.image, self.memory, self.cmdline)

    def arguments(self, binary: str, *, qmp: int, serial: int, hvc: int | None, paused: bool) -> list[str]:
        """The whole command line. `qmp`, `serial` and `hvc` are inherited descriptors of connected sockets."""
        cpu = self.cpu or default_cpu(self.accelerator)
        arguments = [
            binary,
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            "-M",
            f"microvm,acpi=off,pit={_on(self.pit)},pic={_on(self.pic)},rtc={_on(self.rtc)},isa-serial=on",
            *("-accel", self.accelerator.value, "-cpu", cpu),
            *("-m", f"{self.memory >> 20}M", "-smp", str(self.cpus)),
            *("-global", "virtio-mmio.force-legacy=false"),
            *("-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control"),
            *("-chardev", f"socket,id=serial,fd={serial}", "-serial", "chardev:serial"),
            *("-device", f"isa-debug-exit,iobase={DEBUG_EXIT_PORT:#x},iosize=0x04"),
            *("-device", "pvpanic", "-device", "i8042", "-trace", RESET_TRACE),
        ]
        for index, disk in enumerate(self.disks):
            arguments += ["-blockdev", json.dumps(block_node(index, disk))]
            arguments += ["-device", f"virtio-blk-device,drive=disk{index},rerror=report,werror=report"]
        if hvc is not None:
            arguments += ["-device", "virtio-serial-device", "-chardev", f"socket,id=hvc,fd={hvc}"]
            arguments += ["-device", "virtconsole,chardev=hvc"]
        if self.rng:
            arguments += ["-device", "virtio-rng-device"]
        arguments += ["-kernel", str(self.image)]
        if self.cmdline:
            arguments += ["-append", self.cmdline]
        return arguments + ["-S"] * paused


def _check_image(image: Path, memory: int, cmdline: str) -> None:
    """Loads the image as minivmm would, into memory that is then dropped: QEMU takes an image that lies outside its
    guest's memory, and runs nothing. A Linux bzImage is QEMU's own to load. Raises ImageError, ConfigError.
    """
    try:
        with image.open("rb") as file:
            file.seek(BZIMAGE_MAGIC_AT)
            if file.read(len(BZIMAGE_MAGIC)) == BZIMAGE_MAGIC:
                return
    except OSError:
        pass  # the loader says it better
    guest_memory = GuestMemory(memory)
    try:
        load(image, guest_memory, cmdline, Boot.PVH)
    finally:
        guest_memory.close()


def check_disk(disk: DiskLike) -> None:
    """Raises ImageError for a file that cannot be a disk."""
    try:
        with open(disk.path, "rb" if disk.read_only else "r+b"):
            return
    except OSError as error:
        raise ImageError(
            disk.path, "cannot be used as a disk", cause=error.strerror or str(error), remedy="--disk FILE,ro"
        ) from error


def block_node(index: int, disk: DiskLike) -> dict[str, Any]:
    """The -blockdev of one raw file. JSON, because a comma in a file name would end a plain option."""
    return {
        "driver": "raw",
        "node-name": f"disk{index}",
        "read-only": disk.read_only,
        "discard": "unmap",
        "file": {
            "driver": "file",
            "filename": str(disk.path),
            "aio": "threads",
            "read-only": disk.read_only,
            "discard": "unmap",
        },
    }


def _on(flag: bool) -> str:
    return "on" if flag else "off"
