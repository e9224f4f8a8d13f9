"""The physical address space: RAM from 0x8000_0000, devices in pages below it, and nothing else.

Unlike a PC's bus, an address nobody claims is an access fault, as on QEMU's `virt` machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minivmm.errors import ConfigError, GuestMemoryError
from minivmm.memory import PAGE_SIZE, GuestMemory, MemoryRegion
from minivmm.tally import Tally

if TYPE_CHECKING:
    from minivmm.bus import Device

RAM_BASE = 0x8000_0000
PAGE_SHIFT = 12
assert PAGE_SIZE == 1 << PAGE_SHIFT


class Ram(GuestMemory):
    """Guest memory in one piece from RAM_BASE, for the hart, the loaders and the virtio devices alike."""

    @property
    def regions(self) -> tuple[MemoryRegion, ...]:
        """All of it."""
        return (MemoryRegion(RAM_BASE, self.size, self.host_address),)

    def _offset(self, address: int, length: int) -> int:
        offset = address - RAM_BASE
        if length >= 0 and offset >= 0 and offset + length <= self.size:
            return offset
        raise GuestMemoryError(address, length)


class NobodyThere(Exception):
    """No RAM and no device at a physical address: the access faults."""


class AddressSpace:
    """RAM, and the windows of the devices."""

    def __init__(self, ram: Ram) -> None:
        self.ram = ram
        self.unclaimed = Tally()
        """How often the guest touched a place nobody claims ("read 0x1000"), for the first 64 such places."""
        self._pages: dict[int, tuple[Device, int]] = {}
        whole = ram.view(RAM_BASE, ram.size)
        self.ram8 = whole
        self.ram16, self.ram32, self.ram64 = whole.cast("H"), whole.cast("I"), whole.cast("Q")
        self.signed8, self.signed16, self.signed32 = whole.cast("b"), whole.cast("h"), whole.cast("i")

    def close(self) -> None:
        """Lets go of the views of RAM, so that it can be given back."""
        for view in (self.ram16, self.ram32, self.ram64, self.signed8, self.signed16, self.signed32, self.ram8):
            view.release()

    def add(self, address: int, size: int, device: Device) -> None:
        """`device` answers at `size` bytes, whole pages, from `address`. Raises ConfigError when that is taken."""
        if address % PAGE_SIZE or size % PAGE_SIZE or address + size > RAM_BASE:
            raise ConfigError(f"a device's {size:#x} bytes at {address:#x} are not whole pages below RAM")
        for page in range(address >> PAGE_SHIFT, address + size >> PAGE_SHIFT):
            if page in self._pages:
                raise ConfigError(f"address {page << PAGE_SHIFT:#x} is taken already")
            self._pages[page] = (device, address)

    def ram_offset(self, address: int) -> int | None:
        """Where in RAM the physical address is; None when it is not RAM."""
        offset = address - RAM_BASE
        return offset if 0 <= offset < self.ram.size else None

    def is_device(self, address: int) -> bool:
        """Whether a device claims the physical address."""
        return address >> PAGE_SHIFT in self._pages

    def read_device(self, address: int, size: int) -> int:
        """What a load of `size` bytes at a physical address outside RAM gets. Raises NobodyThere."""
        claimed = self._pages.get(address >> PAGE_SHIFT)
        if claimed is None:
            self.unclaimed.count(f"read {address:#x}")
            raise NobodyThere
        device, base = claimed
        return device.read(address - base, size)

    def write_device(self, address: int, size: int, value: int) -> None:
        """A store of `size` bytes outside RAM. Raises NobodyThere; EndOfRun when a device ends the machine."""
        claimed = self._pages.get(address >> PAGE_SHIFT)
        if claimed is None:
            self.unclaimed.count(f"write {address:#x}")
            raise NobodyThere
        device, base = claimed
        device.write(address - base, size, value)
