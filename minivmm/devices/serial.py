"""The 16550A UART, both ways (National Semiconductor PC16550D data sheet, section 8).

Transmission is instant: what the guest writes to THR goes to the sink before the write returns, so LSR always shows an
empty transmitter. Received bytes wait in a queue that the guest sees through its 16-byte FIFO.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock


class Register:
    """Offsets from the base port. With LCR.DLAB set, 0 and 1 are the divisor latch."""

    RBR_THR = 0
    IER = 1
    IIR_FCR = 2
    LCR = 3
    MCR = 4
    LSR = 5
    MSR = 6
    SCR = 7


class Iir:
    """Interrupt identification, highest priority first in the data sheet's table II."""

    NONE = 0x01
    THR_EMPTY = 0x02
    RECEIVED_DATA = 0x04


IER_RECEIVED_DATA = 1 << 0
IER_THR_EMPTY = 1 << 1
IIR_FIFOS_ENABLED = 0xC0
FCR_ENABLE = 1 << 0
FCR_CLEAR_RECEIVER = 1 << 1
LCR_DLAB = 1 << 7
LSR_DATA_READY = 1 << 0
LSR_TRANSMITTER_IDLE = 0x60  # THR empty and shift register empty
MCR_OUT2 = 1 << 3  # on a PC, gates the interrupt line
MCR_LOOPBACK = 1 << 4
MSR_CONNECTED = 0xB0  # DCD, DSR, CTS
FIFO_SIZE = 16


