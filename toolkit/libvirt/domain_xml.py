"""A machine as libvirt's domain XML (libvirt.org/formatdomain.html): the devices that `toolkit.vm.q35` has.

What the host decides is left to libvirt: the emulator's path, PCI addresses, the sockets of the guest agent.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping
from typing import NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from toolkit.vm.provider import MachineConfig
from toolkit.vm.q35 import CREDENTIAL

NAMESPACE = "urn:vtk:machine"  # of our element in <metadata>
AGENT = "org.qemu.guest_agent.0"
BALLOON_STATISTICS_PERIOD = 5  # seconds between the guest's reports
NETDEV = "hostnet0"  # libvirt's name for the first network's back end

ElementTree.register_namespace("vtk", NAMESPACE)


class Files(NamedTuple):
    """Where the domain's host has the machine's files; "" for one it does not have."""

    kernel: str = ""
    initrd: str = ""
    disk: str = ""
    seed: str = ""
    console_log: str = ""


def domain_id(config: MachineConfig) -> str:
    """The UUID of a domain that vtk makes: the same for the same machine, whenever it is asked for."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{NAMESPACE}:{config.name}:{config.created}:{config.mac}"))


def domain_xml(config: MachineConfig, files: Files, *, hypervisor: str, cpu: Mapping[str, str], key: bytes) -> str:
    """The whole document. `hypervisor` is kvm or qemu (TCG); `cpu` the model's mode, and a feature to leave out;
    `key` is the line that opens root's ssh (systemd.system-credentials(7))."""
    domain = Element("domain", type=hypervisor)
    _text(domain, "name", config.name)
    _text(domain, "uuid", domain_id(config))
    metadata = SubElement(domain, "metadata")
    SubElement(
        metadata,
        f"{{{NAMESPACE}}}machine",
        {"name": config.name, "created": config.created, "image": config.image, "user": config.user},
    )
    _text(domain, "memory", str(config.memory), unit="b")
    _text(domain, "vcpu", str(config.cpus))
    sysinfo = SubElement(domain, "sysinfo", type="smbios")
    credential = f"{CREDENTIAL}={base64.b64encode(key).decode()}"
    _text(SubElement(sysinfo, "oemStrings"), "entry", credential)
    _boot(SubElement(domain, "os"), config, files)
    features = SubElement(domain, "features")
    SubElement(features, "acpi")
    SubElement(features, "apic")
    model = SubElement(domain, "cpu", mode=cpu["mode"])
    if "without" in cpu:
        SubElement(model, "feature", policy="disable", name=cpu["without"])
    SubElement(domain, "clock", offset="utc")
    _text(domain, "on_poweroff", "destroy")
    _text(domain, "on_reboot", "restart")
    _text(domain, "on_crash", "preserve")  # a guest that panics stands still until somebody has looked
    _devices(SubElement(domain, "devices"), config, files)
    return ElementTree.tostring(domain, encoding="unicode")


def _boot(boot: Element, config: MachineConfig, files: Files) -> None:
    _text(boot, "type", "hvm", arch="x86_64", machine="q35")
    if files.kernel:
        _text(boot, "kernel", files.kernel)
        if files.initrd:
            _text(boot, "initrd", files.initrd)
        if config.append:
            _text(boot, "cmdline", config.append)
    else:
        SubElement(boot, "boot", dev="hd")
    SubElement(boot, "smbios", mode="sysinfo")


def _devices(devices: Element, config: MachineConfig, files: Files) -> None:
    if files.disk:
        _disk(devices, files.disk, "qcow2", "vda")
    if files.seed:
        _disk(devices, files.seed, "raw", "vdb")
    SubElement(devices, "controller", type="usb", model="none")
    network = SubElement(devices, "interface", type="user")
    SubElement(network, "mac", address=config.mac)
    SubElement(network, "model", type="virtio")
    SubElement(network, "rom", enabled="no")
    console = SubElement(devices, "serial", type="pty")  # the only kind that virDomainOpenConsole opens
    if files.console_log:
        # vtk makes it anew at each start; a QEMU that takes over from another (migration) goes on in it.
        SubElement(console, "log", file=files.console_log, append="on")
    channel = SubElement(devices, "channel", type="unix")
    SubElement(channel, "target", type="virtio", name=AGENT)
    balloon = SubElement(devices, "memballoon", model="virtio", freePageReporting="on")
    SubElement(balloon, "stats", period=str(BALLOON_STATISTICS_PERIOD))
    _text(SubElement(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
    SubElement(devices, "panic", model="isa")


def _disk(devices: Element, path: str, form: str, target: str) -> None:
    read_only = form == "raw"
    disk = SubElement(devices, "disk", type="file", device="disk", snapshot="no" if read_only else "internal")
    driver = SubElement(disk, "driver", name="qemu", type=form)
    if not read_only:
        driver.set("discard", "unmap")
    SubElement(disk, "source", file=path)
    SubElement(disk, "target", dev=target, bus="virtio")
    if read_only:
        SubElement(disk, "readonly")


def _text(parent: Element, tag: str, text: str, **attributes: str) -> Element:
    element = SubElement(parent, tag, attributes)
    element.text = text
    return element


def is_ours(xml: str) -> bool:
    """Whether vtk made the domain."""
    return ElementTree.fromstring(xml).find(f"metadata/{{{NAMESPACE}}}machine") is not None
