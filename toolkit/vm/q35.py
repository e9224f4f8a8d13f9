"""A machine's QEMU command line: q35 with paravirtual devices, everything on it named here (-nodefaults)."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from toolkit.qemu.microvm import Accelerator, default_cpu
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.provider import MIB, MachineConfig

CREDENTIAL = "io.systemd.credential.binary:ssh.authorized_keys.root"
"""How systemd (252 and later, systemd.system-credentials(7)) is handed root's authorized keys: an SMBIOS OEM string."""


def arguments(
    binary: str, machine: MachineDirectory, config: MachineConfig, accelerator: Accelerator, *, paused: bool
) -> list[str]:
    """The command line, but for `sockets`."""
    public_key = base64.b64encode((machine / "id_ed25519.pub").read_bytes()).decode()
    line = [
        binary,
        *("-nodefaults", "-no-user-config", "-display", "none", "-daemonize"),
        *("-name", f"guest={config.name}", "-pidfile", str(machine / "qemu.pid")),
        *("-M", "q35", "-accel", accelerator.value, "-cpu", default_cpu(accelerator)),
        *("-m", f"{config.memory // MIB}M", "-smp", str(config.cpus)),
        # A guest that panics stands still until somebody has looked.
        *("-device", "pvpanic", "-action", "panic=pause"),
        "-netdev",
        f"user,id=net0,hostfwd=tcp:127.0.0.1:{config.ssh_port}-:22",
        *("-device", f"virtio-net-pci,netdev=net0,mac={config.mac},romfile="),
        *("-device", "virtio-rng-pci", "-device", "virtio-balloon-pci,id=balloon0"),
        *("-smbios", f"type=11,value={CREDENTIAL}={public_key}"),
    ]
    if config.disk:
        line += ["-blockdev", json.dumps(_overlay_node(machine / "disk.qcow2"))]
        line += ["-device", "virtio-blk-pci,drive=disk0"]
    if config.seed:
        line += ["-blockdev", json.dumps(_seed_node(machine / "seed.iso"))]
        line += ["-device", "virtio-blk-pci,drive=seed"]
    if config.kernel:
        line += ["-kernel", config.kernel]
        if config.initrd:
            line += ["-initrd", config.initrd]
        if config.append:
            line += ["-append", config.append]
    return line + ["-S"] * paused


def sockets(machine: MachineDirectory, *, qmp: int, console: int) -> list[str]:
    """The monitor and the serial console, on inherited descriptors of sockets that listen."""
    log = f"logfile={_quoted(machine / 'console.log')},logappend=off"
    return [
        *("-chardev", f"socket,id=qmp,fd={qmp},server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=console,fd={console},server=on,wait=off,{log}", "-serial", "chardev:console"),
    ]


def _overlay_node(path: Path) -> dict[str, object]:
    return {
        "driver": "qcow2",
        "node-name": "disk0",
        "discard": "unmap",
        "file": {"driver": "file", "filename": str(path), "aio": "threads", "discard": "unmap"},
    }


def _seed_node(path: Path) -> dict[str, object]:
    file = {"driver": "file", "filename": str(path), "read-only": True}
    return {"driver": "raw", "node-name": "seed", "read-only": True, "file": file}


def _quoted(path: Path) -> str:
    """A comma ends an option's value unless it is doubled."""
    return str(path).replace(",", ",,")
