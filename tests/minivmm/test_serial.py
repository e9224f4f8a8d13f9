"""The 16550A as its data sheet describes it."""

from __future__ import annotations

import pytest

from minivmm.devices.serial import FCR_CLEAR_RECEIVER, LCR_DLAB, MCR_LOOPBACK, MCR_OUT2, Register, Serial

RECEIVED_DATA, THR_EMPTY = 1, 2  # IER


class Wired:
    """A UART whose output and interrupt line are kept."""

    def __init__(self) -> None:
        self.output = bytearray()
        self.levels: list[bool] = []
        self.uart = Serial(self.output.extend, self.levels.append)

    def read(self, register: int) -> int:
        return self.uart.read(register, 1)

    def write(self, register: int, value: int) -> None:
        self.uart.write(register, 1, value)


@pytest.fixture
def wired() -> Wired:
    return Wired()


def test_what_is_written_to_thr_comes_out(wired: Wired) -> None:
    for byte in b"hi":
        wired.write(Register.RBR_THR, byte)
    wired.uart.write_string(Register.RBR_THR, b" there")
    assert wired.output == b"hi there"
    assert wired.read(Register.LSR) & 0x60 == 0x60


def test_input_is_read_in_order_and_announced_once_enabled(wired: Wired) -> None:
    wired.uart.receive(b"ab")
    assert wired.levels == []
    wired.write(Register.IER, RECEIVED_DATA)
    assert wired.levels == [True]
    assert wired.read(Register.IIR_FCR) & 0x0F == 4
    assert wired.read(Register.LSR) & 1
    assert [wired.read(Register.RBR_THR), wired.read(Register.RBR_THR)] == [ord("a"), ord("b")]
    assert wired.levels == [True, False]
    assert wired.read(Register.IIR_FCR) & 0x0F == 1
    assert (wired.read(Register.RBR_THR), wired.read(Register.LSR) & 1) == (0, 0)


def test_every_thr_empty_interrupt_is_a_new_edge(wired: Wired) -> None:
    wired.write(Register.IER, THR_EMPTY)
    assert wired.levels == [True]
    wired.write(Register.RBR_THR, ord("x"))
    assert wired.levels == [True, False, True]
    assert wired.read(Register.IIR_FCR) & 0x0F == 2
    assert wired.levels[-1] is False
    assert wired.read(Register.IIR_FCR) & 0x0F == 1


def test_received_data_comes_before_thr_empty(wired: Wired) -> None:
    wired.write(Register.IER, RECEIVED_DATA | THR_EMPTY)
    wired.uart.receive(b"a")
    assert wired.read(Register.IIR_FCR) & 0x0F == 4
    wired.read(Register.RBR_THR)
    assert wired.read(Register.IIR_FCR) & 0x0F == 2


def test_out2_gates_the_interrupt_line(wired: Wired) -> None:
    wired.write(Register.MCR, 0)
    wired.write(Register.IER, RECEIVED_DATA)
    wired.uart.receive(b"a")
    assert wired.levels == []
    wired.write(Register.MCR, MCR_OUT2)
    assert wired.levels == [True]


def test_the_divisor_latch_hides_data_and_ier(wired: Wired) -> None:
    wired.write(Register.LCR, LCR_DLAB)
    wired.write(Register.RBR_THR, 0x34)
    wired.write(Register.IER, 0x12)
    assert (wired.read(Register.RBR_THR), wired.read(Register.IER)) == (0x34, 0x12)
    assert wired.output == b""
    wired.write(Register.LCR, 3)
    assert wired.read(Register.IER) == 0


def test_loopback_hears_itself_and_nothing_else(wired: Wired) -> None:
    wired.uart.receive(b"z")
    wired.write(Register.MCR, MCR_LOOPBACK | 0x0A)  # Linux's probe: RTS and OUT2 come back as CTS and DCD
    assert wired.read(Register.MSR) & 0xF0 == 0x90
    wired.write(Register.RBR_THR, ord("l"))
    assert wired.read(Register.RBR_THR) == ord("l")
    assert wired.output == b""
    wired.write(Register.MCR, MCR_OUT2)
    assert wired.read(Register.RBR_THR) == ord("z")


def test_a_guest_that_loops_back_forever_takes_no_memory(wired: Wired) -> None:
    wired.write(Register.MCR, MCR_LOOPBACK)
    for _ in range(100):
        wired.uart.write_string(Register.RBR_THR, bytes(1024))
    count = 0
    while wired.read(Register.LSR) & 1:
        wired.read(Register.RBR_THR)
        count += 1
    assert count == 16


def test_input_sent_before_the_guest_starts_survives_its_fifo_reset(wired: Wired) -> None:
    wired.uart.receive(b"early")
    wired.write(Register.IIR_FCR, 1 | FCR_CLEAR_RECEIVER)
    assert wired.uart.pending_input == 5
    assert wired.read(Register.RBR_THR) == ord("e")


def test_the_scratch_register_keeps_what_is_stored(wired: Wired) -> None:
    wired.write(Register.SCR, 0x5A)
    assert wired.read(Register.SCR) == 0x5A
    assert wired.uart.read(Register.MSR, 2) >> 8 == 0x5A
