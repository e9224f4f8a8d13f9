"""The image `debian`: a minimal Debian root with ssh, python3, cloud-init and a serial console; its kernel beside it.

mmdebstrap makes the root as a tar archive, mke2fs -d a file system of it, qemu-img a qcow2: no loop device, no mount
that this system sees, and no right but what mmdebstrap's mode needs (root, or a user namespace with the user's
/etc/subuid).
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from minivmm.errors import ConfigError
from toolkit.images import debian_root, steps
from toolkit.images.errors import ImageBuildFailed
from toolkit.images.overlay import tool
from toolkit.images.store import Image, ImageStore

SUITE = "bookworm"
SIZE = 2 << 30  # bytes; sparse, and an overlay can be larger
SIZE_MIN = 1 << 30  # the root is about 400 MB

CMDLINE = "root=LABEL=root ro console=ttyS0"
USER = "debian"  # cloud-init's default user in Debian

MMDEBSTRAP_TIMEOUT = 1800.0  # seconds; measured 25 to 180
PACK_TIMEOUT = 600.0

RECIPE = 2
"""Counts the changes of what follows and of debian_root: an image made by another recipe is another image."""

# Runs where the archive's user ids are real: as root, in mmdebstrap's user namespace, or under fakeroot. The archive
# comes on standard input, the disk goes to standard output, so nothing of the caller's need be open to those ids.
PACK = """
set -eu
scratch=$(mktemp -d -t vtk-image.XXXXXXXX)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$scratch/root"
tar -C "$scratch/root" --numeric-owner -xpf - --exclude='./dev/*'
truncate -s "$1" "$scratch/disk"
"$2" -q -t ext4 -L root -d "$scratch/root" "$scratch/disk" >&2
rm -rf "$scratch/root"
"$3" convert -f raw -O qcow2 "$scratch/disk" "$scratch/disk.qcow2"
cat "$scratch/disk.qcow2"
"""


def build(
    store: ImageStore,
    name: str = "debian",
    *,
    suite: str = SUITE,
    size: int = SIZE,
    packages: Sequence[str] = (),
    replace: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Image:
    """Makes the image, with `packages` beside debian_root.PACKAGES, or returns the one made from the same.

    Raises ConfigError (suite, size, package names), ToolMissing, ImageBuildFailed, ImageExists and StoreBroken.
    """
    debian_root.check_names(suite, packages)
    if size < SIZE_MIN:
        raise ConfigError(f"a disk of {size} bytes is too small", cause=f"the root needs {SIZE_MIN >> 20} MiB")
    included = sorted({*debian_root.PACKAGES, *packages})
    inputs = {"recipe": RECIPE, "suite": suite, "size": size, "packages": included}
    mmdebstrap, mke2fs, qemu_img = tool("mmdebstrap"), tool("mke2fs"), tool("qemu-img")
    with store.build(name, waiting=progress) as staging:
        if not replace and (kept := store.find(name, inputs)) is not None:
            return kept
        mode = debian_root.mode()
        archive = staging.directory / "root.tar"
        files = staging.directory / "files.tar"
        debian_root.write_files(files)
        steps.run(
            [*debian_root.apart(mode), *debian_root.command(mmdebstrap, mode, suite, included, files, archive)],
            "mmdebstrap",
            timeout=MMDEBSTRAP_TIMEOUT,
            scratch=staging.directory if mode == "root" else None,
            progress=lambda line: _tell(line, progress),
        )
        progress("making the disk")
        pack = ["sh", "-c", PACK, "pack", str(size), mke2fs, qemu_img]
        with archive.open("rb") as source, (staging.directory / "disk.qcow2").open("wb") as target:
            steps.run(
                [*debian_root.with_its_ids(mmdebstrap, mode), *pack],
                "mke2fs",
                timeout=PACK_TIMEOUT,
                scratch=staging.directory if mode == "root" else None,
                source=source,
                target=target,
            )
        _take_boot_files(archive, staging.directory)
        archive.unlink()
        files.unlink()
        return staging.publish(
            "debian",
            kernel="vmlinuz",
            initrd="initrd",
            disk="disk.qcow2",
            cmdline=CMDLINE,
            user=USER,
            inputs=inputs,
            replace=replace,
        )


def _tell(line: str, progress: Callable[[str], None]) -> None:
    """Passes on mmdebstrap's "I: doing this", without the texts of hooks and dpkg's words."""
    if line.startswith("I: ") and "hook" not in line:
        progress(line.removeprefix("I: "))


def _take_boot_files(archive: Path, directory: Path) -> None:
    """Copies the kernel and its initrd out of the root's archive."""
    wanted = {"./boot/vmlinuz-": "vmlinuz", "./boot/initrd.img-": "initrd"}
    with tarfile.open(archive) as root:
        for member in root:
            for prefix, name in wanted.items():
                if member.name.startswith(prefix) and member.isreg() and (content := root.extractfile(member)):
                    with content, (directory / name).open("wb") as target:
                        shutil.copyfileobj(content, target)
    for name in wanted.values():
        if not (directory / name).is_file():
            raise ImageBuildFailed("the Debian root came out without a kernel", cause=f"no {name} in its /boot")
