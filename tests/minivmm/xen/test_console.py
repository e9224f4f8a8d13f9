"""The console ring, seen by a domain that keeps the rules of io/console.h and by one that does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivmm.memory import PAGE_SIZE, GuestMemory
from minivmm.xen.abi import XenconsInterface as Ring
from minivmm.xen.console import IN_SIZE, INPUT_LIMIT, OUT_SIZE, ConsoleRing

PAGE = 0x3000
FIRST = [0, 1, 1000, 2047, 2**31 - 3, 2**32 - 5]  # where indices may stand: they run freely


class Domain:
    """The other end: a kernel's console driver, with a copy of all that was shown."""

    def __init__(self, memory: GuestMemory, index: int = 0) -> None:
        self.memory = memory
        memory.write(PAGE, b"\xee" * PAGE_SIZE)
        for offset in (Ring.IN_CONS, Ring.IN_PROD, Ring.OUT_CONS, Ring.OUT_PROD):
            memory.write_u32(PAGE + offset, index)
        self.shown = b""
        self.notified = 0
        self.ring = ConsoleRing(memory, PAGE, self.show, self.notify)

    def show(self, data: bytes) -> None:
        self.shown += data

    def notify(self) -> None:
        self.notified += 1

    def index(self, offset: int) -> int:
        return self.memory.read_u32(PAGE + offset)

    def write(self, data: bytes) -> int:
        """Puts what there is room for into the ring; no event yet."""
        cons, prod = self.index(Ring.OUT_CONS), self.index(Ring.OUT_PROD)
        room = OUT_SIZE - (prod - cons) % 2**32
        for offset, byte in enumerate(data[:room]):
            self.memory.write(PAGE + Ring.OUT + (prod + offset) % OUT_SIZE, bytes([byte]))
        self.memory.write_u32(PAGE + Ring.OUT_PROD, (prod + min(room, len(data))) % 2**32)
        return min(room, len(data))

    def read(self, most: int = IN_SIZE) -> bytes:
        """Takes what there is, at most so many bytes; no event yet."""
        cons, prod = self.index(Ring.IN_CONS), self.index(Ring.IN_PROD)
        count = min(most, (prod - cons) % 2**32)
        data = bytes(self.memory.read(PAGE + (cons + offset) % IN_SIZE, 1)[0] for offset in range(count))
        self.memory.write_u32(PAGE + Ring.IN_CONS, (cons + count) % 2**32)
        return data


@pytest.fixture(scope="module")
def memory() -> Iterator[GuestMemory]:
    guest = GuestMemory(1 << 20)
    yield guest
    guest.close()


@pytest.mark.parametrize("index", FIRST)
def test_what_a_domain_writes_is_shown_in_order_wherever_the_indices_stand(memory: GuestMemory, index: int) -> None:
    domain, text, written = Domain(memory, index), bytes(range(256)) * 40, 0
    while written < len(text):
        written += domain.write(text[written : written + 1500])
        domain.ring.take()
    assert domain.shown == text
    assert domain.index(Ring.OUT_CONS) == domain.index(Ring.OUT_PROD) == (index + len(text)) % 2**32


@pytest.mark.parametrize("index", FIRST)
def test_input_arrives_whole_though_the_ring_is_smaller(memory: GuestMemory, index: int) -> None:
    domain, text, received = Domain(memory, index), bytes(range(256)) * 20, b""
    domain.ring.send(text)
    while chunk := domain.read(700):
        received += chunk
        domain.ring.take()
    assert received == text
    assert domain.ring.dropped == 0


def test_a_writer_that_waits_for_room_is_told_and_a_silent_one_is_not(memory: GuestMemory) -> None:
    domain = Domain(memory)
    assert domain.write(b"x" * (OUT_SIZE + 1)) == OUT_SIZE
    assert (domain.ring.take(), domain.notified) == (OUT_SIZE, 1)
    assert (domain.ring.take(), domain.notified) == (0, 1)


def test_input_is_announced_once_and_again_when_more_of_it_fits(memory: GuestMemory) -> None:
    domain = Domain(memory)
    domain.ring.send(b"x" * (IN_SIZE + 1))
    domain.ring.send(b"y")
    assert domain.notified == 1
    assert domain.read() == b"x" * IN_SIZE
    domain.ring.take()
    assert domain.notified == 2
    assert domain.read() == b"xy"


def test_input_that_nobody_reads_is_kept_to_a_bound_and_the_rest_counted(memory: GuestMemory) -> None:
    domain = Domain(memory)
    for _ in range(100):
        domain.ring.send(b"z" * 1000)
    kept = b""
    while chunk := domain.read():
        kept += chunk
        domain.ring.take()
    assert len(kept) + domain.ring.dropped == 100_000
    assert INPUT_LIMIT <= len(kept) <= INPUT_LIMIT + IN_SIZE


def test_a_kernel_that_starts_again_with_fresh_indices_has_a_console(memory: GuestMemory) -> None:
    domain = Domain(memory)
    domain.write(b"first")
    domain.ring.send(b"first")
    domain.ring.take()
    memory.write(PAGE, bytes(PAGE_SIZE))
    domain.ring.take()
    domain.write(b" second")
    domain.ring.take()
    assert domain.shown == b"first second"


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(
                st.sampled_from([Ring.IN_CONS, Ring.IN_PROD, Ring.OUT_CONS, Ring.OUT_PROD]),
                st.one_of(st.sampled_from([0, 1, 1024, 1025, 2048, 2049, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1)),
            ),
            st.tuples(st.just(-1), st.integers(0, 3000)),
            st.tuples(st.just(-2), st.just(0)),
        ),
        max_size=30,
    )
)
def test_no_index_makes_the_hypervisor_raise_or_leave_the_page(
    memory: GuestMemory, steps: list[tuple[int, int]]
) -> None:
    domain = Domain(memory)
    memory.write(PAGE - PAGE_SIZE, bytes(PAGE_SIZE))
    memory.write(PAGE + PAGE_SIZE, bytes(PAGE_SIZE))
    shown = 0
    for offset, value in [*steps, (-2, 0), (-2, 0)]:
        if offset >= 0:
            memory.write_u32(PAGE + offset, value)
        elif offset == -1:
            domain.ring.send(b"i" * value)
        else:
            domain.ring.take()
            assert len(domain.shown) - shown <= OUT_SIZE
            shown = len(domain.shown)
        assert memory.read(PAGE + Ring.OUT, OUT_SIZE) == b"\xee" * OUT_SIZE
        assert memory.read(PAGE + Ring.SIZE, PAGE_SIZE - Ring.SIZE) == b"\xee" * (PAGE_SIZE - Ring.SIZE)
    assert not any(memory.read(PAGE - PAGE_SIZE, PAGE_SIZE) + memory.read(PAGE + PAGE_SIZE, PAGE_SIZE))
    # Whatever it did, from here on its console works again.
    assert domain.write(b"sane") == 4
    domain.ring.take()
    assert domain.shown.endswith(b"sane")
