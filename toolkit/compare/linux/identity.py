"""Whether the guest really has the hardware that is to be measured: its sysfs and QEMU's QMP must tell the same story.

The bench program says of each device which driver is bound to it and on which PCI function it sits (sysfs); QMP says
what QEMU made of each `-device`, and what sits on that function. Where they disagree the device has failed: no figure.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from toolkit.compare.linux.hardware import Device
from toolkit.compare.protocol import ProtocolBroken
from toolkit.compare.session import Session
from toolkit.qemu.errors import QemuError

MOST_DEVICES = 64  # lines before the ready line


class Found(NamedTuple):
    """A device as the guest's sysfs has it."""

    kind: str  # disk, net, console
    name: str  # sda, eth0, ttyS1
    driver: str
    pci: str  # 0000:00:01.1; empty where it is not on PCI
    id: str  # 8086:7010

    def facts(self, qom_type: str) -> dict[str, str]:
        """What a report says of it."""
        facts = {"driver": self.driver, "name": self.name, "qemu": qom_type, "pci": self.pci, "id": self.id}
        return {name: value for name, value in facts.items() if value}


Inventory = tuple[Found, ...]


class Monitor(Protocol):
    """QMP, as QemuMachine offers it."""

    def execute(self, command: str, **arguments: object) -> Any: ...


def read_inventory(session: Session, timeout: float) -> tuple[Inventory, tuple[int, bytes]]:
    """The devices the guest tells of while it starts, and the ready line that ends them with the time it came.

    Raises SessionLost.
    """
    deadline = time.monotonic() + timeout
    found: list[Found] = []
    while True:
        stamp, line = session.read_line(deadline)
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if isinstance(message, dict) and "ready" in message:
            return tuple(found), (stamp, line)
        fields = [message.get(key) for key in ("device", *Found._fields[1:])] if isinstance(message, dict) else []
        if len(fields) != len(Found._fields) or not all(isinstance(field, str) for field in fields):
            raise ProtocolBroken(f"a device or the ready line expected, {line[:100]!r} came")
        if len(found) == MOST_DEVICES:
            raise ProtocolBroken(f"more than {MOST_DEVICES} devices")
        found.append(Found(*(str(field) for field in fields)))


def identify(device: Device, inventory: Inventory, monitor: Monitor) -> tuple[dict[str, str], str]:
    """What is known of a device, and what is wrong with it: empty when guest and QEMU agree."""
    kind = device.kind
    mine = [found for found in inventory if found.kind == kind and found.driver == device.driver]
    if len(mine) != 1:
        drivers = ", ".join(found.driver for found in inventory if found.kind == kind) or "none"
        return {}, f"the guest has {len(mine)} {kind} devices driven by {device.driver}; its {kind} drivers: {drivers}"
    try:
        problems = list(_disagreements(device, mine[0], monitor))
    except (QemuError, LookupError, TypeError) as error:  # an answer of another shape than this QEMU gives
        problems = [f"QEMU does not say what {device.device_id} is: {error}"]
    return mine[0].facts(device.qom_type), "; ".join(problems)


def _disagreements(device: Device, found: Found, monitor: Monitor) -> Iterator[str]:
    path = f"/machine/peripheral/{device.device_id}"
    qom_type = monitor.execute("qom-get", path=path, property="type")
    if qom_type != device.qom_type:
        yield f"QEMU's {device.device_id} is a {qom_type}, not a {device.qom_type}"
    bus = str(monitor.execute("qom-get", path=path, property="parent_bus"))
    if device.bus and not bus.endswith(f"/{device.bus}"):
        yield f"QEMU's {device.device_id} is on {bus}, not on {device.bus}"
    if device.kind == "disk" and not _is_behind(device, monitor.execute("query-block")):
        yield f"QEMU has another disk behind {device.device_id} than {device.back_end}"
    if found.id != device.pci_id:
        yield f"the guest found it on PCI device {found.id or 'none'}, not on {device.pci_id or 'none'}"
    if device.pci_id and found.pci not in {address for address, qdev in _functions(device, monitor) if qdev}:
        yield f"QEMU has no {device.pci_id} at {found.pci}, where the guest found it"


def _is_behind(device: Device, blocks: Iterable[dict[str, Any]]) -> bool:
    """Whether QEMU's block layer has the device's own node behind it, and nothing else."""
    # `qdev` is the device's id, or for a device within it (virtio's) the whole path (qapi/block-core.json, BlockInfo).
    inside = f"/machine/peripheral/{device.device_id}/"
    nodes = [
        block.get("inserted", {}).get("node-name")
        for block in blocks
        if (qdev := str(block.get("qdev", ""))) == device.device_id or qdev.startswith(inside)
    ]
    return nodes == [device.back_end]


def _functions(device: Device, monitor: Monitor) -> Iterator[tuple[str, bool]]:
    """The PCI functions with the device's identity: address, and whether they can be this very device.

    A device with an id of its own is known by it; a disk's or a console's controller by what it is.
    """
    own = device.qom_type not in ("ide-hd", "virtconsole")
    for bus in monitor.execute("query-pci"):
        for function in bus["devices"]:
            identity = f"{function['id']['vendor']:04x}:{function['id']['device']:04x}"
            if identity == device.pci_id:
                address = f"0000:{function['bus']:02x}:{function['slot']:02x}.{function['function']:x}"
                yield address, not own or function["qdev_id"] == device.device_id
