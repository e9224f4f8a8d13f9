"""One VM: memory slots, interrupt controllers, event file descriptors, vCPUs."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from ctypes import addressof, c_char
from fcntl import ioctl
from typing import Any

from minivmm.kvm import abi
from minivmm.kvm.closing import close_soon
from minivmm.kvm.ioctl import call, call_with_address, explain
from minivmm.kvm.vcpu import Vcpu

# Three pages in the hole below 4 GiB that VMX without unrestricted guest mode wants for itself (4.41).
TSS_ADDRESS = 0xFFFBD000

# The page below those, for a slot that is there for a moment (forget_translations).
SPARE_ADDRESS = TSS_ADDRESS - mmap.PAGESIZE

GSIS = 24  # lines of the IOAPIC
_LEVELS = {(gsi, level): bytes(abi.kvm_irq_level(gsi, level)) for gsi in range(GSIS) for level in (False, True)}


class Vm:
    """A VM's file descriptor. Make all memory slots first, then the irqchip, then vCPUs: the first slot change after
    the irqchip costs 7 ms on a software back end (docs/backends.md)."""

    def __init__(self, fd: int, run_size: int) -> None:
        self.fd = fd
        self._run_size = run_size
        self._spare_page: mmap.mmap | None = None

    def _call(self, request: int, argument: Any = 0) -> int:
        return call(self.fd, request, argument, subject="the VM")

    def check_extension(self, capability: abi.Cap) -> int:
        """As Kvm.check_extension, for this VM."""
        return self._call(abi.KVM_CHECK_EXTENSION, int(capability))

    def set_memory_region(self, slot: int, guest_address: int, size: int, host_address: int, flags: int = 0) -> None:
        """Gives the guest `size` bytes at `guest_address`, backed by `host_address` (4.35). Size 0 deletes the slot."""
        self._call(
            abi.KVM_SET_USER_MEMORY_REGION,
            abi.kvm_userspace_memory_region(slot, flags, guest_address, size, host_address),
        )

    def set_memory_regions(self, regions: Iterable[tuple[int, int, int]]) -> None:
        """One slot for each (guest address, size, host address), from slot 0 on: GuestMemory.regions."""
        for slot, (guest_address, size, host_address) in enumerate(regions):
            self.set_memory_region(slot, guest_address, size, host_address)

    def forget_translations(self) -> None:
        """Has every vCPU, running or not, drop what KVM made of any page table: a slot is added and deleted (rule 8 of
        docs/backends.md). For pages whose tables the VMM wrote behind KVM's back. One thread at a time."""
        if self._spare_page is None:
            self._spare_page = mmap.mmap(-1, mmap.PAGESIZE)
        slot = self.check_extension(abi.Cap.NR_MEMSLOTS) - 1
        host_address = addressof(c_char.from_buffer(self._spare_page))
        self.set_memory_region(slot, SPARE_ADDRESS, mmap.PAGESIZE, host_address)
        self.set_memory_region(slot, SPARE_ADDRESS, 0, host_address)

    def set_tss_address(self, address: int = TSS_ADDRESS) -> None:
        """Where VMX may keep its three pages (4.41)."""
        call_with_address(self.fd, abi.KVM_SET_TSS_ADDR, address, subject="the VM")

    def create_irqchip(self) -> None:
        """Two i8259, an IOAPIC, and a local APIC for every vCPU made after, in the kernel (4.24)."""
        self._call(abi.KVM_CREATE_IRQCHIP)

    def create_pit(self) -> None:
        """An i8254 in the kernel (4.71); needs the irqchip."""
        self._call(abi.KVM_CREATE_PIT2, abi.kvm_pit_config())

    def irq_line(self, gsi: int, level: bool) -> None:
        """Sets an interrupt line high or low (4.25)."""
        try:
            ioctl(self.fd, abi.KVM_IRQ_LINE, _LEVELS[gsi, level])
        except OSError as error:
            raise explain(abi.KVM_IRQ_LINE, error.errno or 0, f"line {gsi}") from error

    def irqfd(self, gsi: int, fd: int) -> None:
        """Every signal of eventfd `fd` is an edge on `gsi` (4.75)."""
        self._call(abi.KVM_IRQFD, abi.kvm_irqfd(fd=fd, gsi=gsi))

    def ioeventfd(self, fd: int, address: int, length: int, datamatch: int | None = None) -> None:
        """A guest MMIO write of `length` bytes to `address` signals eventfd `fd` instead of exiting (4.59)."""
        flags = 0 if datamatch is None else abi.KVM_IOEVENTFD_FLAG_DATAMATCH
        self._call(
            abi.KVM_IOEVENTFD,
            abi.kvm_ioeventfd(datamatch=datamatch or 0, addr=address, len=length, fd=fd, flags=flags),
        )

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """A vCPU; its id is its APIC id (4.7)."""
        return Vcpu(self._call(abi.KVM_CREATE_VCPU, vcpu_id), vcpu_id, self._run_size)

    def close(self) -> None:
        """Lets go of the VM; the kernel frees it when its vCPUs are closed too, in the background."""
        if self.fd >= 0:
            close_soon(self.fd)
            self.fd = -1
