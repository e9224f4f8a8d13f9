"""One QEMU machine that boots the measured Linux, with some of the hardware compared, and the peers of its devices."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from toolkit.compare.linux.guest import LinuxGuest
from toolkit.compare.linux.hardware import Device
from toolkit.compare.linux.identity import read_inventory
from toolkit.compare.session import BenchMachine, MachineSession, SessionEnded
from toolkit.qemu.machine import QemuMachine
from toolkit.qemu.microvm import Accelerator, default_cpu
from toolkit.qemu.process import dying_with_parent

MEMORY = 192 << 20  # bytes: what Debian's generic kernel and its initramfs unpack in, with room to work
BOOT_TIMEOUT = 120.0  # seconds from the start of QEMU to the bench program's first line; 3 to 6 on an idle host
# What a machine type needs beside the options every one has. A microvm without ACPI cannot power off: it ends by reset.
TYPES = {"pc": "pc", "q35": "q35", "microvm": "microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on"}


@dataclass(frozen=True, slots=True)
class LinuxMachine:
    """What the machine is made of: toolkit.qemu.microvm.Shape."""

    guest: LinuxGuest
    type: str
    """pc, q35 or microvm."""
    accelerator: Accelerator
    devices: tuple[Device, ...] = ()
    disk_files: Mapping[str, Path] = field(default_factory=dict)
    """By the device's name; each is written to."""
    sockets: Mapping[str, int] = field(default_factory=dict)
    """Descriptors of the sockets of networks and consoles, by the device's name."""
    virtio_console: bool = False
    target: str = "x86_64"

    @property
    def inherited(self) -> Sequence[int]:
        return list(self.sockets.values())

    def check(self) -> None:
        """Nothing here comes from a user."""

    def arguments(self, binary: str, *, qmp: int, serial: int, hvc: int | None, paused: bool) -> list[str]:  # noqa: ARG002
        """The whole command line."""
        line = [
            binary,
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *(
                "-M",
                f"{TYPES[self.type]},memory-backend=ram",
                "-accel",
                self.accelerator.value,
                "-cpu",
                default_cpu(self.accelerator),
            ),
            # A file in memory, by whose name the host's memory map tells the guest's RAM from QEMU's own (memory.py).
            *("-object", f"memory-backend-memfd,id=ram,size={MEMORY >> 20}M", "-m", f"{MEMORY >> 20}M", "-smp", "1"),
            *("-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control"),
            *("-chardev", f"socket,id=serial,fd={serial}", "-serial", "chardev:serial"),
            *("-kernel", str(self.guest.kernel), "-initrd", str(self.guest.initrd)),
            *("-append", self.guest.command_line(options="--devices")),
        ]
        for device in self.devices:
            line += [*self._back_end(device), *device.arguments()]
        return line + ["-S"] * paused

    def _back_end(self, device: Device) -> list[str]:
        if device.kind == "disk":
            return ["-blockdev", json.dumps(_block_node(device, self.disk_files[device.name]))]
        descriptor = self.sockets[device.name]
        if device.kind == "net":
            return ["-netdev", f"dgram,id={device.back_end},local.type=fd,local.str={descriptor}"]
        return ["-chardev", f"socket,id={device.back_end},fd={descriptor}"]


def _block_node(device: Device, path: Path) -> dict[str, object]:
    """As `vtk compare` has its disks: a raw file through the host's page cache, and QEMU's own defaults."""
    file = {"driver": "file", "filename": str(path), "aio": "threads", "discard": "unmap"}
    return {"driver": "raw", "node-name": device.back_end, "discard": "unmap", "file": file}


class OpenMachine:
    """A machine that runs, with its peers: a Session (toolkit.compare.session) of its bench program.

    `inventory` is what the guest says it has and what QEMU says it gave. Raises VtkError when it does not start.
    """

    def __init__(
        self,
        shape: LinuxMachine,
        *,
        disk_files: dict[str, Path] | None = None,
        paused: bool = True,
        lifetime: float = 3600.0,
    ) -> None:
        self._peers: list[subprocess.Popen[bytes]] = []
        self._machine: QemuMachine | None = None
        try:
            self._session = self._start(shape, disk_files or {}, paused, lifetime)
        except BaseException:
            self._end_peers()
            raise
        try:
            self.inventory, first = read_inventory(self._session, BOOT_TIMEOUT)
        except BaseException:
            self.close()
            raise
        self.ready_at = first[0]
        """time.monotonic_ns() of the bench program's ready line."""
        self._first: tuple[int, bytes] | None = first

    @property
    def machine(self) -> QemuMachine:
        """The QEMU under it."""
        assert self._machine is not None
        return self._machine

    def send_line(self, line: str) -> None:
        """See Session."""
        self._session.send_line(line)

    def read_line(self, deadline: float) -> tuple[int, bytes]:
        """See Session. The first is the ready line, which was read already."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return self._session.read_line(deadline)

    def exits(self) -> dict[str, int]:
        """Not counted: QEMU's own counters stand still under TCG."""
        return {}

    def text(self) -> str:
        """See Session."""
        return self._session.text()

    def close(self) -> None:
        """Ends the machine and its peers."""
        self._session.close()
        self._end_peers()

    def _start(self, shape: LinuxMachine, disk_files: dict[str, Path], paused: bool, lifetime: float) -> MachineSession:
        """QEMU with the peers of its devices."""
        with contextlib.ExitStack() as theirs:
            sockets = {device.name: self._peer(device, theirs) for device in shape.devices if device.kind != "disk"}
            complete = replace(shape, disk_files=disk_files, sockets=sockets)

            def build(console: Callable[[bytes], None]) -> BenchMachine:
                self._machine = QemuMachine.shaped(complete, console=console, paused=paused)
                return self._machine

            return MachineSession(build, lifetime=lifetime)

    def _peer(self, device: Device, theirs: contextlib.ExitStack) -> int:
        """Starts the other end of a device; the descriptor for QEMU, which is closed here when `theirs` is."""
        from guest_os.hosted import linux_program

        kind = socket.SOCK_DGRAM if device.kind == "net" else socket.SOCK_STREAM
        for_qemu, for_peer = socket.socketpair(socket.AF_UNIX, kind)
        theirs.callback(for_qemu.close)
        role = "frames" if device.kind == "net" else "console"
        with for_peer:
            command = [str(linux_program("peer")), role, str(for_peer.fileno())]
            try:
                peer = subprocess.Popen(
                    dying_with_parent(command),
                    pass_fds=[for_peer.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as error:
                raise SessionEnded(f"the peer of {device.name} cannot be started: {error.strerror}") from error
        self._peers.append(peer)
        return for_qemu.fileno()

    def _end_peers(self) -> None:
        for peer in self._peers:
            peer.kill()
            peer.wait()
        self._peers.clear()
