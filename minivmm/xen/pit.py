"""The I/O ports of a PV domain: channel 2 of the PIT and its gate, by which kernels measure the TSC; nothing else.

Intel 8254 data sheet, and the PC's port B. As in Xen, the channel has its gate and output in port 0x61 and interrupts
nobody. Without it Linux reads the counter 100,000 times before it gives up.
"""

from __future__ import annotations

from collections.abc import Callable

PIT_HZ = 1_193_182
CHANNEL_2, CONTROL, PORT_B = 0x42, 0x43, 0x61

GATE_2, SPEAKER, REFRESH, OUT_2 = 1 << 0, 1 << 1, 1 << 4, 1 << 5  # of port B
REFRESH_NS = 15_085  # REFRESH toggles this often

LOW, HIGH, BOTH = 1, 2, 3  # which bytes of the counter an access takes (control word, RW1 and RW0)
LATCH = 0
READ_BACK = 3  # as a channel
ONE_SHOT, RATE, SQUARE, STROBE = 1, 2, 3, 5  # modes 0 and 4 go on when the gate opens, 1 and 5 start anew


class Channel:
    """One counter, in binary. What it shows follows from the time and from when it was last loaded."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self.gate = False
        self._mode = 0
        self._access = BOTH
        self._count = 0x10000  # a count of 0 is 65536
        self._ticks = 0  # counted before the gate last opened
        self._since: int | None = None  # ns: when counting last began, None while it stands
        self._low: int | None = None  # of a count being written, its low byte
        self._high_next = False  # of a count being read, the low byte has been
        self._latched: int | None = None

    def control(self, access: int, mode: int) -> None:
        """The control word, for this channel."""
        if access == LATCH:
            if self._latched is None:
                self._latched = self.counter
            return
        self._access, self._mode = access, mode & 3 if mode > STROBE else mode  # modes 6 and 7 are 2 and 3
        self._low, self._high_next, self._latched = None, False, None
        self._ticks, self._since = 0, None  # OUT is at its start, and nothing is counted until a count is written

    def write(self, value: int) -> None:
        """One byte of the count."""
        if self._access == BOTH and self._low is None:
            self._low = value
            if self._mode == 0:
                self._since = None  # counting stops between the bytes
            return
        count = value if self._access == LOW else value << 8 | (self._low or 0)
        self._low = None
        self._count = count or 0x10000
        if self._mode not in (ONE_SHOT, STROBE):  # these wait for their gate
            self._ticks, self._since = 0, self._clock_ns() if self.gate else None

    def read(self) -> int:
        """One byte of the counter, or of what was latched."""
        counter = self.counter if self._latched is None else self._latched
        high = self._access == HIGH or (self._access == BOTH and self._high_next)
        if self._access == BOTH:
            self._high_next = not self._high_next
        if not self._high_next:
            self._latched = None
        return counter >> 8 & 0xFF if high else counter & 0xFF

    def set_gate(self, gate: bool) -> None:
        """The gate's new level: counting pauses, goes on or starts anew."""
        if gate == self.gate:
            return
        self.gate = gate
        if not gate:
            if self._mode not in (ONE_SHOT, STROBE):
                self._ticks, self._since = self.elapsed, None
        elif self._mode in (0, STROBE - 1):
            self._since = self._clock_ns()
        else:
            self._ticks, self._since = 0, self._clock_ns()

    @property
    def elapsed(self) -> int:
        """Ticks counted since the count was loaded."""
        if self._since is None:
            return self._ticks
        return self._ticks + (self._clock_ns() - self._since) * PIT_HZ // 1_000_000_000

    @property
    def counter(self) -> int:
        """What the counting element holds."""
        if self._mode == RATE:
            return self._count - self.elapsed % self._count & 0xFFFF
        if self._mode == SQUARE:  # counts by twos
            return self._count - 2 * self.elapsed % self._count & 0xFFFE
        return self._count - self.elapsed & 0xFFFF

    @property
    def out(self) -> bool:
        """The output."""
        if self._mode in (0, ONE_SHOT):
            return self.elapsed >= self._count
        if self._mode == SQUARE:
            return not self.gate or self.elapsed % self._count < (self._count + 1) // 2
        # RATE and the strobes are low for one tick: nobody sees that but by chance.
        return True


class Ports:
    """All ports. Reads of those that are not there give all ones, writes vanish. Any numbers will do."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._channel = Channel(clock_ns)
        self._port_b = 0

    def read(self, port: int, size: int) -> int:
        """IN of `size` bytes: a port each."""
        return sum(self._read_byte(port + place) << 8 * place for place in range(size))

    def write(self, port: int, size: int, value: int) -> None:
        """OUT of `size` bytes: a port each."""
        for place in range(size):
            self._write_byte(port + place, value >> 8 * place & 0xFF)

    def _read_byte(self, port: int) -> int:
        if port == CHANNEL_2:
            return self._channel.read()
        if port == PORT_B:
            refresh = REFRESH if self._clock_ns() // REFRESH_NS & 1 else 0
            return self._port_b | refresh | (OUT_2 if self._channel.out else 0)
        return 0xFF

    def _write_byte(self, port: int, value: int) -> None:
        if port == CHANNEL_2:
            self._channel.write(value)
        elif port == PORT_B:
            self._port_b = value & (GATE_2 | SPEAKER)
            self._channel.set_gate(bool(value & GATE_2))
        elif port == CONTROL:
            channel, access, mode = value >> 6, value >> 4 & 3, value >> 1 & 7
            if channel == 2:
                self._channel.control(access, mode)
            elif channel == READ_BACK and value & 1 << 3 and not value & 1 << 5:  # latch the count of channel 2
                self._channel.control(LATCH, 0)
