"""A domain's connection to the store (io/xs_wire.h, docs/misc/xenstore-ring.txt of Xen): messages over two byte rings.

    request ring -> message cut out -> REQUESTS -> Client -> reply --+-> response ring
                                       other clients' changes -> event +

A request is taken up only when the reply to the one before has gone out: a domain that does not read its replies is not
served meanwhile, and nothing heaps up here. Events come unasked: beyond EVENT_LIMIT waiting ones, an event only says
that something happened at the watch (its path is the <wpath>), once a watch.

A domain that breaks the protocol finds the reason in the page's error field, and is not served until it asks for a
reconnection. Calls are serialised by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from errno import E2BIG, EACCES, EINVAL, ENOSYS

from minivmm.errors import GuestError
from minivmm.memory import GuestMemory
from minivmm.xen.abi import (
    XENSTORE_PAYLOAD_MAX,
    XENSTORE_RING_SIZE,
    XSD_SOCKMSG,
    Domid,
    XenstoreDomainInterface,
    XsdSockmsg,
    XsWire,
)
from minivmm.xen.byte_ring import RingIndexError, RingReader, RingWriter
from minivmm.xen.store import Client, Store, Watch, get_domain_path
from minivmm.xen.store_tree import StoreError, permissions

SERVER_FEATURE_RECONNECTION = 1
SERVER_FEATURE_ERROR = 2
CONNECTED, RECONNECT = 0, 1  # values of the connection field
ERROR_NONE, ERROR_RINGIDX, ERROR_PROTO = 0, 2, 3  # values of the error field

EVENT_LIMIT = 512  # events waiting in full
LOOKS = 16  # at the request ring in one call
NUMBER = re.compile(r"[0-9]{1,10}")
ACK = b"OK\0"


class ProtocolError(GuestError):
    """A message that xs_wire.h forbids to send, after which nothing the domain says can be understood."""


class StoreConnection:
    """One domain's ring. `page` is the machine address of its page, `notify` raises its event channel."""

    def __init__(self, memory: GuestMemory, page: int, domid: int, store: Store, notify: Callable[[], None]) -> None:
        self._memory = memory
        self._page = page
        self._notify = notify
        self._store = store
        self._client = Client(store, domid, self._event)
        ring, size = XenstoreDomainInterface, XENSTORE_RING_SIZE
        self._requests = RingReader(memory, page + ring.REQ, size, page + ring.REQ_CONS, page + ring.REQ_PROD)
        self._responses = RingWriter(memory, page + ring.RSP, size, page + ring.RSP_PROD, page + ring.RSP_CONS)
        self._received = bytearray()  # of requests: what is left of one look at the ring, and the start of a message
        self._sending = bytearray()  # what is left of the message that is going out
        self._events: dict[tuple[Watch, str], None] = {}
        self._busy = False
        self._moved = False  # the ring has changed since the last notification
        self.error = ERROR_NONE  # why the domain is not served
        memory.write_u32(page + ring.SERVER_FEATURES, SERVER_FEATURE_RECONNECTION | SERVER_FEATURE_ERROR)

    def close(self) -> None:
        """The domain is gone: so are its watches and transactions."""
        self._client.close()

    def serve(self) -> bool:
        """The domain has sent an event: takes what it asks and gives what it waits for, as far as there is room. True
        when it goes on asking: then call again, once others had their turn, for it may send no other event."""
        if self._memory.read_u32(self._page + XenstoreDomainInterface.CONNECTION) == RECONNECT:
            self._reconnect()
        elif self.error == ERROR_NONE:
            return self._judge(self._exchange)
        return False

    # The life of the connection

    def _event(self, watch: Watch, path: str) -> None:
        """WATCH_EVENT: something happened at one of the client's watches."""
        self._events[watch, path if len(self._events) < EVENT_LIMIT else watch.given] = None
        if not self._busy:
            self._judge(self._send)

    def _judge(self, step: Callable[[], bool]) -> bool:
        """Carries out `step`; the connection ends with what the domain has done wrong."""
        self._busy = True
        more = False
        try:
            more = step()
        except RingIndexError:
            self._stop(ERROR_RINGIDX)
        except ProtocolError:
            self._stop(ERROR_PROTO)
        finally:
            self._busy = False
        if self._moved:
            self._moved = False
            self._notify()
        return more

    def _stop(self, error: int) -> None:
        self._forget()
        self.error = error
        self._memory.write_u32(self._page + XenstoreDomainInterface.ERROR, error)
        self._moved = True

    def _reconnect(self) -> None:
        """The domain asks to begin anew, on a message boundary, with empty rings."""
        self._forget()
        self._requests.restart()
        self._responses.restart()
        self.error = ERROR_NONE
        self._memory.write_u32(self._page + XenstoreDomainInterface.ERROR, ERROR_NONE)
        self._memory.write_u32(self._page + XenstoreDomainInterface.CONNECTION, CONNECTED)
        self._notify()

    def _forget(self) -> None:
        self._client.reset_watches()
        self._received.clear()
        self._sending.clear()
        self._events.clear()

    # Messages

    def _exchange(self) -> bool:
        """Serves what was received before and what is in the ring, until it is seen to be empty: Linux sends an event
        for a request only if it finds that everything before it was taken. False when the domain is to move next."""
        self._send()
        for _ in range(LOOKS):
            self._answer()
            if self._sending or not (data := self._requests.take()):
                return False
            self._moved = True
            self._received += data
        return True

    def _answer(self) -> None:
        """Requests are carried out while their replies go out. Raises ProtocolError."""
        while not self._sending and len(self._received) >= XSD_SOCKMSG.size:
            header = XSD_SOCKMSG.unpack(self._received)
            if header.len > XENSTORE_PAYLOAD_MAX:
                raise ProtocolError(f"a message with {header.len} bytes")
            end = XSD_SOCKMSG.size + header.len
            if len(self._received) < end:
                return
            payload = bytes(self._received[XSD_SOCKMSG.size : end])
            del self._received[:end]
            self._sending += self._reply(header, payload)
            self._send()

    def _reply(self, header: XsdSockmsg, payload: bytes) -> bytes:
        """The whole message that answers a request."""
        kind = header.type
        try:
            if kind in PRIVILEGED and not self._client.privileged:
                raise StoreError(EACCES, f"request {kind} is dom0's")
            if kind not in REQUESTS:
                raise StoreError(ENOSYS, f"there is no request {kind}")
            answer = REQUESTS[kind](self._client, payload, header.tx_id)
            if len(answer) > XENSTORE_PAYLOAD_MAX:
                raise StoreError(E2BIG, f"the answer has {len(answer)} bytes")
        except StoreError as error:
            kind, answer = XsWire.ERROR, error.name.encode() + b"\0"
        return XSD_SOCKMSG.pack(XsdSockmsg(kind, header.req_id, header.tx_id, len(answer))) + answer

    def _send(self) -> bool:
        """Fills the ring: the message that is going out, then events. It stops at a ring seen to be full: who reads
        from a full one sends an event, and maybe only then. Always False: the domain is to move next."""
        while self._sending or self._next_event():
            sent = self._responses.put(self._sending)
            if not sent:
                break
            self._moved = True
            del self._sending[:sent]
        return False

    def _next_event(self) -> bool:
        """Takes up the oldest event, of a watch that still is."""
        while self._events:
            watch, path = next(iter(self._events))
            del self._events[watch, path]
            if watch in self._store.watches.get(watch.path, ()):
                payload = path.encode("latin-1") + b"\0" + watch.token + b"\0"
                self._sending += XSD_SOCKMSG.pack(XsdSockmsg(XsWire.WATCH_EVENT, 0, 0, len(payload))) + payload
                return True
        return False


