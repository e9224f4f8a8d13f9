"""What the hypervisor knows of one domain."""

from __future__ import annotations

from collections import Counter

from minivmm.boot.xen_image import XenImage
from minivmm.memory import GuestMemory
from minivmm.outcome import EndOfRun
from minivmm.xen.builder import StartOfDay
from minivmm.xen.guest_pointer import GuestPointers
from minivmm.xen.page_tables import PageTables

CONSOLE_LIMIT = 1 << 20  # bytes of console output kept


class Domain:
    """A domain and its bookkeeping. `pages` reaches its memory by virtual address, `tables` its page tables."""

    def __init__(
        self, domid: int, kernel: XenImage, start: StartOfDay, memory: GuestMemory, mfns: list[int], tables: PageTables
    ) -> None:
        self.domid = domid
        self.kernel = kernel
        self.start = start
        self.mfns = mfns
        self.tables = tables
        self.pages = GuestPointers(memory)
        self.pages.root = start.registers.cr3
        self.console = bytearray()
        self.hypercalls: Counter[str] = Counter()
        """Calls made, by name; those that are not there as "unknown N"."""
        self.refused: Counter[str] = Counter()
        """Why calls failed."""
        self.end: EndOfRun | None = None
        """Set when the domain has shut itself down."""

    def write_console(self, data: bytes) -> None:
        """Output of the domain: the last CONSOLE_LIMIT bytes are kept."""
        self.console += data
        if len(self.console) > 2 * CONSOLE_LIMIT:
            del self.console[:-CONSOLE_LIMIT]
