"""Two ssh servers on a port of 127.0.0.1: one of a few commands in this process, which misbehaves when asked to, and
OpenSSH's."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from paramiko import (
    Channel,
    PKey,
    ServerInterface,
    SFTPAttributes,
    SFTPHandle,
    SFTPServer,
    SFTPServerInterface,
    Transport,
)
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED
from paramiko.sftp import SFTP_EOF


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


CONTENT = bytes(range(251)) * 400


class Answering(SFTPHandle):
    """A file of CONTENT, of which every read gets a thousand bytes at most, or with `greedy` one byte too many."""

    def __init__(self, greedy: bool) -> None:
        super().__init__()
        self._greedy = greedy

    def stat(self) -> SFTPAttributes:
        attributes = SFTPAttributes()
        attributes.st_mode, attributes.st_size = stat.S_IFREG | 0o644, len(CONTENT)
        return attributes

    def read(self, offset: int, length: int) -> bytes | int:
        if self._greedy:
            return bytes(length + 1)
        return CONTENT[offset : offset + min(length, 1000)] or SFTP_EOF


class Listing(SFTPServerInterface):
    """Directories, what it likes in them, and the files /short and /greedy."""

    def __init__(self, _server: ServerInterface, names: Sequence[str]) -> None:
        self._names = names

    def stat(self, path: str) -> SFTPAttributes:
        return self.lstat(path)

    def lstat(self, path: str) -> SFTPAttributes:
        attributes = SFTPAttributes()
        attributes.st_mode = stat.S_IFREG | 0o644 if path in ("/short", "/greedy") else stat.S_IFDIR | 0o755
        return attributes

    def open(self, path: str, flags: int, attr: SFTPAttributes) -> SFTPHandle:  # noqa: ARG002
        return Answering(greedy=path == "/greedy")

    def list_folder(self, path: str) -> list[SFTPAttributes]:  # noqa: ARG002
        found = []
        for name in self._names:
            attributes = SFTPAttributes()
            attributes.filename = name
            attributes.st_mode = stat.S_IFREG | 0o644
            found.append(attributes)
        return found


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
    """Listens until it is closed. With `listing` it has an SFTP server too, in which every directory has files of these
    names."""

    def __init__(self, port: int, host_key: PKey, public_key: str, listing: Sequence[str] | None = None) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listing = listing
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
            if self._listing is not None:
                transport.set_subsystem_handler("sftp", SFTPServer, Listing, self._listing)
            transport.start_server(server=Guest(self._public_key), event=threading.Event())


class OpenSsh:
    """OpenSSH's sshd as a process of the test's, for this user, on a port of 127.0.0.1. Ended by `close`."""

    def __init__(self, directory: Path, port: int, authorized_keys: Sequence[Path], *options: str) -> None:
        binary = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        assert binary is not None
        directory.mkdir(exist_ok=True)
        host_key = directory / "host_key"
        if not host_key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host_key], check=True)
        (directory / "authorized_keys").write_text("".join(key.read_text() for key in authorized_keys))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it puts its unprivileged half (sshd(8), FILES)
        lines = [
            *options,  # the first value counts
            f"ListenAddress 127.0.0.1:{port}",
            f'HostKey "{host_key}"',
            f'AuthorizedKeysFile "{directory / "authorized_keys"}"',
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "PermitRootLogin prohibit-password",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "Subsystem sftp internal-sftp",
        ]
        (directory / "sshd_config").write_text("\n".join(lines) + "\n")
        self.log = directory / "log"
        setpriv = shutil.which("setpriv")
        tied = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []  # it ends with the test, however that ends
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [*tied, binary, "-D", "-e", "-f", directory / "sshd_config"], stdin=subprocess.DEVNULL, stderr=log
            )
        deadline = time.monotonic() + 10.0
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1.0).close()
                return
            except OSError:
                assert self._process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)

    @staticmethod
    def missing() -> str:
        """Why it cannot be had on this host; "" when it can."""
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
        absent = [name for name in ("sshd", "ssh", "ssh-keygen") if shutil.which(name, path=path) is None]
        return f"no {', '.join(absent)}: apt install openssh-server openssh-client" if absent else ""

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10.0)
