"""A guest that did not get the hardware asked for is found out, whichever side tells it."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import pytest

from toolkit.compare.linux.hardware import CONSOLES, DISKS, NETWORKS, Device
from toolkit.compare.linux.identity import MOST_DEVICES, Found, identify, read_inventory
from toolkit.compare.protocol import ProtocolBroken
from toolkit.compare.session import SessionSilent
from toolkit.qemu.errors import QemuError

IDE, AHCI, NVME, VIRTIO_BLK = DISKS
E1000, RTL8139, VIRTIO_NET = NETWORKS

INVENTORY = (
    Found("disk", "sda", "ata_piix", "0000:00:01.1", "8086:7010"),
    Found("disk", "sdb", "ahci", "0000:00:02.0", "8086:2922"),
    Found("disk", "vda", "virtio_blk", "0000:00:04.0", "1af4:1001"),
    Found("net", "eth0", "e1000", "0000:00:05.0", "8086:100e"),
    Found("console", "ttyS1", "serial", "", ""),
)


def function(slot: int, number: int, identity: str, qdev: str) -> dict[str, Any]:
    vendor, device = (int(part, 16) for part in identity.split(":"))
    return {"bus": 0, "slot": slot, "function": number, "id": {"vendor": vendor, "device": device}, "qdev_id": qdev}


class Qmp:
    """Answers as QEMU 7.2 does for a pc with an IDE disk, an AHCI disk, a virtio disk, an e1000 and a second UART."""

    def __init__(self) -> None:
        self.types = {"ide": "ide-hd", "ahci": "ide-hd", "virtio-blk": "virtio-blk-pci", "e1000": "e1000"}
        self.types["8250"] = "isa-serial"
        self.buses = {"ide": "/machine/unattached/device[9]/ide.0", "ahci": "/machine/peripheral/ahci/ahci.0"}
        self.blocks = [
            {"qdev": "vtk-ide", "inserted": {"node-name": "back-ide"}},
            {"qdev": "vtk-ahci", "inserted": {"node-name": "back-ahci"}},
            {
                "qdev": "/machine/peripheral/vtk-virtio-blk/virtio-backend",
                "inserted": {"node-name": "back-virtio-blk"},
            },
        ]
        self.functions = [
            function(1, 1, "8086:7010", ""),
            function(2, 0, "8086:2922", "ahci"),
            function(4, 0, "1af4:1001", "vtk-virtio-blk"),
            function(5, 0, "8086:100e", "vtk-e1000"),
        ]

    def execute(self, command: str, **arguments: object) -> Any:
        if command == "query-block":
            return self.blocks
        if command == "query-pci":
            return [{"bus": 0, "devices": self.functions}]
        name = str(arguments["path"]).removeprefix("/machine/peripheral/vtk-")
        if name not in self.types:
            raise QemuError("QEMU refuses qom-get", f"Device 'vtk-{name}' not found")
        return self.types[name] if arguments["property"] == "type" else self.buses.get(name, "/machine/bus")


@pytest.mark.parametrize("device", [IDE, AHCI, VIRTIO_BLK, E1000, CONSOLES[0]], ids=lambda device: device.name)
def test_a_device_both_sides_agree_on_has_no_problem(device: Device) -> None:
    facts, problem = identify(device, INVENTORY, Qmp())

    assert problem == ""
    assert facts["driver"] == device.driver
    assert facts["qemu"] == device.qom_type


def test_a_disk_the_guest_does_not_drive_is_a_problem() -> None:
    _, problem = identify(NVME, INVENTORY, Qmp())

    assert problem == "the guest has 0 disk devices driven by nvme; its disk drivers: ata_piix, ahci, virtio_blk"


def test_two_disks_of_one_driver_are_a_problem_since_either_could_be_measured() -> None:
    twice = (*INVENTORY, Found("disk", "vdb", "virtio_blk", "0000:00:06.0", "1af4:1001"))

    _, problem = identify(VIRTIO_BLK, twice, Qmp())

    assert problem.startswith("the guest has 2 disk devices driven by virtio_blk")


def test_a_device_of_another_type_in_qemu_is_a_problem() -> None:
    qmp = Qmp()
    qmp.types["e1000"] = "e1000e"

    _, problem = identify(E1000, INVENTORY, qmp)

    assert problem == "QEMU's vtk-e1000 is a e1000e, not a e1000"


def test_a_disk_on_another_controller_is_a_problem_though_its_type_is_the_same() -> None:
    qmp = Qmp()
    qmp.buses["ahci"] = "/machine/unattached/device[9]/ide.1"

    _, problem = identify(AHCI, INVENTORY, qmp)

    assert problem == "QEMU's vtk-ahci is on /machine/unattached/device[9]/ide.1, not on ahci.0"


def test_a_disk_with_another_file_behind_it_is_a_problem() -> None:
    qmp = Qmp()
    qmp.blocks[2]["inserted"] = {"node-name": "back-ide"}

    _, problem = identify(VIRTIO_BLK, INVENTORY, qmp)

    assert problem == "QEMU has another disk behind vtk-virtio-blk than back-virtio-blk"


def test_a_function_the_guest_sees_elsewhere_than_qemu_is_a_problem() -> None:
    qmp = Qmp()
    qmp.functions[3]["slot"] = 9

    _, problem = identify(E1000, INVENTORY, qmp)

    assert problem == "QEMU has no 8086:100e at 0000:00:05.0, where the guest found it"


def test_a_function_of_another_identity_is_a_problem() -> None:
    changed = tuple(found._replace(id="8086:10d3") if found.driver == "e1000" else found for found in INVENTORY)

    _, problem = identify(E1000, changed, Qmp())

    assert "the guest found it on PCI device 8086:10d3, not on 8086:100e" in problem


def test_what_qemu_does_not_know_or_answers_strangely_is_a_problem_and_no_crash() -> None:
    stranger, silent = Qmp(), Qmp()
    del silent.types["e1000"]
    stranger.functions.append({"slot": 7})

    assert "Device 'vtk-e1000' not found" in identify(E1000, INVENTORY, silent)[1]
    assert "QEMU does not say what vtk-e1000 is" in identify(E1000, INVENTORY, stranger)[1]


class Script:
    """A session that says some lines and then nothing."""

    def __init__(self, *lines: str) -> None:
        self.lines = deque(lines)

    def read_line(self, deadline: float) -> tuple[int, bytes]:  # noqa: ARG002
        if not self.lines:
            raise SessionSilent("no answer in time")
        return 7, self.lines.popleft().encode()

    def send_line(self, line: str) -> None: ...
    def exits(self) -> dict[str, int]:
        return {}

    def text(self) -> str:
        return ""

    def close(self) -> None: ...


def device_line(**more: object) -> str:
    return json.dumps({"device": "disk", "name": "sda", "driver": "ahci", "pci": "", "id": ""} | more)


def test_the_inventory_ends_with_the_ready_line_which_is_handed_on() -> None:
    inventory, first = read_inventory(Script(device_line(), '{"ready":"bench"}', device_line()), 1.0)

    assert inventory == (Found("disk", "sda", "ahci", "", ""),)
    assert first == (7, b'{"ready":"bench"}')


@pytest.mark.parametrize("line", ['{"device":"disk"}', "{", "{}", device_line(pci=3), '{"begin":"cpu"}'])
def test_a_line_that_is_no_device_breaks_the_protocol(line: str) -> None:
    with pytest.raises(ProtocolBroken):
        read_inventory(Script(line), 1.0)


def test_a_guest_cannot_tell_of_devices_without_end() -> None:
    with pytest.raises(ProtocolBroken, match="more than"):
        read_inventory(Script(*[device_line()] * (MOST_DEVICES + 1)), 1.0)