class Serial:
    """One UART. `sink` gets what the guest transmits; `line` sets the level of the interrupt line.

    The lock serializes vCPU threads with the thread that feeds input; the sink is called while it is held. Registers
    that only the guest touches need no lock.
    """

    def __init__(self, sink: Callable[[bytes], None], line: Callable[[bool], None]) -> None:
        self._sink = sink
        self._line = line
        self._lock = Lock()
        self._wire: deque[int] = deque()  # what the host sent and the guest has not read
        self._looped: deque[int] = deque(maxlen=FIFO_SIZE)  # what the guest sent itself in loopback mode
        self._ier = 0
        self._fcr = 0
        self._lcr = 3  # 8 data bits, no parity, 1 stop bit
        self._mcr = MCR_OUT2
        self._scratch = 0
        self._divisor = 12  # 9600 baud
        self._thr_empty = False  # a THR-empty interrupt waits to be read from IIR
        self._level = False
        self._registers: dict[int, tuple[Callable[[], int], Callable[[int], None]]] = {
            Register.RBR_THR: (self._read_rbr, self._write_thr),
            Register.IER: (self._read_ier, self._write_ier),
            Register.IIR_FCR: (self._read_iir, self._write_fcr),
            Register.LCR: (lambda: self._lcr, self._write_lcr),
            Register.MCR: (lambda: self._mcr, self._write_mcr),
            Register.LSR: (self._read_lsr, _ignore),
            Register.MSR: (self._read_msr, _ignore),
            Register.SCR: (lambda: self._scratch, self._write_scratch),
        }

    # --- the host's side ---------------------------------------------------------------------------------------------
    @property
    def pending_input(self) -> int:
        """Bytes received that the guest has not read yet."""
        return len(self._wire)

    def receive(self, data: bytes) -> None:
        """Bytes arrive at the guest's serial port. Thread-safe."""
        with self._lock:
            self._wire.extend(data)
            self._update_line()

    # --- the bus's side ----------------------------------------------------------------------------------------------
    def port(self, offset: int) -> tuple[Callable[[], int], Callable[[int], None]]:
        """What reads and what writes the register at `offset` (minivmm.bus.PortDevice)."""
        return self._registers[offset]

    def read(self, offset: int, size: int) -> int:
        """A read of any width: a wide access is a byte access to each register in turn."""
        return sum(self._registers[offset + index & 7][0]() << 8 * index for index in range(size))

    def write(self, offset: int, size: int, value: int) -> None:
        """A write of any width."""
        for index in range(size):
            self._registers[offset + index & 7][1](value >> 8 * index & 0xFF)

    def write_string(self, offset: int, data: bytes) -> None:
        """A `rep outsb`: the whole string in one exit."""
        if offset == Register.RBR_THR and not self._lcr & LCR_DLAB:
            with self._lock:
                self._transmitted(data)
            return
        for value in data:
            self._registers[offset][1](value)

    # --- interrupts, under the lock ----------------------------------------------------------------------------------
    @property
    def _input(self) -> deque[int]:
        """What the receiver hears: itself in loopback mode, else the wire."""
        return self._looped if self._mcr & MCR_LOOPBACK else self._wire

    def _interrupt(self) -> int:
        """The highest pending, enabled interrupt."""
        if self._input and self._ier & IER_RECEIVED_DATA:
            return Iir.RECEIVED_DATA
        if self._thr_empty and self._ier & IER_THR_EMPTY:
            return Iir.THR_EMPTY
        return Iir.NONE

    def _update_line(self) -> None:
        level = self._interrupt() != Iir.NONE and bool(self._mcr & MCR_OUT2)
        if level != self._level:
            self._level = level
            self._line(level)

    def _transmitted(self, data: bytes) -> None:
        if self._mcr & MCR_LOOPBACK:
            self._looped.extend(data)
        else:
            self._sink(data)
        if self._ier:
            self._thr_empty = True
            # The line falls and rises again for a new THR-empty interrupt: the PIC and IOAPIC see edges only.
            if self._level and self._interrupt() == Iir.THR_EMPTY:
                self._level = False
                self._line(False)
            self._update_line()

    # --- the registers -----------------------------------------------------------------------------------------------
    def _write_thr(self, value: int) -> None:
        """THR, or the divisor's low byte. Hot: guarded by the benchmark `exit-loop`."""
        if self._lcr & LCR_DLAB:
            self._divisor = self._divisor & 0xFF00 | value
            return
        with self._lock:
            self._transmitted(value.to_bytes(1, "little"))

    def _read_rbr(self) -> int:
        if self._lcr & LCR_DLAB:
            return self._divisor & 0xFF
        with self._lock:
            if not self._input:
                return 0
            value = self._input.popleft()
            self._update_line()
            return value

    def _write_ier(self, value: int) -> None:
        if self._lcr & LCR_DLAB:
            self._divisor = self._divisor & 0xFF | value << 8
            return
        with self._lock:
            # Enabling THR-empty while THR is empty, as it always is here, raises it at once.
            self._thr_empty = bool(value & IER_THR_EMPTY)
            self._ier = value & 0x0F
            self._update_line()

    def _read_ier(self) -> int:
        return self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier

    def _read_iir(self) -> int:
        with self._lock:
            interrupt = self._interrupt()
            if interrupt == Iir.THR_EMPTY:  # reading IIR acknowledges it
                self._thr_empty = False
                self._update_line()
            return interrupt | (IIR_FIFOS_ENABLED if self._fcr & FCR_ENABLE else 0)

    def _write_fcr(self, value: int) -> None:
        with self._lock:
            self._fcr = value
            if value & FCR_CLEAR_RECEIVER:
                # What the host sent is still on the wire, not in the FIFO: a guest that clears the FIFO while it
                # starts must not lose input typed or piped before.
                self._looped.clear()
                self._update_line()

    def _write_lcr(self, value: int) -> None:
        self._lcr = value

    def _write_mcr(self, value: int) -> None:
        with self._lock:
            self._mcr = value & 0x1F
            self._update_line()

    def _read_lsr(self) -> int:
        return LSR_TRANSMITTER_IDLE | (LSR_DATA_READY if self._input else 0)

    def _read_msr(self) -> int:
        if self._mcr & MCR_LOOPBACK:  # OUT2 OUT1 RTS DTR come back as DCD RI CTS DSR
            return (self._mcr & 0x0C) << 4 | (self._mcr & 0x02) << 3 | (self._mcr & 0x01) << 5
        return MSR_CONNECTED

    def _write_scratch(self, value: int) -> None:
        self._scratch = value


def _ignore(value: int) -> None:
    """LSR and MSR are read-only."""
