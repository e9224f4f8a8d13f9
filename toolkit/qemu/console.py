"""The console end of a QEMU chardev socket: a thread that hands on what the guest writes and feeds it what is typed.

A thread of its own, not the QMP loop: what the guest prints is timed by those who measure it, and whoever consumes
it may be slow (a pager, a terminal held with Ctrl-S) without the machine's own supervision standing still.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable

from minivmm.tail import Tail

CONSOLE_LIMIT = 1 << 20
"""Bytes of output kept for RunResult.console, the last ones."""

INPUT_LIMIT = 1 << 20
"""Bytes of input that may wait for a guest that does not read; more is refused."""


class SerialLine:
    """Both directions of one console. `sink` is called on the line's thread with each piece of output as it comes."""

    def __init__(self, line: socket.socket, sink: Callable[[bytes], None] | None, on_end: Callable[[], None]) -> None:
        self._socket = line
        self._sink = sink
        self._on_end = on_end
        self._lock = threading.Lock()
        self._pending = bytearray()
        self._output = Tail(CONSOLE_LIMIT)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.failure: BaseException | None = None
        """What the sink raised, after which output is collected but no longer handed on."""
        line.setblocking(False)
        self._thread = threading.Thread(target=self._pump, name="vtk-qemu-console", daemon=True)
        self._thread.start()

    @property
    def output(self) -> bytes:
        """What came so far, the last `CONSOLE_LIMIT` bytes."""
        return bytes(self._output)

    @property
    def pending(self) -> int:
        """Bytes of input that wait here."""
        return len(self._pending)

    def send(self, data: bytes) -> None:
        """Queues `data` for the guest. Raises BufferError when `INPUT_LIMIT` bytes already wait. Thread-safe."""
        with self._lock:
            if len(self._pending) + len(data) > INPUT_LIMIT:
                raise BufferError(f"the guest has left {len(self._pending)} bytes of input unread")
            self._pending += data
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Joins the thread, which ends when QEMU's end is closed, and closes ours."""
        self._thread.join()
        self._socket.close()
        os.close(self._wake)

    def _pump(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        line = self._socket.fileno()
        try:
            while True:
                poll.register(line, select.POLLIN | (select.POLLOUT if self._pending else 0))
                for fd, events in poll.poll():
                    if fd == self._wake:
                        os.eventfd_read(self._wake)
                        continue
                    if events & select.POLLOUT:
                        self._feed()
                    if events & ~select.POLLOUT and not self._drain():
                        return
        finally:
            self._on_end()

    def _drain(self) -> bool:
        """Hands on one piece of output. False at the end of the line."""
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        self._output.write(data)
        if self._sink is not None:
            try:
                self._sink(data)
            except Exception as failure:  # noqa: BLE001 - the caller's code: kept, and raised where it can be seen
                self.failure, self._sink = failure, None
        return True

    def _feed(self) -> None:
        with self._lock:
            try:
                sent = self._socket.send(self._pending)
            except BlockingIOError:
                return
            except OSError:
                sent = len(self._pending)  # QEMU is gone: nobody will read it
            del self._pending[:sent]
