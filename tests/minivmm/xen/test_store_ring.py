"""The store's wire, seen by a domain that keeps the rules of xs_wire.h and by one that does not."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivmm.memory import PAGE_SIZE, GuestMemory
from minivmm.xen import store_ring
from minivmm.xen.abi import XenstoreDomainInterface as Ring
from minivmm.xen.abi import XsWire
from minivmm.xen.store import Store
from minivmm.xen.store_ring import EVENT_LIMIT, StoreConnection
from minivmm.xen.store_tree import permissions

SIZE = 1024
HOME = b"/local/domain/1\0"
PAGES = {0: 0x2000, 1: 0x5000, 2: 0x8000}

Message = tuple[int, int, int, bytes]  # type, req_id, tx_id, payload


def message(kind: int, payload: bytes, tx: int = 0, req: int = 7) -> bytes:
    return struct.pack("<IIII", kind, req, tx, len(payload)) + payload


class Domain:
    """The other end: a kernel's xenbus driver."""

    def __init__(self, site: Site, domid: int, index: int = 0) -> None:
        self.memory, self.page = site.memory, PAGES[domid]
        self.memory.write(self.page, b"\xee" * PAGE_SIZE)
        for offset in (Ring.REQ_CONS, Ring.REQ_PROD, Ring.RSP_CONS, Ring.RSP_PROD):
            self.memory.write_u32(self.page + offset, index)
        self.memory.write(self.page + Ring.SERVER_FEATURES, bytes(12))
        self.notified = 0
        self.unread = b""
        self.connection = StoreConnection(self.memory, self.page, domid, site.store, self.notify)

    def notify(self) -> None:
        self.notified += 1

    def index(self, offset: int) -> int:
        return self.memory.read_u32(self.page + offset)

    def put(self, data: bytes) -> int:
        """What there is room for; no event yet."""
        cons, prod = self.index(Ring.REQ_CONS), self.index(Ring.REQ_PROD)
        data = data[: SIZE - (prod - cons) % 2**32]
        for offset, byte in enumerate(data):
            self.memory.write(self.page + Ring.REQ + (prod + offset) % SIZE, bytes([byte]))
        self.memory.write_u32(self.page + Ring.REQ_PROD, (prod + len(data)) % 2**32)
        return len(data)

    def get(self, most: int = SIZE) -> bytes:
        """What there is, at most so many bytes; no event yet."""
        cons, prod = self.index(Ring.RSP_CONS), self.index(Ring.RSP_PROD)
        count = min(most, (prod - cons) % 2**32)
        data = bytes(self.memory.read(self.page + Ring.RSP + (cons + offset) % SIZE, 1)[0] for offset in range(count))
        self.memory.write_u32(self.page + Ring.RSP_CONS, (cons + count) % 2**32)
        return data

    def exchange(self, data: bytes, cut: int = SIZE, most: int = SIZE) -> list[Message]:
        """Sends all of it, in pieces of `cut` bytes, and receives, in pieces of `most`, until nothing more comes."""
        while True:
            sent = self.put(data[:cut])
            data = data[sent:]
            self.connection.serve()
            received = self.get(most)
            self.unread += received
            if not sent and not received:
                assert not data, "the store does not take it"
                return self.messages()

    def messages(self) -> list[Message]:
        found = []
        while len(self.unread) >= 16:
            kind, req, tx, length = struct.unpack_from("<IIII", self.unread)
            found.append((kind, req, tx, self.unread[16 : 16 + length]))
            self.unread = self.unread[16 + length :]
        return found

    def ask(self, kind: int, payload: bytes, tx: int = 0) -> bytes:
        """The payload of the reply, b"E..." for an error."""
        replies = [reply for reply in self.exchange(message(kind, payload, tx)) if reply[0] != XsWire.WATCH_EVENT]
        ((answered, req, its_tx, answer),) = replies
        assert (req, its_tx) == (7, tx)
        assert answered == (XsWire.ERROR if answer[:1] == b"E" else kind)
        return answer


