"""virtio-console (virtio 1.2, 5.3) with one port: bytes both ways, and the size of the terminal."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from minivmm.layout import Layout
from minivmm.virtio.device import Chain, QueueSpec, VirtioDevice

F_SIZE = 1 << 0  # cols and rows are valid (5.3.3)

RECEIVEQ = 0  # port0's queues (5.3.2)
TRANSMITQ = 1

MAX_PENDING = 64 << 10  # input kept for a driver that does not fetch it
MAX_TRANSMIT = 1 << 20  # bytes in one transmit request: far beyond what drivers send, and a bound on what is copied


class ConsoleConfig(NamedTuple):
    """struct virtio_console_config (5.3.4). max_nr_ports and emerg_wr belong to features that are not offered."""

    cols: int
    rows: int
    max_nr_ports: int
    emerg_wr: int


CONSOLE_CONFIG = Layout("<HHII", ConsoleConfig)


class Console(VirtioDevice):
    """A console whose output goes to `output`, and whose input comes through `feed`.

    `output` is called with the guest's bytes on the thread that serves the kick, under the device's lock: it should be
    quick, and must not wait for a vCPU.
    """

    device_type = 3
    queues = (QueueSpec("receiveq", max_size=256), QueueSpec("transmitq", max_size=256))

    def __init__(self, output: Callable[[bytes], None], *, cols: int = 80, rows: int = 25) -> None:
        super().__init__(features=F_SIZE, config=CONSOLE_CONFIG.pack(ConsoleConfig(cols, rows, 1, 0)))
        self._output = output
        self._pending = bytearray()
        self._pending_lock = threading.Lock()  # innermost: nothing is called while it is held

    def feed(self, data: bytes) -> int:
        """Input for the guest, from any thread. Returns how many bytes were taken: not all when it does not read.

        It waits for a driver, also across a reset: a driver's first act is to reset the device.
        """
        with self._pending_lock:
            taken = data[: MAX_PENDING - len(self._pending)]
            self._pending += taken
        self.wake(RECEIVEQ)
        return len(taken)

    def resize(self, cols: int, rows: int) -> None:
        """The terminal has another size, in characters: tells the driver (5.3.5)."""
        CONSOLE_CONFIG.pack_into(self.config, 0, ConsoleConfig(cols, rows, 1, 0))
        self.config_changed()

    def handle_receiveq(self, chain: Chain) -> int | None:
        """Fills one buffer with pending input; leaves it available while there is none."""
        with self._pending_lock:
            if not self._pending:
                return None
            written = chain.scatter(self._pending)
            del self._pending[:written]
            return written

    def handle_transmitq(self, chain: Chain) -> int:
        """Hands the driver's bytes out. Nothing is written into the chain."""
        self._output(chain.gather(MAX_TRANSMIT))
        return 0
