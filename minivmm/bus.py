"""The bus: which device answers at which port and at which guest-physical address.

A device is anything with `read` and `write`; it is told offsets within its own window, never addresses, and does not
know what carries it. Ports and addresses nobody claims read as all ones and swallow writes, as on a PC.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from minivmm.errors import ConfigError
from minivmm.kvm.abi import KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT
from minivmm.tally import Tally

MMIO_GRANULE = 512  # windows are multiples of this (a virtio-mmio slot), so that finding one is a single look-up


class Device(Protocol):
    """What the bus asks of a device. `offset` in bytes from its window's start, `size` 1, 2, 4 or 8 bytes."""

    def read(self, offset: int, size: int) -> int:
        """The value the guest reads, unsigned, less than 1 << 8 * size."""

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest stored `value`. May raise EndOfRun."""


ReadByte = Callable[[], int]
WriteByte = Callable[[int], None]


class PortDevice(Device, Protocol):
    """A device that answers one-byte ports register by register, without a look-up of its own, and takes strings."""

    def port(self, offset: int) -> tuple[ReadByte, WriteByte]:
        """What reads and what writes the one-byte register at `offset`."""

    def write_string(self, offset: int, data: bytes) -> None:
        """A `rep outsb`: all of `data` went to the one-byte register at `offset`, in order, in one exit."""


def io_word(direction: int, size: int, port: int, count: int = 1) -> int:
    """The first 64 bits of kvm_run's `io` structure: one word that identifies an access (abi.Run.IO)."""
    return direction | size << 8 | port << 16 | count << 32


class Bus:
    """Ports and MMIO windows, resolved once when a device is added and looked up once per exit.

    `out_byte` and `in_byte` are the hot path's tables: from kvm_run's io word straight to the device's bound method.
    """

    def __init__(self) -> None:
        self.out_byte: dict[int, WriteByte] = {}
        self.in_byte: dict[int, ReadByte] = {}
        self._ports: dict[int, tuple[Device, int]] = {}
        self._strings: dict[int, tuple[PortDevice, int]] = {}
        self._mmio: dict[int, tuple[Device, int]] = {}
        self.unclaimed = Tally()
        """How often the guest touched a place nobody claims ("out 0x70"), for the first 64 such places."""

    def add_ports(self, first: int, count: int, device: Device) -> None:
        """`device` answers at ports `first` to `first + count - 1`. Raises ConfigError when one is taken."""
        for offset in range(count):
            self._claim(first + offset, device, offset)
            self._answer(first + offset, partial(device.read, offset, 1), partial(device.write, offset, 1))

    def add_port_device(self, first: int, count: int, device: PortDevice) -> None:
        """As add_ports, for a device whose one-byte registers are worth reaching directly."""
        for offset in range(count):
            self._claim(first + offset, device, offset)
            self._answer(first + offset, *device.port(offset))
            self._strings[first + offset] = (device, offset)

    def _claim(self, port: int, device: Device, offset: int) -> None:
        if port in self._ports or not 0 <= port <= 0xFFFF:
            raise ConfigError(f"port {port:#x} is taken already, or is no port")
        self._ports[port] = (device, offset)

    def _answer(self, port: int, read: ReadByte, write: WriteByte) -> None:
        self.in_byte[io_word(KVM_EXIT_IO_IN, 1, port)] = read
        self.out_byte[io_word(KVM_EXIT_IO_OUT, 1, port)] = write

    def add_mmio(self, address: int, size: int, device: Device) -> None:
        """`device` answers at `size` bytes from guest-physical `address`. Raises ConfigError when that is taken."""
        if address % MMIO_GRANULE or size % MMIO_GRANULE:
            raise ConfigError(f"a window of {size:#x} bytes at {address:#x} is not whole {MMIO_GRANULE}-byte granules")
        for offset in range(0, size, MMIO_GRANULE):
            granule = (address + offset) // MMIO_GRANULE
            if granule in self._mmio:
                raise ConfigError(f"address {address + offset:#x} is taken already")
            self._mmio[granule] = (device, address)

    def _count_unclaimed(self, what: str, where: int) -> None:
        self.unclaimed.count(f"{what} {where:#x}")

    def port_access(self, access: int, data: memoryview) -> None:
        """Any PIO exit the byte tables do not answer: wider, string, or unclaimed. `data` is kvm_run's data area."""
        is_out, size, port, count = access & 0xFF, access >> 8 & 0xFF, access >> 16 & 0xFFFF, access >> 32
        claimed = self._ports.get(port)
        total = size * count
        if claimed is None:
            self._count_unclaimed("out" if is_out else "in", port)
            if not is_out:
                data[:total] = b"\xff" * total
            return
        device, offset = claimed
        if is_out:
            if size == 1 and port in self._strings:
                self._strings[port][0].write_string(offset, bytes(data[:total]))
                return
            for start in range(0, total, size):
                device.write(offset, size, int.from_bytes(data[start : start + size], "little"))
            return
        for start in range(0, total, size):
            data[start : start + size] = device.read(offset, size).to_bytes(size, "little")

    def mmio_read(self, address: int, size: int) -> int:
        """The value a guest load of `size` bytes at guest-physical `address` gets."""
        claimed = self._mmio.get(address // MMIO_GRANULE)
        if claimed is None:
            self._count_unclaimed("read", address)
            return (1 << 8 * size) - 1
        device, base = claimed
        return device.read(address - base, size)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """A guest store of `size` bytes at guest-physical `address`."""
        claimed = self._mmio.get(address // MMIO_GRANULE)
        if claimed is None:
            self._count_unclaimed("write", address)
            return
        device, base = claimed
        device.write(address - base, size, value)