# Payloads. `|` of the specification is a zero byte.


def _strings(payload: bytes, count: int) -> list[bytes]:
    """<a>|<b>|...: `count` strings. Raises StoreError EINVAL."""
    *strings, rest = payload.split(b"\0")
    if len(strings) != count or rest:
        raise StoreError(EINVAL, f"not {count} strings in {len(payload)} bytes")
    return strings


def _path(payload: bytes) -> str:
    """<path>|. Raises StoreError EINVAL."""
    return _text(_strings(payload, 1)[0])


def _text(string: bytes) -> str:
    return string.decode("latin-1")  # every byte is a character; which of them may be in a path is the store's to say


def _number(string: bytes) -> int:
    """Raises StoreError EINVAL for what is no decimal number."""
    if not NUMBER.fullmatch(_text(string)):
        raise StoreError(EINVAL, "not a number")
    return int(string)


def _terminated(strings: Iterable[str]) -> bytes:
    """<string>|*."""
    return b"".join(string.encode("latin-1") + b"\0" for string in strings)


# Requests, in the order of the specification. Each gives the payload of its reply.


def _read(client: Client, payload: bytes, tx: int) -> bytes:
    """<path>| -> <value|>."""
    return client.read(_path(payload), tx)


def _write(client: Client, payload: bytes, tx: int) -> bytes:
    """<path>|<value|>."""
    path, separator, value = payload.partition(b"\0")
    if not separator:
        raise StoreError(EINVAL, "a path without an end")
    client.write(_text(path), value, tx)
    return ACK


