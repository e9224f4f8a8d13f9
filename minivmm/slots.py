"""The eight virtio-mmio slots of the machine: where a device sits, which line it raises, and who carries its kicks.

Two ways for a driver's notification to reach the device (measured against each other by the benchmark `notify`):

    inline     the kick exits to user space and the vCPU's thread serves the queue before the guest goes on. A driver
               that looks at its used ring after the kick finds its request done, and takes no interrupt.
    ioeventfd  the kick signals an eventfd in the kernel and the guest goes on at once; a thread of ours serves the
               queue and raises the interrupt through an irqfd.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

from minivmm.bus import Bus
from minivmm.errors import ConfigError
from minivmm.kvm.vm import Vm
from minivmm.memory import GuestMemory
from minivmm.virtio.block import Block, Disk
from minivmm.virtio.console import Console
from minivmm.virtio.device import VirtioDevice
from minivmm.virtio.entropy import Entropy
from minivmm.virtio.mmio import QUEUE_NOTIFY, REGION_SIZE, VirtioMmio

BASE = 0xFEB00000
SLOTS = 8
FIRST_IRQ = 5

INLINE, IOEVENTFD = "inline", "ioeventfd"


class VirtioSlots:
    """Puts virtio devices on `bus`, the first in the highest slot as QEMU's microvm does."""

    def __init__(self, memory: GuestMemory, bus: Bus, vm: Vm, *, notify: str = INLINE) -> None:
        if notify not in (INLINE, IOEVENTFD):
            raise ConfigError(f"no such way to notify: {notify!r}", cause=f"known are {INLINE} and {IOEVENTFD}")
        self.announcements: list[str] = []
        """What tells the guest of the devices, in Linux's form: "virtio_mmio.device=512@0xfeb00e00:12"."""
        self.devices: list[VirtioMmio] = []
        self.console: Console | None = None
        self._memory, self._bus, self._vm = memory, bus, vm
        self._events = Notifications() if notify == IOEVENTFD else None
        self._eventfds: list[int] = []

    def add_disk(self, disk: Disk) -> None:
        """A virtio-blk device on a raw file. Raises ImageError for a file that cannot be one."""
        self._add(Block(disk))

    def add_console(self, output: Callable[[bytes], None]) -> None:
        """A virtio-console whose output goes to `output`."""
        self.console = Console(output)
        self._add(self.console)

    def add_entropy(self) -> None:
        """A virtio-rng."""
        self._add(Entropy())

    def _add(self, device: VirtioDevice) -> None:
        slot = SLOTS - 1 - len(self.devices)
        if slot < 0:
            device.close()
            raise ConfigError(f"more than {SLOTS} virtio devices do not fit the machine")
        address, irq = BASE + slot * REGION_SIZE, FIRST_IRQ + slot
        if self._events is None:
            transport = VirtioMmio(device, self._memory, self._pulse(irq))
        else:
            transport = self._with_eventfds(device, address, irq, self._events)
        self._bus.add_mmio(address, REGION_SIZE, transport)
        self.devices.append(transport)
        self.announcements.append(f"virtio_mmio.device={REGION_SIZE}@{address:#x}:{irq}")

    def _pulse(self, irq: int) -> Callable[[], None]:
        """An edge on a line: KVM_IRQ_LINE twice, done when it returns, where an irqfd goes by way of a work queue."""
        line = self._vm.irq_line

        def pulse() -> None:
            line(irq, True)
            line(irq, False)

        return pulse

    def _with_eventfds(self, device: VirtioDevice, address: int, irq: int, events: Notifications) -> VirtioMmio:
        """The transport of `device` with an irqfd for its line and an ioeventfd for each queue's kicks."""
        interrupt = self._eventfd()
        self._vm.irqfd(irq, interrupt)
        kicks = [self._eventfd() for _ in device.queues]
        transport = VirtioMmio(
            device,
            self._memory,
            lambda: os.eventfd_write(interrupt, 1),
            resume=lambda queue: os.eventfd_write(kicks[queue], 1),
        )
        for queue, kick in enumerate(kicks):
            self._vm.ioeventfd(kick, address + QUEUE_NOTIFY, 4, datamatch=queue)
            events.add(kick, transport, queue)
        return transport

    def _eventfd(self) -> int:
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._eventfds.append(fd)
        return fd

    @property
    def faults(self) -> list[str]:
        """What drivers did wrong, over all devices."""
        return [f"{type(slot.device).__name__.lower()}: {fault}" for slot in self.devices for fault in slot.faults]

    def start(self) -> None:
        """Starts serving eventfds, where there are any."""
        if self._events is not None:
            self._events.start()

    def close(self) -> None:
        """Stops serving and closes every device."""
        if self._events is not None:
            self._events.close()
        for transport in self.devices:
            transport.close()
        for fd in self._eventfds:
            os.close(fd)
        self._eventfds.clear()


class Notifications(threading.Thread):
    """The thread that waits for ioeventfds and has the transports serve their queues."""

    def __init__(self) -> None:
        super().__init__(name="virtio", daemon=True)
        self._epoll = select.epoll()
        self._queues: dict[int, tuple[VirtioMmio, int]] = {}
        self._quit = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._quit, select.EPOLLIN)

    def add(self, fd: int, transport: VirtioMmio, queue: int) -> None:
        """From now on a signal of `fd` is a kick of `queue`."""
        self._queues[fd] = (transport, queue)
        self._epoll.register(fd, select.EPOLLIN)

    def run(self) -> None:
        """Serves kicks until closed. A queue that stopped at its bound signals itself again."""
        queues, read, poll = self._queues, os.eventfd_read, self._epoll.poll
        while True:
            for fd, _ in poll():
                if fd == self._quit:
                    return
                read(fd)
                transport, queue = queues[fd]
                if transport.notify(queue):
                    os.eventfd_write(fd, 1)

    def close(self) -> None:
        """Ends the thread and waits for it."""
        os.eventfd_write(self._quit, 1)
        if self.ident is not None:
            self.join()
        self._epoll.close()
        os.close(self._quit)
