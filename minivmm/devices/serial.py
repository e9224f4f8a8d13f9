"""The 16550A UART, both ways (National Semiconductor PC16550D data sheet, section 8).

Transmission is instant: what the guest writes to THR goes to the sink before the write returns, so LSR always shows an
empty transmitter. Received bytes wait in a queue that the guest sees through its 16-byte FIFO.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum, IntFlag
from threading import Lock


class Register(IntEnum):
    """Offsets from the base port. With LCR.DLAB set, 0 and 1 are the divisor latch."""

    RBR_THR = 0
    IER = 1
    IIR_FCR = 2
    LCR = 3
    MCR = 4
    LSR = 5
    MSR = 6
    SCR = 7


class Ier(IntFlag):
    """Interrupt enable register."""

    RECEIVED_DATA = 1 << 0
    THR_EMPTY = 1 << 1
    LINE_STATUS = 1 << 2
    MODEM_STATUS = 1 << 3


class Iir(IntEnum):
    """Interrupt identification, highest priority first in the data sheet's table II."""

    NONE = 0x01
    THR_EMPTY = 0x02
    RECEIVED_DATA = 0x04


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

    The lock serializes vCPU threads with the thread that feeds input; the sink is called while it is held.
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

    @property
    def pending_input(self) -> int:
        """Bytes received that the guest has not read yet."""
        return len(self._wire)

    def receive(self, data: bytes) -> None:
        """Bytes arrive at the guest's serial port. Thread-safe."""
        with self._lock:
            self._wire.extend(data)
            self._update_line()

    @property
    def _input(self) -> deque[int]:
        """What the receiver hears: itself in loopback mode, else the wire."""
        return self._looped if self._mcr & MCR_LOOPBACK else self._wire

    def _interrupt(self) -> Iir:
        """The highest pending, enabled interrupt."""
        if self._input and self._ier & Ier.RECEIVED_DATA:
            return Iir.RECEIVED_DATA
        if self._thr_empty and self._ier & Ier.THR_EMPTY:
            return Iir.THR_EMPTY
        return Iir.NONE

    def _update_line(self) -> None:
        level = self._interrupt() is not Iir.NONE and bool(self._mcr & MCR_OUT2)
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
            if self._level and self._interrupt() is Iir.THR_EMPTY:
                self._level = False
                self._line(False)
            self._update_line()

    def write_string(self, offset: int, data: bytes) -> None:
        """A `rep outsb`: the whole string in one exit."""
        with self._lock:
            if offset == Register.RBR_THR and not self._lcr & LCR_DLAB:
                self._transmitted(data)
                return
            for value in data:
                self._write_register(offset, value)

    def write(self, offset: int, size: int, value: int) -> None:
        """A register write. Hot: THR. Guarded by the benchmark `exit-loop`."""
        with self._lock:
            if size != 1:  # a wide access is a byte access to each register in turn
                for index in range(size):
                    self._write_register(offset + index & 7, value >> 8 * index & 0xFF)
            elif offset == 0 and not self._lcr & LCR_DLAB:
                self._transmitted(value.to_bytes(1, "little"))
            else:
                self._write_register(offset, value)

    def _write_register(self, offset: int, value: int) -> None:
        match offset:
            case Register.RBR_THR:
                if self._lcr & LCR_DLAB:
                    self._divisor = self._divisor & 0xFF00 | value
                else:
                    self._transmitted(bytes((value,)))
            case Register.IER:
                if self._lcr & LCR_DLAB:
                    self._divisor = self._divisor & 0xFF | value << 8
                else:
                    # Enabling THR-empty while THR is empty, as it always is here, raises it at once.
                    self._thr_empty = bool(value & Ier.THR_EMPTY)
                    self._ier = value & 0x0F
                    self._update_line()
            case Register.IIR_FCR:
                self._fcr = value
                if value & FCR_CLEAR_RECEIVER:
                    # What the host sent is still on the wire, not in the FIFO: a guest that clears the FIFO while it
                    # starts must not lose input typed or piped before.
                    self._looped.clear()
                    self._update_line()
            case Register.LCR:
                self._lcr = value
            case Register.MCR:
                self._mcr = value & 0x1F
                self._update_line()
            case Register.SCR:
                self._scratch = value

    def read(self, offset: int, size: int) -> int:
        """A register read."""
        with self._lock:
            if size == 1:
                return self._read_register(offset)
            return sum(self._read_register(offset + index & 7) << 8 * index for index in range(size))

    def _read_register(self, offset: int) -> int:
        match offset:
            case Register.LSR:
                return LSR_TRANSMITTER_IDLE | (LSR_DATA_READY if self._input else 0)
            case Register.RBR_THR:
                if self._lcr & LCR_DLAB:
                    return self._divisor & 0xFF
                if not self._input:
                    return 0
                value = self._input.popleft()
                self._update_line()
                return value
            case Register.IER:
                return self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier
            case Register.IIR_FCR:
                interrupt = self._interrupt()
                if interrupt is Iir.THR_EMPTY:  # reading IIR acknowledges it
                    self._thr_empty = False
                    self._update_line()
                return interrupt | (IIR_FIFOS_ENABLED if self._fcr & FCR_ENABLE else 0)
            case Register.LCR:
                return self._lcr
            case Register.MCR:
                return self._mcr
            case Register.MSR:
                if self._mcr & MCR_LOOPBACK:  # OUT2 OUT1 RTS DTR come back as DCD RI CTS DSR
                    return (self._mcr & 0x0C) << 4 | (self._mcr & 0x02) << 3 | (self._mcr & 0x01) << 5
                return MSR_CONNECTED
            case _:
                return self._scratch
