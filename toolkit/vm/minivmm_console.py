"""The serial console of a minivmm machine, as its process offers it: a log on disk, and a socket for one at a time.

The guest is never held back: the log has all of it, and somebody on the socket who does not read for OUTPUT_LIMIT bytes
misses what comes until there is room again.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading

from minivmm.control.controlled import Controlled
from toolkit.vm.console_log import bound
from toolkit.vm.directory import MachineDirectory

LOG = "console.log"
LOOK_PERIOD = 1 << 20  # bytes written between looks at how long the log has become
OUTPUT_LIMIT = 256 << 10  # bytes that wait for somebody slow
INPUT_WINDOW = 4096  # bytes a guest may leave unread before no more is taken
INPUT_PAUSE = 10  # milliseconds between looks at whether the guest has read
FLUSH_LIMIT = 1.0  # seconds to take the last output when the machine ends


class ConsoleLog:
    """console.log, kept within bounds; the one of the run before is console.log.1. A disk that is full costs what is
    not written, and nothing else. Raises OSError when it cannot be made."""

    def __init__(self, machine: MachineDirectory) -> None:
        self._path = machine / LOG
        with contextlib.suppress(FileNotFoundError):
            self._path.replace(machine / f"{LOG}.1")
        self._file = open(self._path, "wb", buffering=0)  # noqa: SIM115  as long as the machine
        self._since_look = 0

    def write(self, data: bytes) -> None:
        """Appends."""
        with contextlib.suppress(OSError):
            self._since_look += self._file.write(data)
            if self._since_look >= LOOK_PERIOD:
                self._since_look = 0
                bound(self._path)


class Console:
    """Joins the machine's console with whoever connects to `listener`. `write` is the machine's console callback."""

    def __init__(self, listener: socket.socket, log: ConsoleLog) -> None:
        self._listener = listener
        listener.setblocking(False)
        self._log = log
        self._lock = threading.Lock()  # around the log and the output
        self._output = bytearray()
        self._attended = False
        self._closing = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None

    def write(self, data: bytes) -> None:
        """What the guest said. On a vCPU's thread; waits for nobody but the disk."""
        with self._lock:
            self._log.write(data)
            if not self._attended or len(self._output) >= OUTPUT_LIMIT:
                return
            begins = not self._output
            self._output += data
        if begins:
            os.eventfd_write(self._wake, 1)

    def serve(self, machine: Controlled) -> None:
        """From here on people can be at the console."""
        self._thread = threading.Thread(target=self._run, args=(machine,), name="console", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Whoever is there gets the last output, in FLUSH_LIMIT seconds, and then the end of the stream."""
        self._closing = True
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join(2 * FLUSH_LIMIT)

    # --- the thread --------------------------------------------------------------------------------------------------
    def _run(self, machine: Controlled) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._listener, select.POLLIN)
        while not self._closing:
            ready = {fd for fd, _ in poll.poll()}
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if self._listener.fileno() in ready:
                with contextlib.suppress(OSError):  # who knocked is gone
                    connection, _ = self._listener.accept()
                    with connection:
                        self._attend(connection, machine)

    def _attend(self, connection: socket.socket, machine: Controlled) -> None:
        """Until somebody leaves, or the machine has ended and all is said. Raises OSError when the other side broke."""
        connection.setblocking(False)
        with self._lock:
            self._output.clear()
            self._attended = True
        try:
            self._join(connection, machine)
        finally:
            with self._lock:
                self._attended = False

    def _join(self, connection: socket.socket, machine: Controlled) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while not self._closing:
            with self._lock:
                says = bool(self._output)
            hears = machine.pending_input < INPUT_WINDOW
            poll.register(connection, select.POLLIN * hears | select.POLLOUT * says)
            for fd, event in poll.poll(None if hears else INPUT_PAUSE):
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                    continue
                if event & select.POLLOUT:
                    self._send(connection)
                if event & select.POLLIN:
                    if not (typed := connection.recv(INPUT_WINDOW)):
                        return
                    machine.send(typed)
                elif event & (select.POLLHUP | select.POLLERR):
                    return
        connection.settimeout(FLUSH_LIMIT)
        with self._lock:
            rest = bytes(self._output)
        connection.sendall(rest)

    def _send(self, connection: socket.socket) -> None:
        with self._lock, contextlib.suppress(BlockingIOError):
            del self._output[: connection.send(self._output)]