class Site:
    """A store with a home for each of two domains."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.store = Store()
        for domid in (1, 2):
            self.store.tools.mkdir(f"/local/domain/{domid}")
            self.store.tools.set_perms(f"/local/domain/{domid}", permissions(f"n{domid}"))


@pytest.fixture(scope="module")
def memory() -> Iterator[GuestMemory]:
    guest = GuestMemory(1 << 20)
    yield guest
    guest.close()


@pytest.fixture
def site(memory: GuestMemory) -> Site:
    return Site(memory)


def test_every_request_is_answered_in_the_form_of_the_specification(site: Site) -> None:
    one = Domain(site, 1)
    tx = int(one.ask(XsWire.TRANSACTION_START, b"\0")[:-1])
    for kind, payload, number, answer in (
        (XsWire.WRITE, b"x/y\0va\0lue", 0, b"OK\0"),
        (XsWire.READ, b"x/y\0", 0, b"va\0lue"),
        (XsWire.READ, b"/local/domain/1/x/y\0", 0, b"va\0lue"),
        (XsWire.READ, b"x/y\0", tx, b"ENOENT\0"),
        (XsWire.MKDIR, b"x/z\0", 0, b"OK\0"),
        (XsWire.DIRECTORY, b"x\0", 0, b"y\0z\0"),
        (XsWire.DIRECTORY, b"x/z\0", 0, b""),
        (XsWire.SET_PERMS, b"x\0n1\0b2\0", 0, b"OK\0"),
        (XsWire.GET_PERMS, b"x\0", 0, b"n1\0b2\0"),
        (XsWire.RM, b"x/z\0", 0, b"OK\0"),
        (XsWire.WATCH, b"x\0token\0", 0, b"OK\0"),
        (XsWire.WATCH, b"y\0token\0extra", 999, b"OK\0"),
        (XsWire.UNWATCH, b"x\0token\0", 0, b"OK\0"),
        (XsWire.UNWATCH, b"x\0token\0", 0, b"ENOENT\0"),
        (XsWire.TRANSACTION_END, b"T\0", tx, b"EAGAIN\0"),
        (XsWire.GET_DOMAIN_PATH, b"007\0", 0, b"/local/domain/7\0"),
        (XsWire.IS_DOMAIN_INTRODUCED, b"1\0", 0, b"F\0"),
        (XsWire.RESET_WATCHES, b"\0", 0, b"OK\0"),
    ):
        assert one.ask(kind, payload, number) == answer, (kind, payload)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        *((XsWire.READ, payload) for payload in (b"", b"\0", b"x", b"x\0y", b"x\0y\0", b"\xff\0")),
        *((XsWire.WRITE, payload) for payload in (b"", b"x", b"\0value")),
        *(
            (XsWire.SET_PERMS, payload)
            for payload in (b"", b"x", b"x\0", b"x\0n1", b"x\0\0", b"x\0q1\0", b"x\0n99999\0")
        ),
        *((XsWire.WATCH, payload) for payload in (b"", b"\0", b"x\0", b"x\0token", b"\0token\0")),
        *(
            (XsWire.DIRECTORY_PART, payload)
            for payload in (b"", b".\0", HOME, HOME + b"x\0", HOME + b"0\0x\0", HOME + b"-1\0")
        ),
        *((XsWire.GET_DOMAIN_PATH, payload) for payload in (b"", b"1", b"-1\0", b"x\0", b"99999999999\0")),
        *((XsWire.TRANSACTION_END, payload) for payload in (b"", b"T", b"\0", b"TF\0")),
    ],
)
def test_a_payload_of_another_form_is_einval(site: Site, kind: int, payload: bytes) -> None:
    assert Domain(site, 1).ask(kind, payload) == b"EINVAL\0"


def test_what_is_dom0s_is_refused_and_what_is_unknown_is_enosys(site: Site) -> None:
    one, dom0 = Domain(site, 1), Domain(site, 0)
    for kind in (XsWire.CONTROL, XsWire.INTRODUCE, XsWire.RELEASE, XsWire.RESUME, XsWire.SET_TARGET):
        assert one.ask(kind, b"1\0") == b"EACCES\0"
        assert dom0.ask(kind, b"1\0") == b"ENOSYS\0"
    for kind in (XsWire.WATCH_EVENT, XsWire.ERROR, 20, 23, 0xFFFF, 2**32 - 1):
        assert one.ask(kind, b"1\0") == b"ENOSYS\0"


def test_a_change_by_one_domain_reaches_another_that_watches(site: Site) -> None:
    one, two = Domain(site, 1), Domain(site, 2)
    one.ask(XsWire.MKDIR, b"shared\0")
    one.ask(XsWire.SET_PERMS, b"shared\0n1\0b2\0")
    replies = two.exchange(message(XsWire.WATCH, b"/local/domain/1/shared\0token\0"))
    assert replies == [
        (XsWire.WATCH, 7, 0, b"OK\0"),
        (XsWire.WATCH_EVENT, 0, 0, b"/local/domain/1/shared\0token\0"),
    ]
    notified = two.notified
    one.ask(XsWire.WRITE, b"shared/x\0value")
    assert two.notified == notified + 1
    assert two.exchange(b"") == [(XsWire.WATCH_EVENT, 0, 0, b"/local/domain/1/shared/x\0token\0")]


def test_an_event_follows_the_reply_to_the_request_that_caused_it(site: Site) -> None:
    one = Domain(site, 1)
    asked = message(XsWire.WATCH, b"x\0t\0") + message(XsWire.WRITE, b"x\0value")
    kinds = [kind for kind, *_ in one.exchange(asked)]
    assert kinds == [XsWire.WATCH, XsWire.WATCH_EVENT, XsWire.WRITE, XsWire.WATCH_EVENT]


CONVERSATION = b"".join(
    [
        message(XsWire.WRITE, b"x/long\0" + b"v" * 2048, req=1),
        message(XsWire.READ, b"x/long\0", req=2),
        message(XsWire.DIRECTORY, b"x\0", req=3),
        message(XsWire.READ, b"nothing\0", req=4),
        message(XsWire.TRANSACTION_START, b"\0", req=5),
        message(99, b"", req=6),
    ]
)
ANSWERS = [
    (XsWire.WRITE, 1, 0, b"OK\0"),
    (XsWire.READ, 2, 0, b"v" * 2048),
    (XsWire.DIRECTORY, 3, 0, b"long\0"),
    (XsWire.ERROR, 4, 0, b"ENOENT\0"),
    (XsWire.TRANSACTION_START, 5, 0, b"1\0"),
    (XsWire.ERROR, 6, 0, b"ENOSYS\0"),
]


@pytest.mark.parametrize(("cut", "most"), [(1, 1), (1, SIZE), (SIZE, 1), (15, 17), (16, 16), (1000, 300), (SIZE, SIZE)])
@pytest.mark.parametrize("index", [0, 1023, 2**32 - 700])
def test_messages_may_be_cut_anywhere(site: Site, cut: int, most: int, index: int) -> None:
    assert Domain(site, 1, index).exchange(CONVERSATION, cut, most) == ANSWERS


def test_a_message_may_be_cut_at_every_place(site: Site) -> None:
    one = Domain(site, 1)
    asked = message(XsWire.WRITE, b"x\0value") + message(XsWire.READ, b"x\0")
    for cut in range(len(asked) + 1):
        first = one.exchange(asked[:cut])
        assert first + one.exchange(asked[cut:]) == [(XsWire.WRITE, 7, 0, b"OK\0"), (XsWire.READ, 7, 0, b"value")]


def test_a_long_list_is_read_in_parts(site: Site) -> None:
    one, names = Domain(site, 1), [f"child-{number:04}".encode() for number in range(700)]
    for name in names:
        site.store.tools.mkdir(f"/local/domain/1/x/{name.decode()}")
    assert one.ask(XsWire.DIRECTORY, b"x\0") == b"E2BIG\0"
    found, generations = b"", set()
    while not found.endswith(b"\0\0"):
        generation, part = one.ask(XsWire.DIRECTORY_PART, b"x\0%d\0" % len(found)).split(b"\0", 1)
        assert part
        found += part
        generations.add(generation)
    assert found[:-1].split(b"\0")[:-1] == names
    assert len(generations) == 1


def test_a_domain_that_does_not_read_is_not_served_and_costs_no_memory(site: Site) -> None:
    one = Domain(site, 1)
    one.ask(XsWire.WRITE, b"x\0" + b"v" * 2000)
    taken = 0
    for _ in range(1000):
        taken += one.put(message(XsWire.READ, b"x\0"))
        one.connection.serve()
    assert taken < 3 * SIZE
    assert len(one.connection._received) + len(one.connection._sending) < 3 * 4112
    assert len(one.exchange(b"")) >= SIZE // 18


def test_events_for_a_domain_that_does_not_read_become_one_for_each_watch(site: Site) -> None:
    one, two = Domain(site, 1), Domain(site, 2)
    for token in (b"a", b"b"):
        two.ask(XsWire.WATCH, b"/local/domain/1\0" + token + b"\0")
    site.store.tools.set_perms("/local/domain/1", permissions("n1", "r2"))
    for number in range(3 * EVENT_LIMIT):
        one.connection._client.write(f"d{number % 900}", b"")
    assert len(two.connection._events) <= EVENT_LIMIT + 2
    told = {payload for *_, payload in two.exchange(b"")}
    assert {b"/local/domain/1\0a\0", b"/local/domain/1\0b\0", b"/local/domain/1/d0\0a\0"} <= told


def test_no_event_of_a_watch_that_is_gone_is_taken_up(site: Site) -> None:
    one = Domain(site, 1)
    asked = [
        (XsWire.WATCH, b"x\0t\0"),
        (XsWire.WRITE, b"x\0" + b"v" * 900),
        (XsWire.READ, b"x\0"),
        (XsWire.UNWATCH, b"x\0t\0"),
    ]
    kinds = [kind for kind, *_ in one.exchange(b"".join(message(*request) for request in asked), most=1)]
    one.ask(XsWire.WRITE, b"x\0")
    assert XsWire.WATCH_EVENT not in kinds[kinds.index(XsWire.UNWATCH) + 1 :]


@pytest.mark.parametrize(
    ("offset", "value", "error"),
    [
        (Ring.REQ_PROD, 1025, store_ring.ERROR_RINGIDX),
        (Ring.REQ_PROD, 2**32 - 1, store_ring.ERROR_RINGIDX),
        (Ring.RSP_CONS, 1, store_ring.ERROR_RINGIDX),
        (Ring.RSP_CONS, 2**31, store_ring.ERROR_RINGIDX),
    ],
)
def test_an_index_that_cannot_be_ends_the_connection(site: Site, offset: int, value: int, error: int) -> None:
    one = Domain(site, 1)
    one.put(message(XsWire.READ, b"x\0") if offset == Ring.RSP_CONS else b"")
    one.memory.write_u32(one.page + offset, value)
    one.connection.serve()
    assert one.index(Ring.ERROR) == one.connection.error == error
    assert one.notified == 1
    one.connection.serve()
    assert one.notified == 1


def test_a_payload_too_long_ends_the_connection_and_what_it_watched(site: Site) -> None:
    one = Domain(site, 1)
    one.ask(XsWire.WATCH, b"x\0t\0")
    one.put(struct.pack("<IIII", XsWire.WRITE, 7, 0, 4097))
    one.connection.serve()
    assert one.index(Ring.ERROR) == store_ring.ERROR_PROTO
    assert site.store.watches == {}


def test_a_domain_may_reconnect_and_begins_on_a_message_boundary(site: Site) -> None:
    one = Domain(site, 1)
    assert one.index(Ring.SERVER_FEATURES) == 3
    one.ask(XsWire.WATCH, b"x\0t\0")
    one.put(message(XsWire.READ, b"x\0")[:9])
    one.connection.serve()
    one.memory.write_u32(one.page + Ring.REQ_PROD, 77777)
    one.memory.write_u32(one.page + Ring.CONNECTION, store_ring.RECONNECT)
    one.connection.serve()
    assert one.index(Ring.CONNECTION) == store_ring.CONNECTED
    assert one.index(Ring.ERROR) == store_ring.ERROR_NONE
    assert one.exchange(message(XsWire.WRITE, b"x\0")) == [(XsWire.WRITE, 7, 0, b"OK\0")]


def test_a_removed_domain_takes_its_connection_along(site: Site) -> None:
    one = Domain(site, 1)
    one.ask(XsWire.WATCH, b"x\0t\0")
    one.connection.close()
    assert site.store.watches == {}
    assert list(site.store.clients) == [site.store.tools]


def test_one_call_answers_a_bounded_number_of_requests(site: Site) -> None:
    """A domain with a CPU that only writes requests and one that only reads replies would be served for ever."""
    one, written = Domain(site, 1), 0

    def another() -> None:
        nonlocal written
        one.get()
        written += one.put(message(XsWire.READ, b"x\0"))

    take = one.connection._requests.take

    def taken() -> bytes:
        data = take()
        another()
        return data

    one.connection._requests.take = taken  # type: ignore[method-assign]
    another()
    assert one.connection.serve()
    assert written < 10_000


def test_room_that_a_reader_makes_while_the_ring_is_filled_is_used(site: Site) -> None:
    """A reader sends an event only if it found the ring full: to stop at another would be to stop for ever."""
    one, reads = Domain(site, 1), [3, 50, 100]
    one.ask(XsWire.WRITE, b"x\0" + b"v" * 2000)
    put = one.connection._responses.put

    def put_while_it_reads(data: bytes | bytearray) -> int:
        sent = put(data)
        if reads:
            one.get(reads.pop())
        return sent

    one.connection._responses.put = put_while_it_reads  # type: ignore[method-assign]
    one.put(message(XsWire.READ, b"x\0"))
    one.connection.serve()
    assert one.connection._sending
    assert one.connection._responses.room() == 0


FIELDS = [Ring.REQ_CONS, Ring.REQ_PROD, Ring.RSP_CONS, Ring.RSP_PROD, Ring.CONNECTION, Ring.ERROR]
KINDS = [*range(24), 0xFFFF, 2**32 - 1]
TEXTS = [
    b"x\0",
    b"x/y\0",
    b"/\0",
    b"/local/domain/2/x\0",
    b"t\0",
    b"n1\0",
    b"T\0",
    b"0\0",
    b"value",
    b"\0",
    b"@x\0",
    b"",
]

hostile = st.one_of(
    st.tuples(st.just("field"), st.sampled_from(FIELDS), st.sampled_from([0, 1, 16, 1024, 1025, 2**31, 2**32 - 1])),
    st.tuples(st.just("bytes"), st.integers(0, SIZE), st.binary(max_size=64)),
    st.tuples(st.just("ask"), st.sampled_from(KINDS), st.lists(st.sampled_from(TEXTS), max_size=3).map(b"".join)),
    st.tuples(st.just("length"), st.integers(0, 5000), st.just(0)),
    st.tuples(st.just("read"), st.integers(0, SIZE), st.just(0)),
    st.tuples(st.just("serve"), st.just(0), st.just(0)),
    st.tuples(st.just("reconnect"), st.just(0), st.just(0)),
)


@settings(max_examples=400, deadline=None)
@given(
    kind=st.sampled_from(sorted(store_ring.REQUESTS)),
    payload=st.one_of(st.lists(st.one_of(st.sampled_from(TEXTS), st.binary(max_size=9))).map(b"".join), st.binary()),
    tx=st.sampled_from([0, 0, 1, 2, 2**32 - 1]),
)
def test_every_payload_gets_one_answer_that_fits(memory: GuestMemory, kind: int, payload: bytes, tx: int) -> None:
    one = Domain(Site(memory), 1)
    one.ask(XsWire.TRANSACTION_START, b"\0")
    replies = [reply for reply in one.exchange(message(kind, payload, tx)) if reply[0] != XsWire.WATCH_EVENT]
    assert len(replies) == 1
    assert replies[0][0] in (kind, XsWire.ERROR)
    assert len(replies[0][3]) <= 4096


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(hostile, max_size=60), seed=st.integers(0, 2**16))
def test_nothing_a_domain_writes_makes_the_store_raise_or_leave_the_page(
    memory: GuestMemory, steps: list[tuple[str, int, int | bytes]], seed: int
) -> None:
    site = Site(memory)
    one, two = Domain(site, 1), Domain(site, 2)
    choose = random.Random(seed)
    for what, number, value in steps:
        if what == "field":
            memory.write_u32(one.page + number, int(value))
        elif what == "bytes":
            memory.write(one.page + number, bytes(value))
            memory.write_u32(one.page + Ring.REQ_PROD, one.index(Ring.REQ_CONS) + len(bytes(value)) & 0xFFFFFFFF)
        elif what == "ask":
            one.put(message(number, bytes(value), choose.choice([0, 0, 1, 2])))
        elif what == "length":
            one.put(struct.pack("<IIII", XsWire.WRITE, 1, 0, number) + b"x\0" * 200)
        elif what == "read":
            one.get(number)
        elif what == "reconnect":
            memory.write_u32(one.page + Ring.CONNECTION, store_ring.RECONNECT)
        one.connection.serve()
        assert len(one.connection._received) <= 16 + 4096 + SIZE
        assert len(one.connection._sending) <= 16 + 4096
    tail = memory.read(one.page + Ring.SIZE, PAGE_SIZE - Ring.SIZE)
    assert tail == b"\xee" * len(tail)
    assert two.exchange(CONVERSATION) == ANSWERS
