"""QMP served on a socket: any number of clients after one another, CONNECTIONS of them at the same time.

One thread serves all, and waits for nobody: a client that is slow to ask is waited for by none but itself, one that is
slow to read is asked nothing more, and hung up on when more than OUTPUT_LIMIT is waiting for it. When one client too
many comes, the one that has been silent for longest goes.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from typing import Any

from minivmm.control import messages
from minivmm.control.commands import COMMANDS, VERSION, check
from minivmm.control.controlled import Controlled, untold
from minivmm.control.messages import COMMAND_NOT_FOUND, QmpError, Request, Splitter, TooMuch
from minivmm.errors import VtkError

CONNECTIONS = 8
CHUNK = 4096  # bytes read at a time: what they can ask for is answered before more is read
OUTPUT_LIMIT = 1 << 20  # bytes
FLUSH_LIMIT = 1.0  # seconds clients have to take what they were last told, when the machine ends


class Session:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.splitter = Splitter()
        self.output = bytearray(messages.greeting(VERSION))
        self.negotiated = False  # 2.3: before that, every command but one is refused
        self.hanging_up = False  # what is in `output` is the last
        self.heard = time.monotonic()


class QmpServer:
    """Serves `machine` to whoever connects to `listener`, a socket that listens, until it is closed. A context
    manager. The machine's events go to every client from here on."""

    def __init__(self, listener: socket.socket, machine: Controlled) -> None:
        self._machine = machine
        self._listener = listener
        listener.setblocking(False)
        self._sessions: dict[socket.socket, Session] = {}
        self._lock = threading.Lock()  # around the sessions' output: events come on any thread
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._deadline: float | None = None  # when to end, whoever has not been told everything
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        machine.announce = self.emit
        self._thread = threading.Thread(target=self._run, name="qmp", daemon=True)
        self._thread.start()

    def emit(self, name: str, data: dict[str, Any]) -> None:
        """Tells every client that is past negotiation. Thread-safe."""
        line = messages.event(name, data)
        with self._lock:
            for session in self._sessions.values():
                if session.negotiated and not session.hanging_up:
                    session.output += line
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Clients get what they were told so far, for up to FLUSH_LIMIT seconds, and then the end of the stream."""
        self._machine.announce = untold
        self._deadline = time.monotonic() + FLUSH_LIMIT
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    def __enter__(self) -> QmpServer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # --- the thread --------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            while not self._done():
                left = None if self._deadline is None else max(self._deadline - time.monotonic(), 0)
                for key, ready in self._selector.select(left):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj == self._wake:
                        os.eventfd_read(self._wake)
                    elif isinstance(key.data, Session) and key.data.connection in self._sessions:
                        self._attend(key.data, ready)
                for session in list(self._sessions.values()):
                    self._send(session)
        finally:
            for session in list(self._sessions.values()):
                self._hang_up(session)
            self._selector.close()

    def _done(self) -> bool:
        """Whether the server was closed, and everybody told or out of time."""
        if self._deadline is None:
            return False
        return time.monotonic() >= self._deadline or not any(session.output for session in self._sessions.values())

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it went away before it was let in, or this process is out of descriptors
            return
        if len(self._sessions) >= CONNECTIONS:
            self._hang_up(min(self._sessions.values(), key=lambda session: session.heard))
        connection.setblocking(False)
        session = Session(connection)
        with self._lock:
            self._sessions[connection] = session
        self._selector.register(connection, selectors.EVENT_READ, session)

    def _hang_up(self, session: Session) -> None:
        with self._lock:
            del self._sessions[session.connection]
        self._selector.unregister(session.connection)
        session.connection.close()

    def _attend(self, session: Session, ready: int) -> None:
        if not ready & selectors.EVENT_READ or session.output:
            return  # first it reads what it was told
        try:
            data = session.connection.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up(session)
            return
        session.heard = time.monotonic()
        try:
            for text in session.splitter.feed(data):
                answer = self._answer(session, text)
                with self._lock:
                    session.output += answer
        except TooMuch as error:
            with self._lock:
                session.output += messages.failure(QmpError(str(error)))
            session.hanging_up = True

    def _send(self, session: Session) -> None:
        """Sends what there is room for; what is left has the selector say when there is more."""
        with self._lock:
            try:
                if session.output:
                    del session.output[: session.connection.send(session.output)]
            except BlockingIOError:
                pass
            except OSError:
                session.output.clear()
                session.hanging_up = True
            left = len(session.output)
        if left > OUTPUT_LIMIT or (session.hanging_up and not left):
            self._hang_up(session)
            return
        wanted = selectors.EVENT_WRITE if left else selectors.EVENT_READ
        if self._selector.get_key(session.connection).events != wanted:
            self._selector.modify(session.connection, wanted, session)

    # --- requests ----------------------------------------------------------------------------------------------------
    def _answer(self, session: Session, text: bytes) -> bytes:
        try:
            request = messages.parse(text)
        except QmpError as error:
            return messages.failure(error)
        try:
            return messages.success(request, self._execute(session, request))
        except QmpError as error:
            refused = error
        except VtkError as error:
            refused = QmpError(": ".join(filter(None, (error.message, error.cause))))
        refused.id, refused.has_id = request.id, request.has_id
        return messages.failure(refused)

    def _execute(self, session: Session, request: Request) -> Any:
        if request.name == "qmp_capabilities":
            return _negotiate(session, request)
        if not session.negotiated:
            raise QmpError("Expecting capabilities negotiation with 'qmp_capabilities'", COMMAND_NOT_FOUND)
        command = COMMANDS.get(request.name)
        if command is None:
            raise QmpError(f"The command {request.name[:80]} has not been found", COMMAND_NOT_FOUND)
        check(request.arguments, command.arguments)
        return command.run(self._machine, request.arguments)


def _negotiate(session: Session, request: Request) -> dict[str, Any]:
    """4: out of capabilities negotiation mode, once. There are no capabilities to enable."""
    if session.negotiated:
        raise QmpError("Capabilities negotiation is already complete, command ignored", COMMAND_NOT_FOUND)
    enable = request.arguments.get("enable", [])
    if request.arguments.keys() - {"enable"} or not isinstance(enable, list) or enable:
        raise QmpError("there is no capability to enable")
    session.negotiated = True
    return {}
