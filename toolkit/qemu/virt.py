"""QEMU's RISC-V board as the twin of minivmm.RiscvMachine: `-M virt -bios none`, one hart, the same devices.

The board has its UART, PLIC, CLINT, test finisher and eight virtio-mmio transports by itself. It has no pvpanic: a
guest's panic is the exit code it gives the finisher.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minivmm.errors import ConfigError
from toolkit.qemu.microvm import Accelerator, DiskLike, block_node, check_disk

SLOTS = 8  # QEMU fills them from the last, which its device tree names first


@dataclass(frozen=True, slots=True)
class Virt:
    """What the machine is made of: toolkit.qemu.microvm.Shape."""

    image: Path
    memory: int = 64 << 20
    """Bytes."""
    cmdline: str = ""
    disks: Sequence[DiskLike] = ()
    accelerator: Accelerator = Accelerator.TCG
    virtio_console: bool = False
    inherited: Sequence[int] = ()
    target: str = "riscv64"

    def check(self) -> None:
        """Raises ImageError or ConfigError for what QEMU would refuse less clearly."""
        if len(self.disks) > SLOTS:
            raise ConfigError(f"{len(self.disks)} disks do not fit", cause=f"the board has {SLOTS} virtio slots")
        for disk in self.disks:
            check_disk(disk)

    def arguments(self, binary: str, *, qmp: int, serial: int, hvc: int | None, paused: bool) -> list[str]:  # noqa: ARG002
        """The whole command line."""
        line = [
            binary,
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-M", "virt", "-bios", "none", "-cpu", "rv64", "-accel", self.accelerator.value),
            *("-m", f"{self.memory >> 20}M", "-smp", "1"),
            *("-global", "virtio-mmio.force-legacy=false"),
            *("-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control"),
            *("-chardev", f"socket,id=serial,fd={serial}", "-serial", "chardev:serial"),
        ]
        for index, disk in enumerate(self.disks):
            line += ["-blockdev", json.dumps(block_node(index, disk))]
            line += ["-device", f"virtio-blk-device,drive=disk{index},rerror=report,werror=report"]
        line += ["-kernel", str(self.image)]
        if self.cmdline:
            line += ["-append", self.cmdline]
        return line + ["-S"] * paused
