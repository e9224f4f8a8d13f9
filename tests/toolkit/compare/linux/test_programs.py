"""The guest's bench program and its peer keep to what they say to each other, and to what they must not touch."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from guest_os.hosted import linux_program
from toolkit.compare import protocol
from toolkit.compare.session import ProcessSession

FRAME = struct.Struct("<6s6s2sHIIIQ")  # guest_os/linux/frames.h
ECHO, DATA, SYNC, BURST, ANSWER = range(1, 6)
GUEST, BROADCAST, OURS = b"\x52\x54\0\x12\x34\x56", b"\xff" * 6, b"\x88\xb5"
SMALLEST, LARGEST = 60, 1514
TIMEOUT = 20.0


@contextmanager
def peer(role: str, kind: socket.SocketKind) -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    ours.settimeout(TIMEOUT)
    with ours, theirs:
        process = subprocess.Popen([linux_program("peer"), role, str(theirs.fileno())], pass_fds=[theirs.fileno()])
        try:
            yield ours
        finally:
            process.kill()
            process.wait()


def frame(kind: int, number: int = 0, count: int = 0, size: int = 0, ethertype: bytes = OURS) -> bytes:
    return FRAME.pack(BROADCAST, GUEST, ethertype, kind, number, count, size, 0).ljust(SMALLEST, b"\0")


def test_an_echo_comes_back_to_who_sent_it() -> None:
    with peer("frames", socket.SOCK_DGRAM) as wire:
        wire.send(frame(ECHO, number=77))
        to, _, _, kind, number, *_ = FRAME.unpack_from(answer := wire.recv(2048))

    assert (to, kind, number, len(answer)) == (GUEST, ECHO, 77, SMALLEST)


def test_a_sync_tells_what_arrived_since_the_last_one() -> None:
    told = []
    with peer("frames", socket.SOCK_DGRAM) as wire:
        for numbers in ((1, 2, 4), ()):
            for number in numbers:
                wire.send(frame(DATA, number=number))
            wire.send(frame(SYNC))
            _, _, _, kind, _, count, _, total = FRAME.unpack_from(wire.recv(2048))
            told.append((kind, count, total))

    assert told == [(ANSWER, 3, 7), (ANSWER, 0, 0)]


def test_a_burst_is_as_many_frames_of_that_size_as_asked_for() -> None:
    with peer("frames", socket.SOCK_DGRAM) as wire:
        wire.send(frame(BURST, count=5, size=LARGEST))
        frames = [wire.recv(2048) for _ in range(5)]

    assert [len(data) for data in frames] == [LARGEST] * 5
    assert [FRAME.unpack_from(data)[4] for data in frames] == [0, 1, 2, 3, 4]


NONSENSE = {
    "nothing": b"",
    "no whole header": b"x" * 13,
    "too short": frame(DATA)[:40],
    "another protocol": frame(DATA, ethertype=b"\x86\xdd"),
    "an unknown kind": frame(99),
    "a burst too long": frame(BURST, count=1 << 31, size=SMALLEST),
    **{f"a burst of {size} bytes": frame(BURST, count=1, size=size) for size in (0, 59, 1515, 1 << 31)},
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE.keys())
def test_what_is_not_a_question_gets_no_answer_and_counts_for_nothing(nonsense: bytes) -> None:
    with peer("frames", socket.SOCK_DGRAM) as wire:
        if nonsense:
            wire.send(nonsense)
        wire.send(frame(SYNC))
        _, _, _, kind, _, count, _, _ = FRAME.unpack_from(wire.recv(2048))

    assert (kind, count) == (ANSWER, 0)


def test_a_console_is_acknowledged_with_the_sum_of_what_arrived() -> None:
    with peer("console", socket.SOCK_STREAM) as line:
        line.sendall(b"abc\x04" + b"d")
        first = line.recv(1)
        line.sendall(b"\x04")
        second = line.recv(1)

    assert (first[0], second[0]) == (sum(b"abc") & 0xFF, ord("d"))


def test_a_peer_ends_when_its_machine_is_gone() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        process = subprocess.Popen([linux_program("peer"), "console", str(theirs.fileno())], pass_fds=[theirs.fileno()])
    ours.close()

    assert process.wait(TIMEOUT) == 0


def test_outside_a_guest_the_program_offers_nothing_but_the_processor() -> None:
    session = ProcessSession([linux_program("bench")])
    try:
        assert protocol.read_ready(session, TIMEOUT) == ("cpu",)
    finally:
        session.close()


def test_equal_work_has_equal_checksums_and_a_wrong_command_ends_nothing() -> None:
    session = ProcessSession([linux_program("bench")])
    try:
        protocol.read_ready(session, TIMEOUT)
        once, thrice = (protocol.run(session, "cpu", batches, TIMEOUT) for batches in (1, 3))
        with pytest.raises(protocol.WorkloadRefused, match="no such workload"):
            protocol.run(session, "disk-write:ahci", 1, TIMEOUT)
        again = protocol.run(session, "cpu", 2, TIMEOUT)
    finally:
        session.close()

    assert (once.ops, thrice.ops, again.ops) == (1, 3, 2)
    assert once.checksum == thrice.checksum == again.checksum
