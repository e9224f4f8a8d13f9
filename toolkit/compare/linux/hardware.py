"""The virtual hardware compared: for each piece, what QEMU is told, and what Linux must find.

An emulated device is one that exists, or existed, as hardware; the paravirtual ones (virtio) were made for guests.
"""

from __future__ import annotations

from typing import NamedTuple


class Device(NamedTuple):
    """One piece of hardware. The first of a table is the baseline of its ratios."""

    kind: str
    """disk, net or console: what the guest's inventory calls it too."""
    name: str
    summary: str
    driver: str
    """The Linux driver that must be bound to it."""
    qom_type: str
    """QEMU's type of the device whose id is `device_id`."""
    pci_id: str
    """VENDOR:DEVICE of the PCI function the guest must find it on; empty where it is not on PCI."""
    options: tuple[str, ...]
    """Arguments of QEMU's -device; `{back}` is the back end's name, `{id}` the device's."""
    bus: str = ""
    """The QOM bus it must sit on, where the type alone does not say what it is."""

    @property
    def device_id(self) -> str:
        """The id QEMU knows it by."""
        return f"vtk-{self.name}"

    @property
    def back_end(self) -> str:
        """The id of its -blockdev, -netdev or -chardev."""
        return f"back-{self.name}"

    def arguments(self) -> list[str]:
        """The -device options."""
        filled = (option.format(back=self.back_end, id=self.device_id) for option in self.options)
        return [part for option in filled for part in ("-device", option)]


DISKS = (
    Device(
        kind="disk",
        name="ide",
        summary="PIIX3 IDE controller (1996), bus-master DMA",
        driver="ata_piix",
        qom_type="ide-hd",
        pci_id="8086:7010",
        options=("ide-hd,id={id},drive={back},bus=ide.0",),
        bus="ide.0",
    ),
    Device(
        kind="disk",
        name="ahci",
        summary="ICH9 AHCI controller, native command queueing",
        driver="ahci",
        qom_type="ide-hd",
        pci_id="8086:2922",
        options=("ahci,id=ahci", "ide-hd,id={id},drive={back},bus=ahci.0"),
        bus="ahci.0",
    ),
    Device(
        kind="disk",
        name="nvme",
        summary="NVM Express controller",
        driver="nvme",
        qom_type="nvme",
        pci_id="1b36:0010",
        options=("nvme,id={id},drive={back},serial=vtk",),
    ),
    Device(
        kind="disk",
        name="virtio-blk",
        summary="virtio block device",
        driver="virtio_blk",
        qom_type="virtio-blk-pci",
        pci_id="1af4:1001",
        options=("virtio-blk-pci,id={id},drive={back}",),
    ),
)

NETWORKS = (
    Device(
        kind="net",
        name="e1000",
        summary="Intel 82540EM",
        driver="e1000",
        qom_type="e1000",
        pci_id="8086:100e",
        options=("e1000,id={id},netdev={back},romfile=",),
    ),
    Device(
        kind="net",
        name="rtl8139",
        summary="Realtek 8139C+",
        driver="8139cp",  # QEMU's device has both of the chip's modes; Linux's 8139too gets no link from it
        qom_type="rtl8139",
        pci_id="10ec:8139",
        options=("rtl8139,id={id},netdev={back},romfile=",),
    ),
    Device(
        kind="net",
        name="virtio-net",
        summary="virtio network device",
        driver="virtio_net",
        qom_type="virtio-net-pci",
        pci_id="1af4:1000",
        options=("virtio-net-pci,id={id},netdev={back},romfile=",),
    ),
)

CONSOLES = (
    Device(
        kind="console",
        name="8250",
        summary="16550A UART on ISA",
        driver="serial",
        qom_type="isa-serial",
        pci_id="",
        options=("isa-serial,id={id},chardev={back},index=1",),
    ),
    Device(
        kind="console",
        name="virtio-console",
        summary="virtio console device",
        driver="virtio_console",
        qom_type="virtconsole",
        pci_id="1af4:1003",
        options=("virtio-serial-pci,id=virtio-serial", "virtconsole,id={id},chardev={back},bus=virtio-serial.0"),
    ),
)

CLOCKS = ("acpi_pm", "hpet", "tsc", "kvm-clock")
"""Clocksources by Linux's names: two emulated timers, the processor's own counter, and the paravirtual one."""

MACHINES = ("pc", "q35", "microvm")
