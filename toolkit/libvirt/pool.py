"""Files in a storage pool of the domain's host: the image once for all machines, an overlay and a seed for each.

A volume that many machines use is named after its content. One that was only half sent has no second volume beside it,
NAME.complete, which is made last; so a sending that was killed is seen, and done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from minivmm.errors import HostError, ImageError
from toolkit.libvirt.connection import Connection, ask, host_of, is_local, library
from toolkit.libvirt.domain_xml import Files, domain_id
from toolkit.telling import told_when_long
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.provider import MachineConfig

POOL = "default"  # what virt-install and virt-manager call the one they make
CHUNK = 1 << 20  # bytes sent at a time
CHUNK_TIMEOUT = 60.0  # seconds for one chunk to be taken
VOLUME_TIMEOUT = 120.0  # seconds to make or delete a volume
ABANDONED = 86400.0  # seconds after which a half sent volume is nobody's any more
COMPLETE = ".complete"


def send(machine: MachineDirectory, config: MachineConfig) -> Files:
    """Sends what the host lacks, and makes the machine's overlay. Raises HostError, ImageError."""
    pool = ask(config.uri, lambda connection: _find_pool(connection, config.uri), timeout=VOLUME_TIMEOUT)
    kernel = _send_shared(config.uri, pool, Path(config.kernel)) if config.kernel else ""
    initrd = _send_shared(config.uri, pool, Path(config.initrd)) if config.initrd else ""
    disk = seed = ""
    if config.disk:
        disk = _make_overlay(machine, config, pool)
    if config.seed:
        name = _own(config, "seed.iso")
        _delete(config.uri, pool, name)
        seed = _send(config.uri, pool, machine / "seed.iso", name)
    # The daemon opens the log, as root, and QEMU gets the open file: here it may be this user's.
    log = str(machine / "console.log") if is_local(config.uri) else ""
    return Files(kernel=kernel, initrd=initrd, disk=disk, seed=seed, console_log=log)


def remove_volumes(machine: MachineDirectory, config: MachineConfig) -> None:
    """Those of this machine alone; what is shared stays, as images do."""
    del machine
    pool = ask(config.uri, lambda connection: _find_pool(connection, config.uri), timeout=VOLUME_TIMEOUT)
    for file in ("disk.qcow2", "seed.iso"):
        _delete(config.uri, pool, _own(config, file))


def _own(config: MachineConfig, file: str) -> str:
    return f"vtk-{config.name}-{domain_id(config)[:8]}-{file}"


def _find_pool(connection: Connection, uri: str) -> Any:
    """The pool `default`, made when there is none, as virt-install does; else any that is a directory."""
    libvirt = library()
    for pool in connection.listAllStoragePools():
        kind = ElementTree.fromstring(pool.XMLDesc()).get("type")
        if pool.name() == POOL and kind in ("dir", "fs", "netfs"):
            if not pool.isActive():
                pool.create(0)
            pool.refresh(0)
            return pool
    for pool in connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
        if ElementTree.fromstring(pool.XMLDesc()).get("type") in ("dir", "fs", "netfs"):
            pool.refresh(0)
            return pool
    if not uri.partition("?")[0].endswith("/system"):
        raise HostError(
            f"{uri} has no storage pool to send the machine's files to",
            cause="a pool of the kind `dir` is needed",
            remedy=f"virsh -c '{uri}' pool-define-as {POOL} dir --target DIRECTORY, and pool-start {POOL}",
        )
    definition = Element("pool", type="dir")
    SubElement(definition, "name").text = POOL
    SubElement(SubElement(definition, "target"), "path").text = "/var/lib/libvirt/images"
    pool = connection.storagePoolDefineXML(ElementTree.tostring(definition, encoding="unicode"))
    pool.build(0)
    pool.create(0)
    pool.setAutostart(1)
    return pool


