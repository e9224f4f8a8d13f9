"""A command's standard streams over an ssh channel (RFC 4254, 5.2 and 6): as they come, with back-pressure both ways.

The caller's thread writes what the guest says; another reads our input. Neither holds more than one window of the
channel, so a side that stands still stands alone: output that nobody takes does not hold the input up.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from toolkit.vm.errors import Unreachable
from toolkit.vm.machine import Machine
from toolkit.vm.ssh_connection import lost

if TYPE_CHECKING:
    from paramiko import Channel

SIGNALLED = 255  # the status of a command that a signal ended: ssh(1) gives the same
CHUNK = 64 << 10  # bytes of input read at a time
TAKEN = 1 << 20  # bytes of output taken at a time
END_GRACE = 1.0  # seconds a command has to end when it was told to
LOOK = 0.2  # seconds: paramiko's one event for two streams can be lost, when one is emptied as the other is filled

Sink = Callable[[bytes], None]
Source = int | bytes | None
"""Standard input: a descriptor read as it comes, bytes, or nothing."""


class Bell:
    """A pipe by which the session's one loop is told from elsewhere that something has happened."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def ring(self, what: bytes) -> None:
        """From any thread or signal handler. One that is full has been rung."""
        with contextlib.suppress(OSError):
            os.write(self._write, what)

    def heard(self) -> bytes:
        """What it was rung with since; b"" when it was not."""
        try:
            return os.read(self._read, 64)
        except BlockingIOError:
            return b""

    def fileno(self) -> int:
        """For select(2)."""
        return self._read

    def close(self) -> None:
        """Nobody rings it any more."""
        os.close(self._read)
        os.close(self._write)


class Feeder(threading.Thread):
    """Sends standard input until it ends, the command takes no more, or `stop`."""

    def __init__(self, channel: Channel, source: int | bytes, typed: Callable[[bytes], bytes] = lambda data: data):
        super().__init__(name="ssh input", daemon=True)
        self._channel = channel
        self._source = source
        self._typed = typed
        self._bell = Bell()

    def run(self) -> None:
        """Of the thread."""
        from paramiko import SSHException

        # OSError is the channel's when the command has ended first: then its input matters no more.
        with contextlib.suppress(OSError, SSHException, EOFError):
            if isinstance(self._source, bytes):
                self._channel.sendall(self._source)
            elif not self._feed(self._source):
                return
            self._channel.shutdown_write()

    def _feed(self, source: int) -> bool:
        """Whether it came to the end of the input."""
        while True:
            readable, _, _ = select.select([source, self._bell.fileno()], [], [])
            if self._bell.fileno() in readable:
                return False
            try:
                data = os.read(source, CHUNK)
            except BlockingIOError:
                continue
            except OSError:  # EIO: the terminal has gone
                return True
            if not data:
                return True
            if text := self._typed(data):
                self._channel.sendall(text)

    def stop(self) -> None:
        """Once the channel is closed, which ends a send that waits."""
        self._bell.ring(b"s")
        self.join()
        self._bell.close()


def relay(
    machine: Machine,
    channel: Channel,
    feeder: Feeder,
    stdout: Sink,
    stderr: Sink,
    *,
    timeout: float | None = None,
    bell: Bell | None = None,
    rung: Callable[[bytes], bool] = lambda _: False,
) -> int | None:
    """Carries the streams of a channel on which a command was started. Returns its exit status, SIGNALLED when a signal
    ended it; None when `rung`, called with what the bell was rung with, says that it is enough.

    A command whose `timeout` (seconds) is over, and one that Ctrl-C interrupts, is sent a signal (RFC 4254, 6.9); the
    server of a user who is not root passes it on. Raises Unreachable.
    """
    from paramiko import SSHException

    deadline = None if timeout is None else time.monotonic() + timeout
    feeder.start()
    try:
        while True:
            ended = bool(channel.eof_received) or channel.closed  # looked at before the streams are drained
            if not _drained(machine, channel, stdout, stderr) and ended:
                if channel.closed or channel.exit_status_ready():
                    break
                channel.status_event.wait(_left(deadline))
            left = _left(deadline)
            if left is not None and left <= 0:
                _briefly(send_signal, channel, "TERM")
                raise Unreachable(
                    f"the command has not ended within {timeout:g} s",
                    cause="it was told to end (SIGTERM), and its connection closed",
                    remedy="--timeout",
                )
            if ended:
                continue
            watched = [channel.fileno()] + ([] if bell is None else [bell.fileno()])
            readable, _, _ = select.select(watched, [], [], LOOK if left is None else min(left, LOOK))
            if bell is not None and bell.fileno() in readable and rung(bell.heard()):
                return None
        return _status(machine, channel)
    except KeyboardInterrupt:
        _briefly(send_signal, channel, "INT")
        channel.status_event.wait(END_GRACE)
        raise
    except (SSHException, EOFError) as error:
        raise lost(machine, f"the connection broke: {error or type(error).__name__}") from error
    finally:
        if not _briefly(_close, channel):
            channel.get_transport().close()  # the feeder stands in a send to a guest that stands still
        feeder.stop()


def _drained(machine: Machine, channel: Channel, stdout: Sink, stderr: Sink) -> bool:
    """Whether there was anything. What a sink raises is the caller's, what the channel raises is the connection's."""
    moved = False
    for ready, receive, sink in (
        (channel.recv_ready, channel.recv, stdout),
        (channel.recv_stderr_ready, channel.recv_stderr, stderr),
    ):
        while ready():
            try:
                data = receive(TAKEN)
            except OSError as error:
                raise lost(machine, f"the connection broke: {error}") from error
            if not data:
                break
            sink(data)
            moved = True
    return moved


def _status(machine: Machine, channel: Channel) -> int:
    status = channel.recv_exit_status()
    if status >= 0:
        return status
    transport = channel.get_transport()
    if not transport.is_active():
        raise lost(machine, "the connection ended before the command did")
    return SIGNALLED


def send_signal(channel: Channel, name: str) -> None:
    """RFC 4254, 6.9: `name` is a signal's without its SIG. Nobody answers, and a connection that is gone needs none."""
    from paramiko import Message, SSHException
    from paramiko.common import cMSG_CHANNEL_REQUEST

    message = Message()
    message.add_byte(cMSG_CHANNEL_REQUEST)
    message.add_int(channel.remote_chanid)
    message.add_string("signal")
    message.add_boolean(False)  # want reply
    message.add_string(name)
    with contextlib.suppress(OSError, SSHException, EOFError):
        # paramiko has no request of this kind of its own.
        channel.get_transport()._send_user_message(message)  # type: ignore[attr-defined]


def _close(channel: Channel) -> None:
    from paramiko import SSHException

    with contextlib.suppress(OSError, SSHException, EOFError):
        channel.close()


def _briefly(action: Callable[..., None], *arguments: object) -> bool:
    """Whether it was done within END_GRACE: a connection to a guest that stands still takes nothing any more."""
    doing = threading.Thread(target=action, args=arguments, daemon=True)
    doing.start()
    doing.join(END_GRACE)
    return not doing.is_alive()


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()
