"""Which of minivmm's machines a configuration is: a bare one, or a domain of Xen's interface for Linux."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from minivmm.errors import ConfigError
from toolkit.machines import LINUX_CONSOLE, Plan, Wish, look, plan
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.minivmm_disk import DISK
from toolkit.vm.provider import MachineConfig

if TYPE_CHECKING:
    from minivmm.control.controlled import AnyMachine


def planned(machine: MachineDirectory, config: MachineConfig) -> Plan:
    """What is made of it. Raises ConfigError, ImageError for what minivmm has no machine for."""
    from minivmm import Disk

    if not config.kernel:
        raise ConfigError(
            f"machine {config.name!r} would have nothing to boot",
            cause="minivmm has no firmware to start what is on a disk",
            remedy="--kernel FILE, or --provider qemu",
        )
    if config.accelerator == "tcg":
        raise ConfigError("minivmm emulates no processor", cause="it runs guests on KVM", remedy="--provider qemu")
    kernel = look(Path(config.kernel))
    xen = kernel.packed or kernel.is_linux
    append = config.append
    if xen and LINUX_CONSOLE not in append.split():
        append = f"{append} {LINUX_CONSOLE}".strip()  # the last one counts: an image's own names a serial port
    return plan(
        Wish(
            guest=config.kernel,
            memory=config.memory,
            cpus=config.cpus,
            cmdline=append,
            disks=[Disk(machine / DISK)] if config.disk else [],
            boot="auto",
            virtio_console=False,
            rng=False,
            accelerator="kvm",
            xen=xen,
            initrd=Path(config.initrd) if config.initrd else None,
            audit=0,
        )
    )


def maker(
    machine: MachineDirectory, config: MachineConfig, console: Callable[[bytes], None]
) -> Callable[[], AnyMachine]:
    """What makes the machine, each time anew. Raises as `planned`."""
    plan = planned(machine, config)
    return lambda: cast("AnyMachine", plan.build(console))  # never QEMU's: the accelerator is kvm
