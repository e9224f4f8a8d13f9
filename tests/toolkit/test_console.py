"""The console plumbing without a machine: output that waits, and for how long."""

from __future__ import annotations

import os
import threading
import time

from toolkit.console import OUTPUT_LIMIT, Output


def test_everything_written_comes_out_in_order() -> None:
    read, write = os.pipe()
    output = Output(write)
    for number in range(1000):
        output.write(b"%d\n" % number)
    output.finish()
    os.close(write)
    with open(read, "rb") as file:
        assert file.read() == b"".join(b"%d\n" % number for number in range(1000))
    assert output.last == b"\n"


def test_a_reader_that_does_not_read_holds_the_guest_back_until_its_deadline() -> None:
    read, write = os.pipe()
    output = Output(write)
    output.hold_until(time.monotonic() + 0.05)
    for _ in range(4):  # the last of them can only return because the deadline passes
        output.write(bytes(OUTPUT_LIMIT))
    os.close(read)
    output.finish()
    assert output.broken
    os.close(write)


def test_a_held_guest_is_let_go_when_the_machine_is_stopped() -> None:
    read, write = os.pipe()
    output = Output(write)
    writer = threading.Thread(target=lambda: list(map(output.write, [bytes(OUTPUT_LIMIT)] * 4)))
    writer.start()
    output.hold_until(0.0)
    writer.join()
    os.close(read)
    output.finish()
    os.close(write)


def test_a_reader_that_goes_away_is_told_once_and_stops_the_output() -> None:
    read, write = os.pipe()
    os.close(read)
    told = threading.Event()
    output = Output(write)
    output.on_broken_pipe = told.set
    output.write(b"x")
    assert told.wait(10)
    output.write(bytes(OUTPUT_LIMIT))
    output.write(bytes(OUTPUT_LIMIT))  # nobody is waited for any more
    output.finish()
    assert output.broken
    os.close(write)
