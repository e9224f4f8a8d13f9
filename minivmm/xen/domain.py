"""What the hypervisor knows of one domain."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from minivmm.boot.xen_image import XenImage
from minivmm.outcome import EndOfRun
from minivmm.tail import Tail
from minivmm.tally import Tally
from minivmm.xen.builder import StartOfDay
from minivmm.xen.console import ConsoleRing
from minivmm.xen.store_ring import StoreConnection

if TYPE_CHECKING:
    from minivmm.deprivileged.events import Event
    from minivmm.xen.pit import Ports
    from minivmm.xen.vcpu import VirtualCpu

CONSOLE_LIMIT = 1 << 20  # bytes of console output kept


class Domain:
    """A domain and its bookkeeping. `shared_info` is a machine address."""

    def __init__(self, domid: int, name: str, kernel: XenImage, shared_info: int, max_pages: int) -> None:
        self.domid = domid
        self.name = name
        self.kernel = kernel
        self.shared_info = shared_info
        self.max_pages = max_pages
        self.mfns: list[int] = []
        """The frames it began with, by pfn."""
        self.held_mfns: list[int] = []
        """Frames the hypervisor writes to for as long as the domain lives: writable ones they stay."""
        self.start: StartOfDay
        self.vcpus: list[VirtualCpu] = []
        self.ports: Ports
        self.console_ring: ConsoleRing
        self.store_connection: StoreConnection
        self.console_port = self.store_port = 0

        self.output = Tail(CONSOLE_LIMIT)
        self.sink: Callable[[bytes], None] | None = None
        self.hypercalls: Counter[str] = Counter()
        """Calls made, by name."""
        self.unknown_hypercalls = Tally()
        """Calls that are not there, as "unknown N"."""
        self.refused = Tally()
        """Why calls failed."""
        self.traps_taken: Counter[int] = Counter()
        """Exceptions of the domain, by vector, whoever answered them."""
        self.exits: Counter[str] = Counter()
        """Why it left ring 3, by name."""
        self.watch: Callable[[VirtualCpu, Callable[[], Event]], Event] | None = None
        """For a trace: called in place of what runs a vCPU to its next event, which it is given and has to call. On the
        vCPU's thread, without the lock. Set before the domain starts."""
        self.vm_assist: set[int] = set()
        """VmAssistType, enabled."""
        self.polling = 0
        """How many of its vCPUs sleep on ports."""
        self.paused = False
        self.end: EndOfRun | None = None
        self.dump = ""
        """What a person wants to see of its crash (crash.py)."""
        self.registers: dict[str, int] = {}
        self.started = self.stopped = 0
        """System time, ns."""
        self.threads: list[threading.Thread] = []
        self.handle = uuid.uuid4().bytes
        """XENVER_guest_handle."""

    def write_output(self, data: bytes) -> None:
        """What it says on its console."""
        self.output.write(data)
        if self.sink is not None:
            self.sink(data)

    def finish(self, end: EndOfRun) -> None:
        """Ends it, unless it has ended already: every vCPU stops soon."""
        if self.end is None:
            # A new one: a raised one's traceback holds frames, and with them the view of a vCPU's registers.
            self.end = EndOfRun(end.outcome, end.detail, end.code)
        for vcpu in self.vcpus:
            vcpu.wake()

    def statistics(self) -> dict[str, int]:
        """Hypercalls by name, and what else took it out of ring 3."""
        counts = dict(self.hypercalls) | dict(self.unknown_hypercalls)
        return counts | {f"trap {vector}": count for vector, count in dict(self.traps_taken).items()} | dict(self.exits)
