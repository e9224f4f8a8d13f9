"""A machine's QEMU command line: q35 with paravirtual devices, everything on it named here (-nodefaults)."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from toolkit.qemu.microvm import Accelerator, default_cpu
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.ports import LOOPBACK
from toolkit.vm.presence import PID_FILE
from toolkit.vm.provider import MIB, MachineConfig

NETDEV = "net0"
DISK = "disk0"  # the block node of disk.qcow2
BALLOON = "balloon0"
AGENT_PORT = "org.qemu.guest_agent.0"  # where the QEMU guest agent looks for its host (qemu-ga(8))
STATS = "guest-stats-polling-interval=2"  # seconds between the reports of its memory that the guest is asked for

CREDENTIAL = "io.systemd.credential.binary:ssh.authorized_keys.root"
"""How systemd (252 and later, systemd.system-credentials(7)) is handed root's authorized keys: an SMBIOS OEM string."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How a machine's process is started, beyond what the machine is made of."""

    accelerator: Accelerator
    paused: bool = False
    type: str = "q35"  # QEMU's machine type; one with a version where there is a state to be taken over
    slot: str = ""  # see presence
    incoming: int | None = None  # the descriptor that the state of another process comes from


def forwarding(config: MachineConfig) -> str:
    """The rule by which a port of this host is the guest's ssh port."""
    return f"tcp:{LOOPBACK}:{config.ssh_port}-:22"


def arguments(binary: str, machine: MachineDirectory, config: MachineConfig, launch: Launch) -> list[str]:
    """The command line, but for `sockets`."""
    public_key = base64.b64encode((machine / "id_ed25519.pub").read_bytes()).decode()
    line = [
        binary,
        *("-nodefaults", "-no-user-config", "-display", "none", "-daemonize"),
        *("-name", f"guest={config.name}", "-pidfile", str(machine / (PID_FILE + launch.slot))),
        *("-M", launch.type, "-accel", launch.accelerator.value, "-cpu", default_cpu(launch.accelerator)),
        *("-m", f"{config.memory // MIB}M", "-smp", str(config.cpus)),
        # A guest that panics stands still until somebody has looked.
        *("-device", "pvpanic", "-action", "panic=pause"),
        # While a machine moves, the port is the old process' still: see migration.
        *("-netdev", f"user,id={NETDEV}" + (f",hostfwd={forwarding(config)}" if launch.incoming is None else "")),
        *("-device", f"virtio-net-pci,netdev={NETDEV},mac={config.mac},romfile="),
        # Pages that the guest has freed go back to the host even without inflating.
        *("-device", f"virtio-balloon-pci,id={BALLOON},free-page-reporting=on,deflate-on-oom=on,{STATS}"),
        *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci,id=ports"),
        *("-smbios", f"type=11,value={CREDENTIAL}={public_key}"),
    ]
    if config.disk:
        line += ["-blockdev", json.dumps(_overlay_node(machine / "disk.qcow2"))]
        line += ["-device", f"virtio-blk-pci,drive={DISK}"]
    if config.seed:
        line += ["-blockdev", json.dumps(_seed_node(machine / "seed.iso"))]
        line += ["-device", "virtio-blk-pci,drive=seed"]
    if config.kernel:
        line += ["-kernel", config.kernel]
        if config.initrd:
            line += ["-initrd", config.initrd]
        if config.append:
            line += ["-append", config.append]
    if launch.incoming is not None:
        # With -D, what it says when it cannot load the state is not lost. A path by itself: a % in one is QEMU's own.
        line += ["-incoming", f"fd:{launch.incoming}", "-D", "qemu.log"]
    return line + ["-S"] * launch.paused


def sockets(machine: MachineDirectory, launch: Launch, *, qmp: int, console: int, agent: int) -> list[str]:
    """The monitor, the serial console and the guest agent, on inherited descriptors of sockets that listen."""
    append = "off" if launch.incoming is None else "on"
    log = f"logfile={_quoted(machine / 'console.log')},logappend={append}"
    return [
        *("-chardev", f"socket,id=qmp,fd={qmp},server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=console,fd={console},server=on,wait=off,{log}", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=agent,fd={agent},server=on,wait=off"),
        *("-device", f"virtserialport,bus=ports.0,chardev=agent,id=agent0,name={AGENT_PORT}"),
    ]


def _overlay_node(path: Path) -> dict[str, object]:
    return {
        "driver": "qcow2",
        "node-name": DISK,
        "discard": "unmap",
        "file": {"driver": "file", "filename": str(path), "aio": "threads", "discard": "unmap"},
    }


def _seed_node(path: Path) -> dict[str, object]:
    file = {"driver": "file", "filename": str(path), "read-only": True}
    return {"driver": "raw", "node-name": "seed", "read-only": True, "file": file}


def _quoted(path: Path) -> str:
    """A comma ends an option's value unless it is doubled."""
    return str(path).replace(",", ",,")
