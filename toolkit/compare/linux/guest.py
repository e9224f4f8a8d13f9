"""The Linux that is measured: the image `tiny` with Debian's generic kernel, and our bench program put on top of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from minivmm.errors import HostError
from toolkit.images import tiny
from toolkit.images.cpio import Archive
from toolkit.images.errors import ImageExists
from toolkit.images.store import Image, ImageStore
from toolkit.user_cache import user_cache

IMAGE = "compare-linux"
FLAVOUR = "amd64"  # Debian's cloud kernel has no ahci, e1000 and 8139cp
MODULES = ("ata_piix", "ahci", "sd_mod", "nvme", "e1000", "8139cp")  # beside those of every tiny image
PROGRAM = "bench"


class NoRoom(HostError):
    """A file of the comparison cannot be written."""


class LinuxGuest(NamedTuple):
    """Files to boot."""

    kernel: Path
    """An ELF kernel (PVH): a bzImage would be unpacked by the guest, which takes seconds under TCG."""
    initrd: Path
    cmdline: str
    release: str

    def command_line(self, *, options: str) -> str:
        """The kernel's command line that runs the bench program with `options` and ends the machine after it."""
        return f'{self.cmdline} quiet loglevel=1 vtk.end=reboot vtk.run="exec /{PROGRAM} {options}"'


def prepare(directory: Path, progress: Callable[[str], None]) -> LinuxGuest:
    """Puts kernel and initramfs into `directory`, the image being made or found in the user's store.

    Raises PackageMissing, StoreBroken, ImageError, BuildError, NoRoom.
    """
    from guest_os.hosted import linux_program
    from minivmm.boot import kernel_cache

    image = _image(progress)
    assert image.kernel is not None
    assert image.initrd is not None
    progress("unpacking the kernel")
    kernel, initrd = directory / "vmlinux", directory / "initrd"
    with room_for(kernel):
        kernel.write_bytes(kernel_cache.vmlinux(image.kernel, user_cache("kernels")))
    extra = Archive()
    extra.add_file(PROGRAM, linux_program(PROGRAM).read_bytes(), 0o755)
    # Archives follow one another in an initramfs (Documentation/driver-api/early-userspace/buffer-format.rst).
    with room_for(initrd):
        initrd.write_bytes(image.initrd.read_bytes() + extra.to_bytes())
    return LinuxGuest(kernel, initrd, image.cmdline, str(image.inputs["kernel"]))


@contextlib.contextmanager
def room_for(file: Path) -> Iterator[None]:
    """Says what a file that cannot be written means. Raises NoRoom."""
    try:
        yield
    except OSError as error:
        raise NoRoom(
            f"{file} cannot be written",
            cause=error.strerror or str(error),
            remedy="TMPDIR=DIRECTORY vtk compare --linux",
        ) from error


def _image(progress: Callable[[str], None]) -> Image:
    """The image as it is in the store; made anew when Debian has another kernel, or vtk another recipe."""
    store = ImageStore()
    try:
        return tiny.build(store, IMAGE, modules=MODULES, flavour=FLAVOUR, progress=progress)
    except ImageExists:
        return tiny.build(store, IMAGE, modules=MODULES, flavour=FLAVOUR, replace=True, progress=progress)
