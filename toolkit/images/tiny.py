"""The image `tiny`: a Debian kernel and a busybox root in memory, with the modules asked for. Seconds to make and boot.

What it does is on the kernel command line:

    vtk.run="COMMAND"   runs COMMAND with sh, prints `vtk.run: exit status N`, and ends the machine;
                        without it there is a shell on the console, and the machine ends with the shell
    vtk.end=reboot      ends by a reset in place of a power-off, for machines without ACPI
                        (QEMU microvm: with `reboot=t` and -no-reboot)
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from toolkit.images import debian_kernel, debian_package, initramfs
from toolkit.images.store import Image, ImageStore

MODULES = ("virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "virtio_balloon")
"""What a machine of ours has; those the kernel has built in cost nothing."""

FLAVOURS = ("cloud-amd64", "amd64")

CMDLINE = "console=ttyS0 panic=-1 reboot=t"  # a panic resets at once; by a triple fault, which every machine has

RECIPE = 1
"""Counts the changes of what follows: an image made by another recipe is another image."""

INIT = r"""
option() { # NAME: its value on the kernel command line, where "..." may hold spaces
    sed -n -e "s/.*\\b$1=\"\([^\"]*\)\".*/\1/p;t" -e "s/.*\\b$1=\([^ ]*\).*/\1/p" /proc/cmdline
}
mkdir -p /dev/pts /tmp /root
mount -t devpts devpts /dev/pts
ip link set lo up
hostname tiny
export HOME=/root PATH=/bin
cd /root
run=$(option 'vtk\.run')
if [ -n "$run" ]; then
    sh -c "$run"
    echo "vtk.run: exit status $?"
else
    echo "tiny: a shell; exit ends the machine"
    setsid cttyhack sh
fi
sync
if [ "$(option 'vtk\.end')" = reboot ]; then reboot -f; else poweroff -f; fi
"""


def build(
    store: ImageStore,
    name: str = "tiny",
    *,
    modules: Sequence[str] = (),
    flavour: str = "cloud-amd64",
    replace: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Image:
    """Makes the image, with `modules` beside MODULES, or returns the one there when it is made from the same.

    Raises PackageMissing, ImageError (a module the kernel does not have), ImageExists and StoreBroken.
    """
    progress(f"fetching Debian's kernel ({flavour}) and busybox")
    kernel = debian_kernel.fetch(flavour)
    busybox = initramfs.busybox()
    wanted = sorted({*MODULES, *modules})
    inputs = {
        "recipe": RECIPE,
        "kernel": kernel.release,
        "busybox": busybox.relative_to(debian_package.cache_directory()).parts[0],
        "modules": wanted,
    }
    with store.build(name, waiting=progress) as staging:
        if not replace and (kept := store.find(name, inputs)) is not None:
            return kept
        progress("packing the initramfs")
        root = initramfs.build(busybox, kernel, wanted, INIT)
        shutil.copyfile(kernel.vmlinuz, staging.directory / "vmlinuz")
        Path(staging.directory, "initrd").write_bytes(root)
        return staging.publish(
            "tiny", kernel="vmlinuz", initrd="initrd", cmdline=CMDLINE, inputs=inputs, replace=replace
        )