def _mkdir(client: Client, payload: bytes, tx: int) -> bytes:
    """<path>|."""
    client.mkdir(_path(payload), tx)
    return ACK


def _rm(client: Client, payload: bytes, tx: int) -> bytes:
    """<path>|."""
    client.rm(_path(payload), tx)
    return ACK


def _directory(client: Client, payload: bytes, tx: int) -> bytes:
    """<path>| -> <child-leaf-name>|*."""
    return _terminated(client.directory(_path(payload), tx))


def _directory_part(client: Client, payload: bytes, tx: int) -> bytes:
    """<path>|<offset>| -> <gencnt>|<child-leaf-name>|*, with an empty name after the last. Clients end the offset with
    a zero byte, though the specification shows none."""
    path, offset = _strings(payload.removesuffix(b"\0") + b"\0", 2)
    node = client.node(_text(path), tx)
    answer = f"{node.generation}".encode() + b"\0"
    rest = _terminated(node.children)[_number(offset) :] + b"\0"
    whole = rest[: XENSTORE_PAYLOAD_MAX - len(answer)]
    return answer + whole[: whole.rfind(b"\0") + 1]


def _get_perms(client: Client, payload: bytes, tx: int) -> bytes:
    """<path>| -> <perm-as-string>|+."""
    return _terminated(map(str, client.get_perms(_path(payload), tx)))


def _set_perms(client: Client, payload: bytes, tx: int) -> bytes:
    """<path>|<perm-as-string>|+?."""
    path, *texts = _strings(payload, payload.count(b"\0") or 1)
    client.set_perms(_text(path), permissions(*map(_text, texts)), tx)
    return ACK


def _watch(client: Client, payload: bytes, _tx: int) -> bytes:
    """<wpath>|<token>|?. The transaction number is ignored."""
    path, token = _wpath_and_token(payload)
    client.watch(path, token)
    return ACK


def _unwatch(client: Client, payload: bytes, _tx: int) -> bytes:
    """<wpath>|<token>|?."""
    path, token = _wpath_and_token(payload)
    client.unwatch(path, token)
    return ACK


def _wpath_and_token(payload: bytes) -> tuple[str, bytes]:
    path, token, *rest = payload.split(b"\0", 2) if payload.count(b"\0") > 1 else (b"", b"")
    if not rest:
        raise StoreError(EINVAL, "a watch has a path and a token")
    return _text(path), token


def _reset_watches(client: Client, _payload: bytes, _tx: int) -> bytes:
    """|."""
    client.reset_watches()
    return ACK


def _transaction_start(client: Client, _payload: bytes, tx: int) -> bytes:
    """| -> <transid>|."""
    return f"{client.transaction_start(tx)}\0".encode()


def _transaction_end(client: Client, payload: bytes, tx: int) -> bytes:
    """T| or F|."""
    if payload not in (b"T\0", b"F\0"):
        raise StoreError(EINVAL, "a transaction ends with T or F")
    client.transaction_end(tx, payload == b"T\0")
    return ACK


def _get_domain_path(_client: Client, payload: bytes, _tx: int) -> bytes:
    """<domid>| -> <path>|."""
    return _terminated([get_domain_path(_number(*_strings(payload, 1)))])


def _is_domain_introduced(client: Client, payload: bytes, _tx: int) -> bytes:
    """<domid>| -> T| or F|."""
    domid = _number(*_strings(payload, 1))
    return b"T\0" if domid == Domid.SELF or domid in client.store.introduced else b"F\0"


REQUESTS: dict[int, Callable[[Client, bytes, int], bytes]] = {
    XsWire.READ: _read,
    XsWire.WRITE: _write,
    XsWire.MKDIR: _mkdir,
    XsWire.RM: _rm,
    XsWire.DIRECTORY: _directory,
    XsWire.DIRECTORY_PART: _directory_part,
    XsWire.GET_PERMS: _get_perms,
    XsWire.SET_PERMS: _set_perms,
    XsWire.WATCH: _watch,
    XsWire.UNWATCH: _unwatch,
    XsWire.RESET_WATCHES: _reset_watches,
    XsWire.TRANSACTION_START: _transaction_start,
    XsWire.TRANSACTION_END: _transaction_end,
    XsWire.GET_DOMAIN_PATH: _get_domain_path,
    XsWire.IS_DOMAIN_INTRODUCED: _is_domain_introduced,
}
# Domains are introduced where they are built, so dom0 cannot do it by a request either: ENOSYS.
PRIVILEGED = (XsWire.CONTROL, XsWire.INTRODUCE, XsWire.RELEASE, XsWire.RESUME, XsWire.SET_TARGET)
