"""Where a domain's files are: in the machine's directory where the daemon's QEMU reads that, else in a pool."""

from __future__ import annotations

import os
import re
from pathlib import Path
from xml.etree import ElementTree

from toolkit.libvirt.connection import PROBE_TIMEOUT, Connection, ask, is_local
from toolkit.libvirt.domain_xml import Files
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.provider import MachineConfig


def is_in_place(uri: str) -> bool:
    """Whether the QEMU of the daemon at `uri` reads this user's files: it is here, and runs as this user or as root."""
    if not is_local(uri):
        return False
    return ask(uri, _qemu_user, timeout=PROBE_TIMEOUT) in (0, os.geteuid())


def _qemu_user(connection: Connection) -> int:
    """From the host's capabilities: the label that the DAC driver gives to QEMU, `+UID:+GID`."""
    capabilities = ElementTree.fromstring(connection.getCapabilities())
    for model in capabilities.findall("host/secmodel"):
        label = model.findtext("baselabel[@type='kvm']") or model.findtext("baselabel") or ""
        if model.findtext("model") == "dac" and (user := re.match(r"\+(\d+):", label)):
            return int(user[1])
    return os.geteuid()  # a session's daemon, which has no other user to run QEMU as


def place(machine: MachineDirectory, config: MachineConfig) -> Files:
    """The files as the domain's host has them; those it lacks are sent there. Raises HostError, ImageError."""
    if is_in_place(config.uri):
        return in_directory(machine, config)
    from toolkit.libvirt.pool import send

    return send(machine, config)


def in_directory(machine: MachineDirectory, config: MachineConfig) -> Files:
    """As they are on this host."""
    return Files(
        kernel=config.kernel,
        initrd=config.initrd,
        disk=str(machine / "disk.qcow2") if config.disk else "",
        seed=str(machine / "seed.iso") if config.seed else "",
        console_log=str(machine / "console.log"),
    )


def remove(machine: MachineDirectory, config: MachineConfig) -> None:
    """What was made for the machine outside its directory."""
    if is_in_place(config.uri):
        return
    from toolkit.libvirt.pool import remove_volumes

    remove_volumes(machine, config)


def new_console_log(machine: MachineDirectory) -> None:
    """An empty one of this user's, into which the daemon has the console written; the last becomes console.log.1."""
    log = machine / "console.log"
    if log.exists():
        log.replace(machine / "console.log.1")
    os.close(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def renew_overlay(machine: MachineDirectory, config: MachineConfig) -> None:
    """An empty one of the same size in the place of the machine's disk, which is at another host."""
    from toolkit.images.overlay import info, overlay_on

    disk, part = machine / "disk.qcow2", machine / ".disk.qcow2.part"
    size = int(info(disk)["virtual-size"])
    overlay_on(Path(config.disk), str(info(Path(config.disk))["format"]), part, size)
    part.replace(disk)
