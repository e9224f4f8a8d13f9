"""The console of a domain (io/console.h, struct xencons_interface): two byte rings in a page of its own.

The domain's indices are its own business: one that cannot be empties the ring at the place it names, so a kernel that
starts again with fresh indices has a console again and one that writes nonsense only loses its own characters.
Calls are serialised by the caller.
"""

from __future__ import annotations

from collections.abc import Callable

from minivmm.memory import GuestMemory
from minivmm.xen.abi import XenconsInterface
from minivmm.xen.byte_ring import RingIndexError, RingReader, RingWriter

IN_SIZE = XenconsInterface.OUT - XenconsInterface.IN
OUT_SIZE = XenconsInterface.IN_CONS - XenconsInterface.OUT
INPUT_LIMIT = 64 << 10  # bytes typed ahead of a domain that does not read


class ConsoleRing:
    """One domain's console. `page` is the machine address of its page, `output` gets what the domain writes, `notify`
    raises its event channel."""

    def __init__(
        self, memory: GuestMemory, page: int, output: Callable[[bytes], None], notify: Callable[[], None]
    ) -> None:
        indices = XenconsInterface
        self._out = RingReader(memory, page + indices.OUT, OUT_SIZE, page + indices.OUT_CONS, page + indices.OUT_PROD)
        self._in = RingWriter(memory, page + indices.IN, IN_SIZE, page + indices.IN_PROD, page + indices.IN_CONS)
        self._output = output
        self._notify = notify
        self._waiting = bytearray()
        self.dropped = 0  # bytes of input beyond INPUT_LIMIT
        self.restarts = 0  # times the domain's indices could not be

    @property
    def waiting(self) -> int:
        """Bytes of input for which the ring has had no room yet."""
        return len(self._waiting)

    def take(self) -> int:
        """The domain has sent an event: reads what it wrote, gives it input it now has room for. Returns bytes read."""
        try:
            data = self._out.take()
        except RingIndexError:
            self._out.restart()
            self.restarts += 1
            data = b""
        if data:
            self._output(data)
        # A writer that found the ring full waits for this event, a reader for the other's.
        if self._feed() or data:
            self._notify()
        return len(data)

    def send(self, data: bytes) -> None:
        """Input for the domain: what does not fit in the ring waits here, up to INPUT_LIMIT; the rest is counted in
        `dropped`."""
        taken = data[: INPUT_LIMIT - len(self._waiting)]
        self.dropped += len(data) - len(taken)
        self._waiting += taken
        if self._feed():
            self._notify()

    def _feed(self) -> int:
        """Moves waiting input into the ring; returns how many bytes. None into one that restarts: the next call's."""
        if not self._waiting:
            return 0
        try:
            fed = self._in.put(self._waiting)
        except RingIndexError:
            self._in.restart()
            self.restarts += 1
            return 0
        del self._waiting[:fed]
        return fed