def _make_overlay(machine: MachineDirectory, config: MachineConfig, pool: Any) -> str:
    """The machine's disk as a volume on top of the image's; one that is there already is its disk and has its data."""
    from toolkit.images.overlay import info

    told = info(Path(config.disk))
    if "backing-filename" in told:
        raise ImageError(
            config.disk,
            f"cannot be sent to {host_of(config.uri)}",
            cause=f"it is an overlay on {told['backing-filename']}",
            remedy="qemu-img convert -O qcow2 DISK NEW, and --disk NEW",
        )
    name = _own(config, "disk.qcow2")
    if path := _path_of(config.uri, pool, name):
        return path
    base = _send_shared(config.uri, pool, Path(config.disk))
    size = int(info(machine / "disk.qcow2")["virtual-size"])  # as it was asked for on creation
    volume = _volume(name, size, "qcow2")
    backing = SubElement(volume, "backingStore")
    SubElement(backing, "path").text = base
    SubElement(backing, "format", type=str(told["format"]))
    return _create(config.uri, pool, volume)


def _send_shared(uri: str, pool: Any, file: Path) -> str:
    """The path of the volume that has the file's content; sent when there is none."""
    with open(file, "rb") as opened, told_when_long(f"looking whether {host_of(uri)} has {file.name}"):
        digest = hashlib.file_digest(opened, "sha256").hexdigest()[:32]
    prefix = f"vtk-{digest}-"
    names = ask(uri, lambda _: pool.listVolumes(), timeout=VOLUME_TIMEOUT)
    for name in names:
        if name.startswith(prefix) and f"{name}{COMPLETE}" in names:
            return _path_of(uri, pool, name)
    for name in names:
        if name.startswith(prefix) and not name.endswith(COMPLETE) and _is_abandoned(name):
            _delete(uri, pool, name)
    name = f"{prefix}{int(time.time())}-{secrets.token_hex(4)}{file.suffix}"
    path = _send(uri, pool, file, name)
    _create(uri, pool, _volume(f"{name}{COMPLETE}", 0, "raw"))
    return path


def _is_abandoned(name: str) -> bool:
    began = name.split("-")[2]
    return began.isdigit() and time.time() - int(began) > ABANDONED


def _send(uri: str, pool: Any, file: Path, name: str) -> str:
    """The new volume's path. What was sent of it is deleted when that fails."""
    size = file.stat().st_size
    path = _create(uri, pool, _volume(name, size, "raw"))
    stream: Any = None
    try:
        with open(file, "rb") as opened, told_when_long(f"sending {file.name}, {size >> 20} MiB, to {host_of(uri)}"):
            stream = ask(uri, lambda connection: _begin(connection, pool, name, size))
            while data := opened.read(CHUNK):
                ask(uri, _sending(stream, data), timeout=CHUNK_TIMEOUT)
            ask(uri, lambda _: stream.finish(), timeout=CHUNK_TIMEOUT)
    except BaseException:
        with contextlib.suppress(HostError, library().libvirtError):
            if stream is not None:
                ask(uri, lambda _: stream.abort())
        with contextlib.suppress(HostError):
            _delete(uri, pool, name)
        raise
    return path


def _begin(connection: Connection, pool: Any, name: str, size: int) -> Any:
    stream = connection.newStream(0)
    pool.storageVolLookupByName(name).upload(stream, 0, size, 0)
    return stream


def _sending(stream: Any, data: bytes) -> Callable[[Connection], None]:
    def send_all(_: Connection) -> None:
        view = memoryview(data)
        while view:
            view = view[stream.send(bytes(view)) :]

    return send_all


def _volume(name: str, size: int, form: str) -> Element:
    volume = Element("volume")
    SubElement(volume, "name").text = name
    SubElement(volume, "capacity", unit="b").text = str(size)
    SubElement(volume, "allocation", unit="b").text = "0"
    SubElement(SubElement(volume, "target"), "format", type=form)
    return volume


def _create(uri: str, pool: Any, volume: Element) -> str:
    xml = ElementTree.tostring(volume, encoding="unicode")
    return str(ask(uri, lambda _: pool.createXML(xml, 0).path(), timeout=VOLUME_TIMEOUT))


def _path_of(uri: str, pool: Any, name: str) -> str:
    """ "" when there is no such volume."""
    libvirt = library()

    def look(_: Connection) -> str:
        try:
            return str(pool.storageVolLookupByName(name).path())
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
                raise
            return ""

    return ask(uri, look, timeout=VOLUME_TIMEOUT)


def _delete(uri: str, pool: Any, name: str) -> None:
    """Nothing happens when there is none."""
    if _path_of(uri, pool, name):
        ask(uri, lambda _: pool.storageVolLookupByName(name).delete(0), timeout=VOLUME_TIMEOUT)
