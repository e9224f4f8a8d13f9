"""The virtio-mmio transport, version 2 (virtio 1.2, 4.2): the registers a driver sees, in front of any VirtioDevice.

Every rule of the specification about the order of things is enforced here: what comes in the wrong order is ignored
and leaves a line in `faults`; what breaks a queue sets DEVICE_NEEDS_RESET, tells the driver by a configuration change
interrupt, and leaves a line too. A guest cannot make anything here raise.

Threads: one lock a device. vCPUs, an ioeventfd thread and a device's own input thread may all come in at once.
The interrupt callback is called with the lock held, and must not wait for a vCPU.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag
from typing import NamedTuple

from minivmm.errors import DriverError, GuestError
from minivmm.memory import GuestMemory
from minivmm.virtio.device import RING_EVENT_IDX, RING_FEATURES, RING_INDIRECT_DESC, VERSION_1, VirtioDevice
from minivmm.virtio.queue import QueueAddresses, Virtqueue

REGION_SIZE = 0x200  # bytes a device takes in guest-physical space: registers, then configuration space at CONFIG
CONFIG = 0x100

MAGIC = 0x74726976  # "virt"
VERSION = 2  # 1 is the legacy interface
VENDOR_ID = 0x006B7476  # "vtk": 4.2.2 leaves the value to the implementer

QUEUE_NOTIFY = 0x050
"""Offset of QueueNotify: the machine may bind an ioeventfd to it (32-bit, datamatch = queue index)."""
_INTERRUPT_STATUS = 0x060

USED_BUFFER = 1  # InterruptStatus (4.2.2)
CONFIG_CHANGE = 2

MAX_FAULTS = 32  # the newest are kept; a guest that breaks rules in a loop costs no memory
RESUME_PAUSE = 0.0005  # seconds between two bounded drains, for whoever waits for the lock

_U32 = 0xFFFF_FFFF


class Status(IntFlag):
    """Device status field (virtio 1.2, 2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


# 3.1.1: each bit may be set only when the one before it is.
_PRECONDITION = {
    Status.DRIVER: Status.ACKNOWLEDGE,
    Status.FEATURES_OK: Status.DRIVER,
    Status.DRIVER_OK: Status.FEATURES_OK,
}
# Plain numbers for what every notification tests: an IntFlag costs the hot path a microsecond a test.
_DRIVER_OK = int(Status.DRIVER_OK)
_LIVE_BITS = int(Status.DRIVER_OK | Status.DEVICE_NEEDS_RESET | Status.FAILED)
_DRIVER_BITS = int(Status.ACKNOWLEDGE | Status.DRIVER | Status.DRIVER_OK | Status.FEATURES_OK | Status.FAILED)


@dataclass(slots=True)
class QueueSetup:
    """What the driver has told of one queue; `ring` is there while QueueReady reads 1."""

    max_size: int
    size: int
    descriptor: int = 0
    driver: int = 0
    device: int = 0
    ring: Virtqueue | None = None


class VirtioMmio:
    """One device in its 0x200-byte window. A PioOrMmioDevice for the bus, `notify` for an ioeventfd thread.

    `interrupt` raises the device's edge interrupt line. `resume(queue)`, when given, is called when a drain of that
    queue stopped at its bound: it must see to it that `notify(queue)` is called again soon, from another thread
    (signalling the queue's own ioeventfd does). Without it a thread of the transport's does that, and is gone when
    the queue is empty.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        interrupt: Callable[[], None],
        *,
        resume: Callable[[int], None] | None = None,
    ) -> None:
        self.device = device
        self.faults: deque[str] = deque(maxlen=MAX_FAULTS)
        """What the driver did wrong, newest last."""
        self._memory = memory
        self._interrupt = interrupt
        self._resume = resume if resume is not None else self._resume_in_thread
        self._resuming: dict[int, threading.Thread] = {}
        self._handlers = device.handlers()
        self._offered = device.features | RING_FEATURES
        self._lock = threading.RLock()
        self._closed = False
        self._generation = 0
        self._clear()
        device.wake = self._serve
        device.config_changed = self._config_changed

    def _clear(self) -> None:
        """The state after reset (2.1, 4.2.2.1)."""
        self._status = 0
        self._interrupt_status = 0
        self._device_features_sel = 0
        self._driver_features_sel = 0
        self._driver_features = 0
        self._queue_sel = 0
        self._queues = [QueueSetup(spec.max_size, spec.max_size) for spec in self.device.queues]

    # --- the bus's side -------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """The register or configuration bytes at `offset`; 0 for anything that is not there (4.2.2.2)."""
        if offset == _INTERRUPT_STATUS and size == 4:
            return self._interrupt_status
        with self._lock:
            if offset >= CONFIG:
                at = offset - CONFIG
                return int.from_bytes(self.device.config[at : at + size], "little")
            register = _REGISTERS.get(offset)
            if register is None or register.read is None or size != 4:
                return 0
            return register.read(self) & _U32

    def write(self, offset: int, size: int, value: int) -> None:
        """Stores to a register; ignored where there is none, or where the access is not 32 bits wide (4.2.2.2)."""
        if offset == QUEUE_NOTIFY and size == 4:
            self._serve(value)
            return
        with self._lock:
            if offset >= CONFIG:
                self._write_config(offset - CONFIG, size, value)
                return
            register = _REGISTERS.get(offset)
            if register is not None and register.write is not None and size == 4:
                register.write(self, value & _U32)

    def notify(self, queue_index: int) -> bool:
        """Serves a queue the driver kicked, within the bounds of Virtqueue.drain. On any thread.

        Returns True when there may be more: the caller (an ioeventfd's thread) calls again, after letting others in.
        A kick of a queue that is not there, not ready, or of a device that is not live is ignored.
        """
        with self._lock:
            if not self.live or not 0 <= queue_index < len(self._queues):
                return False
            ring = self._queues[queue_index].ring
            if ring is None:
                return False
            more = False
            try:
                try:
                    more = ring.drain(self._handlers[queue_index])
                finally:
                    # Also what was finished before a fault is announced.
                    if ring.wants_interrupt():
                        self._interrupt_status |= USED_BUFFER
                        self._interrupt()
            except GuestError as error:
                self._break(f"queue {self.device.queues[queue_index].name}: {error.message}")
            return more

    def _serve(self, queue_index: int) -> None:
        """`notify`, and what is left over is served from elsewhere: the caller is a vCPU or a device's own thread."""
        if self.notify(queue_index):
            self._resume(queue_index)

    @property
    def live(self) -> bool:
        """Whether the device serves its queues: DRIVER_OK is set, and nothing is broken."""
        return self._status & _LIVE_BITS == _DRIVER_OK

    def close(self) -> None:
        """Stops serving, waits for the transport's own threads, and closes the device. May be called again."""
        with self._lock:
            self._closed = True
            self._clear()  # and with the rings their views, or the memory could not be unmapped
            resuming = list(self._resuming.values())
        for thread in resuming:
            thread.join()
        self.device.close()

    # --- the device's side ----------------------------------------------------------------------------------------

    def _config_changed(self) -> None:
        """The device changed its configuration space (2.5.2: the generation moves, so that no torn value is used)."""
        with self._lock:
            self._generation = (self._generation + 1) & _U32
            if self.live:
                self._interrupt_status |= CONFIG_CHANGE
                self._interrupt()

    def _resume_in_thread(self, queue_index: int) -> None:
        """Goes on with a queue whose drain stopped at its bound, on a thread that ends when the queue is empty."""
        with self._lock:
            if queue_index in self._resuming or self._closed:
                return
            name = f"virtio-{self.device.queues[queue_index].name}"
            thread = threading.Thread(target=self._drain_rest, args=(queue_index,), name=name, daemon=True)
            self._resuming[queue_index] = thread
            thread.start()

    def _drain_rest(self, queue_index: int) -> None:
        try:
            while True:
                with self._lock:
                    if self._closed or not self.notify(queue_index):
                        # Under the same lock: a kick that left something before was seen to, one after starts anew.
                        del self._resuming[queue_index]
                        return
                time.sleep(RESUME_PAUSE)
        except BaseException:
            self._resuming.pop(queue_index, None)
            raise

    def _fault(self, reason: str) -> None:
        self.faults.append(reason)

    def _break(self, reason: str) -> None:
        """The driver broke the protocol: nothing is served until it resets the device (2.1.2)."""
        self._fault(reason)
        was_running = self._status & Status.DRIVER_OK
        self._status |= int(Status.DEVICE_NEEDS_RESET)
        if was_running:
            self._interrupt_status |= CONFIG_CHANGE
            self._interrupt()

    # --- registers ------------------------------------------------------------------------------------------------

    def _read_device_features(self) -> int:
        sel = self._device_features_sel
        return self._offered >> (32 * sel) if sel < 4 else 0

    def _write_device_features_sel(self, value: int) -> None:
        self._device_features_sel = value

    def _write_driver_features(self, value: int) -> None:
        if self._status & Status.FEATURES_OK or not self._status & Status.DRIVER:
            self._fault("DriverFeatures written outside feature negotiation (virtio 1.2, 3.1.1): ignored")
            return
        sel = self._driver_features_sel
        if sel < 4:
            shift = 32 * sel
            self._driver_features = self._driver_features & ~(_U32 << shift) | value << shift
        elif value:
            # No device offers those: keep a bit that is never offered, so that FEATURES_OK is refused.
            self._driver_features |= 1 << 128

    def _write_driver_features_sel(self, value: int) -> None:
        self._driver_features_sel = value

    def _read_status(self) -> int:
        return self._status

    def _write_status(self, value: int) -> None:
        if self._closed:
            return
        if value == 0:
            self._clear()
            self.device.reset()
            return
        old = self._status
        wanted = int(value & _DRIVER_BITS)
        if old & _DRIVER_BITS & ~wanted:
            self._fault(f"Status {value:#x} clears bits of {old:#x} (virtio 1.2, 2.1.1): ignored")
            return
        for bit, before in _PRECONDITION.items():
            if not wanted & bit or old & bit:
                continue
            if not wanted & before:
                self._fault(f"{bit.name} without {before.name} (virtio 1.2, 3.1.1): ignored")
                wanted &= ~bit.value
            elif bit is Status.FEATURES_OK and not self._features_fit():
                wanted &= ~bit.value
        self._status = old | wanted
        if wanted & ~old & Status.FEATURES_OK:
            self.device.negotiated(self._driver_features)

    def _features_fit(self) -> bool:
        """Whether FEATURES_OK can be granted (2.2.2, 6.2); the driver reads Status back to learn it."""
        not_offered = self._driver_features & ~self._offered
        if not_offered:
            self._fault(f"the driver accepted features {not_offered:#x}, which were not offered: FEATURES_OK refused")
        elif not self._driver_features & VERSION_1:
            self._fault("the driver did not accept VIRTIO_F_VERSION_1: FEATURES_OK refused")
        else:
            return True
        return False

    def _write_queue_sel(self, value: int) -> None:
        self._queue_sel = value

    @property
    def _queue(self) -> QueueSetup | None:
        """The queue QueueSel selects; None (QueueNumMax reads 0) when the device has no such queue."""
        return self._queues[self._queue_sel] if self._queue_sel < len(self._queues) else None

    def _read_queue_num_max(self) -> int:
        return self._queue.max_size if self._queue else 0

    def _configurable(self) -> QueueSetup | None:
        """The selected queue, when its registers may be written now (4.2.2.2: not while it is ready)."""
        queue = self._queue
        if queue is not None and queue.ring is not None:
            self._fault(f"queue {self._queue_sel} was changed while ready (virtio 1.2, 4.2.2.2): ignored")
            return None
        return queue

    def _write_queue_num(self, value: int) -> None:
        queue = self._configurable()
        if queue is not None:
            queue.size = value

    def _write_queue_address(self, area: str, shift: int, value: int) -> None:
        queue = self._configurable()
        if queue is not None:
            address: int = getattr(queue, area)
            setattr(queue, area, address & ~(_U32 << shift) | value << shift)

    def _read_queue_ready(self) -> int:
        return int(self._queue is not None and self._queue.ring is not None)

    def _write_queue_ready(self, value: int) -> None:
        queue = self._queue
        if queue is None or value > 1:
            return
        if value == 0:
            queue.ring = None
            return
        if queue.ring is not None:
            return
        if not self._status & Status.FEATURES_OK:
            self._fault("QueueReady before FEATURES_OK (virtio 1.2, 3.1.1): ignored")
            return
        try:
            queue.ring = Virtqueue(
                self._memory,
                queue.size,
                QueueAddresses(queue.descriptor, queue.driver, queue.device),
                max_size=queue.max_size,
                indirect=bool(self._driver_features & RING_INDIRECT_DESC),
                event_idx=bool(self._driver_features & RING_EVENT_IDX),
            )
        except DriverError as error:
            self._break(f"queue {self.device.queues[self._queue_sel].name}: {error.message}")

    def _read_interrupt_status(self) -> int:
        return self._interrupt_status

    def _write_interrupt_ack(self, value: int) -> None:
        self._interrupt_status &= ~value

    def _read_no_shared_memory(self) -> int:
        return _U32  # 4.2.2: a region that does not exist has length (and base) of all ones

    def _read_config_generation(self) -> int:
        return self._generation

    def _write_config(self, offset: int, size: int, value: int) -> None:
        if size in (1, 2, 4, 8) and offset + size <= len(self.device.config):
            self.device.write_config(offset, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))


class Register(NamedTuple):
    """One register: what reading and writing it does; None where the driver may not."""

    name: str
    read: Callable[[VirtioMmio], int] | None = None
    write: Callable[[VirtioMmio, int], None] | None = None


def _address(area: str, shift: int) -> Callable[[VirtioMmio, int], None]:
    """A writer of one half of a queue address."""
    return lambda mmio, value: mmio._write_queue_address(area, shift, value)


_M = VirtioMmio
_REGISTERS: dict[int, Register] = {  # virtio 1.2, 4.2.2, table 4.1
    0x000: Register("MagicValue", lambda _: MAGIC),
    0x004: Register("Version", lambda _: VERSION),
    0x008: Register("DeviceID", lambda mmio: mmio.device.device_type),
    0x00C: Register("VendorID", lambda _: VENDOR_ID),
    0x010: Register("DeviceFeatures", _M._read_device_features),
    0x014: Register("DeviceFeaturesSel", None, _M._write_device_features_sel),
    0x020: Register("DriverFeatures", None, _M._write_driver_features),
    0x024: Register("DriverFeaturesSel", None, _M._write_driver_features_sel),
    0x030: Register("QueueSel", None, _M._write_queue_sel),
    0x034: Register("QueueNumMax", _M._read_queue_num_max),
    0x038: Register("QueueNum", None, _M._write_queue_num),
    0x044: Register("QueueReady", _M._read_queue_ready, _M._write_queue_ready),
    # 0x050 QueueNotify: in `write`, first, because it is the one that is written all the time
    _INTERRUPT_STATUS: Register("InterruptStatus", _M._read_interrupt_status),
    0x064: Register("InterruptACK", None, _M._write_interrupt_ack),
    0x070: Register("Status", _M._read_status, _M._write_status),
    0x080: Register("QueueDescLow", None, _address("descriptor", 0)),
    0x084: Register("QueueDescHigh", None, _address("descriptor", 32)),
    0x090: Register("QueueDriverLow", None, _address("driver", 0)),
    0x094: Register("QueueDriverHigh", None, _address("driver", 32)),
    0x0A0: Register("QueueDeviceLow", None, _address("device", 0)),
    0x0A4: Register("QueueDeviceHigh", None, _address("device", 32)),
    0x0B0: Register("SHMLenLow", _M._read_no_shared_memory),
    0x0B4: Register("SHMLenHigh", _M._read_no_shared_memory),
    0x0B8: Register("SHMBaseLow", _M._read_no_shared_memory),
    0x0BC: Register("SHMBaseHigh", _M._read_no_shared_memory),
    # 0x0c0 QueueReset: only with VIRTIO_F_RING_RESET, which is not offered
    0x0FC: Register("ConfigGeneration", _M._read_config_generation),
}
_OFFSETS = {register.name: offset for offset, register in _REGISTERS.items()} | {"QueueNotify": QUEUE_NOTIFY}


def register_offset(name: str) -> int:
    """The offset of a register by its name in the specification. Raises KeyError."""
    return _OFFSETS[name]
