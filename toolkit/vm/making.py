"""Making a machine: its configuration from an image or a kernel, its disk and its key."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from minivmm.errors import ConfigError, HostError, ImageError
from toolkit.vm.directory import MachineDirectory, Machines, check_name
from toolkit.vm.errors import MachineExists
from toolkit.vm.machine import provider_called
from toolkit.vm.ports import free_port
from toolkit.vm.provider import MIB, MachineConfig

if TYPE_CHECKING:
    from toolkit.images.store import Image

SEEDED = ("debian", "cloud")  # the kinds of images in which cloud-init looks for a seed
OUI = "52:54:00"  # QEMU's own; the rest is random


class Parts(NamedTuple):
    """What a machine is asked to be made of. Sizes in bytes; an empty string or None is: not asked for."""

    image: str = ""
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    disk: Path | None = None
    disk_size: int | None = None
    memory: int = 512 * MIB
    cpus: int = 1
    accelerator: str = "auto"
    user: str = ""
    provider: str = "qemu"
    uri: str = ""


def create(machines: Machines, name: str, parts: Parts) -> MachineDirectory:
    """Makes the machine; it is there whole, or not at all.

    Raises ConfigError, MachineExists, ImageError, StateError, HostError (no qemu-img).
    """
    check_name(name)
    if (machines.root / name).exists():  # said again under the lock; here it is said before anything is worked out
        raise MachineExists(name)
    with contextlib.ExitStack() as held:
        image = None
        if parts.image:
            from toolkit.images.store import ImageStore

            # The image stays until the machine says that it is on it.
            image = held.enter_context(ImageStore(machines=machines.root).in_use(parts.image))
        config = _configure(name, _at_its_uri(parts), image)
        config.check()
        return _fill(machines, name, parts, config)


def _fill(machines: Machines, name: str, parts: Parts, config: MachineConfig) -> MachineDirectory:
    with machines.new(name) as directory:
        reserved = set()
        for other in machines.names():
            with contextlib.suppress(ConfigError, HostError):
                reserved.add(machines.get(other).config().ssh_port)
        config = replace(config, ssh_port=free_port(reserved))
        private_key, public_key = new_key()
        public_key += f" vtk-{name}"
        directory.write("id_ed25519", private_key.encode())
        directory.write("id_ed25519.pub", public_key.encode() + b"\n", 0o644)
        if config.seed:
            _make_seed(directory, config, public_key)
        if config.image:
            directory.write("image", f"{config.image}\n".encode())
        if config.disk and config.provider == "minivmm":
            from toolkit.vm.minivmm_disk import DISK, copy_disk

            copy_disk(Path(config.disk), directory / DISK, parts.disk_size)
        elif config.disk:
            _make_overlay(Path(config.disk), directory / "disk.qcow2", parts.disk_size)
        directory.write_config(config)
    # Only now has it the path it will have. A crash before this leaves a machine that is defined when it is started.
    try:
        provider_called(config.provider).define(directory)
    except BaseException:
        machines.remove(directory)
        raise
    return directory


def _at_its_uri(parts: Parts) -> Parts:
    """With the URI that the machine will be at for good. Raises ConfigError."""
    if parts.provider != "libvirt":
        if parts.uri:
            raise ConfigError("--uri names a libvirt", remedy=f"--provider libvirt --uri {parts.uri}")
        return parts
    from toolkit.libvirt.connection import checked_uri, default_uri

    return parts._replace(uri=checked_uri(parts.uri or default_uri()))


def _configure(name: str, parts: Parts, image: Image | None) -> MachineConfig:
    if not parts.image and parts.kernel is None and parts.disk is None:
        raise ConfigError(
            f"machine {name!r} would have nothing to boot",
            cause="neither an image, nor a kernel, nor a disk was named",
            remedy="vtk vm create NAME --image IMAGE (vtk image list), or --kernel FILE",
        )
    kernel, initrd, disk, append, user = parts.kernel, parts.initrd, parts.disk, parts.append, parts.user
    if image is not None:
        kernel, initrd, disk = kernel or image.kernel, initrd or image.initrd, disk or image.disk
        append = f"{image.cmdline} {append}".strip()
        user = user or image.user
    if parts.disk_size is not None and disk is None:
        raise ConfigError("--disk-size is for a machine with a disk", remedy="--disk FILE, or an image that has one")
    if initrd is not None and kernel is None:
        raise ConfigError("an initrd needs a kernel", remedy="--kernel FILE")
    for file in (kernel, initrd, disk):
        if file is not None and not file.is_file():
            raise ImageError(file, "cannot be used", cause="it is not there, or is no file")
    return MachineConfig(
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        image=parts.image,
        kernel=str(kernel.resolve()) if kernel else "",
        initrd=str(initrd.resolve()) if initrd else "",
        append=append,
        disk=str(disk.resolve()) if disk else "",
        memory=parts.memory,
        cpus=parts.cpus,
        accelerator=parts.accelerator,
        mac=":".join([OUI, *(f"{byte:02x}" for byte in secrets.token_bytes(3))]),
        user=user or "root",
        provider=parts.provider,
        uri=parts.uri,
        seed=image is not None and image.kind in SEEDED,
    )


def new_key() -> tuple[str, str]:
    """An ed25519 key as OpenSSH writes it: the private file, and the line of the public one."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return private.decode(), key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _make_seed(directory: MachineDirectory, config: MachineConfig, public_key: str) -> None:
    """cloud-init's seed: who may log in, and the host key, so that ssh knows the guest from the first time on."""
    from toolkit.images.seed import Seed
    from toolkit.vm.ssh_settings import alias

    host_private, host_public = new_key()
    seed = Seed(
        instance_id=f"{config.name}-{config.created}",
        hostname=re.sub(r"[._-]+", "-", config.name).rstrip("-")[:63],
        user=config.user,
        authorized_keys=[public_key],
        host_key=(host_private, host_public),
    )
    seed.write(directory / "seed.iso")
    directory.write("known_hosts", f"{alias(config.name)} {host_public}\n".encode())


def _make_overlay(backing: Path, path: Path, size: int | None) -> None:
    """A qcow2 in which what is written stays, on top of `backing`, which is only read. Raises ImageError, HostError."""
    from toolkit.images.errors import ImageBuildFailed
    from toolkit.images.overlay import check_whole, info, overlay_on

    told = info(backing)
    virtual_size, form = int(told["virtual-size"]), str(told["format"])
    if size is not None and size < virtual_size:
        raise ConfigError(
            f"a disk of {size} bytes cannot hold {backing}",
            cause=f"the image has {virtual_size} bytes",
            remedy=f"--disk-size {-(-virtual_size // MIB)}M",
        )
    check_whole(backing, form)
    try:
        overlay_on(backing, form, path, size)
    except ImageBuildFailed as error:
        if os.strerror(errno.ENOSPC) in error.cause:
            raise
        raise ImageError(backing, "no overlay can be made on it", cause=error.cause or error.message) from error
