"""An ssh server of a few commands on a port of 127.0.0.1, in this process."""

from __future__ import annotations

import contextlib
import socket
import threading

from paramiko import Channel, PKey, ServerInterface, Transport
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED


class Guest(ServerInterface):
    """Lets the one key in, and knows the commands of `_answer`."""

    def __init__(self, public_key: str) -> None:
        self._public_key = public_key.split()[1]

    def check_auth_publickey(self, username: str, key: PKey) -> int:  # noqa: ARG002
        return AUTH_SUCCESSFUL if key.get_base64() == self._public_key else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:  # noqa: ARG002
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: Channel, command: bytes) -> bool:
        threading.Thread(target=_answer, args=(channel, command.decode()), daemon=True).start()
        return True


def _answer(channel: Channel, command: str) -> None:
    typed = b""
    while data := channel.recv(4096):  # to its end, which comes after the request was granted
        typed += data
    if command == "hang":
        return
    if command == "cat":
        channel.sendall(typed)
        channel.send_exit_status(0)
    elif command == "vanish":
        transport = channel.get_transport()
        transport.close()
        return
    else:
        channel.sendall(f"ran {command}\n".encode() + b"x" * 100_000)
        channel.sendall_stderr(b"words\n")
        channel.send_exit_status(7)
    channel.close()


class SshServer:
    """Listens until it is closed."""

    def __init__(self, port: int, host_key: PKey, public_key: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self._host_key = host_key
        self._public_key = public_key
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed before
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            transport = Transport(connection)
            transport.add_server_key(self._host_key)
            transport.start_server(server=Guest(self._public_key), event=threading.Event())
