"""A guest's files by the SSH File Transfer Protocol, version 3 (draft-ietf-secsh-filexfer-02), over paramiko.

Requests are sent ahead of their replies, DEPTH of them, in both directions; every write is confirmed before a file gets
its name. paramiko's own file objects wait for a whole batch, forget the errors of the last one, and take only UTF-8
names: so reading, writing and listing go by its requests, which are protocol messages one to one.

What the guest says is checked before it is used: it may be hostile.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from toolkit.vm.errors import Unreachable, Unsupported
from toolkit.vm.machine import Machine
from toolkit.vm.ssh_connection import lost
from toolkit.vm.ssh_files import Facts, Kind, part_of

if TYPE_CHECKING:
    from paramiko import Message, SFTPAttributes, SFTPClient, Transport

BLOCK = 32 << 10  # bytes a request: every server takes that much (draft, 3)
DEPTH = 32  # requests under way: half a window of the channel
IDLE_TIMEOUT = 60.0  # seconds without an answer
CLEANUP_TIMEOUT = 2.0  # seconds for each step of taking away a part after Ctrl-C
MAX_ENTRIES = 1_000_000  # of one directory: what a guest says takes memory here
MAX_LINK = 4096  # bytes of a symbolic link's text, PATH_MAX


def open_files(machine: Machine, transport: Transport) -> GuestFiles:
    """Raises Unsupported when the guest has no SFTP server, Unreachable."""
    from paramiko import SFTPClient, SSHException

    try:
        client = SFTPClient.from_transport(transport)
    except (OSError, SSHException, EOFError) as error:
        if not transport.is_active():
            raise lost(machine, error) from error
        raise Unsupported(
            f"the guest of machine {machine.name!r} has no SFTP server, by which files are copied",
            cause=f"its ssh server starts none: {error or type(error).__name__}",
            remedy=f"apt install openssh-sftp-server there, or vtk vm exec {machine.name} -- cat FILE > FILE "
            f"and vtk vm exec {machine.name} -- sh -c 'cat > FILE' < FILE",
        ) from error
    assert client is not None
    channel = client.get_channel()
    assert channel is not None
    channel.settimeout(IDLE_TIMEOUT)
    return GuestFiles(machine, client)


class Replies:
    """Requests under way and the replies to them, in whatever order those come."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._there: dict[int, tuple[int, Message]] = {}

    def request(self, kind: int, *fields: object) -> int:
        """Returns its number."""
        number: int = self._client._async_request(self, kind, *fields)
        return number

    def _async_response(self, kind: int, message: Message, number: int) -> None:
        """paramiko's: a reply has come."""
        self._there[number] = kind, message

    def take(self, number: int) -> Message:
        """The reply, an SSH_FXP_STATUS that is no error included. Raises EOFError at a file's end, OSError."""
        from paramiko.sftp import CMD_STATUS

        while number not in self._there:
            self._client._read_response()
        kind, message = self._there.pop(number)
        if kind == CMD_STATUS:
            self._client._convert_status(message)
        return message


class GuestFiles:
    """Those of a machine's guest. A path that does not begin with / begins at the user's home."""

    def __init__(self, machine: Machine, client: SFTPClient) -> None:
        self._machine = machine
        self._client = client
        self._raw: Any = client  # for its requests, of which the type stubs know nothing

    def shown(self, path: str) -> str:
        return f"{self._machine.name}:{path}"

    def facts(self, path: str, *, follow: bool) -> Facts | None:
        with self._answering():
            try:
                return _facts((self._client.stat if follow else self._client.lstat)(os.fsencode(path)))
            except FileNotFoundError:
                return None

    def entries(self, path: str) -> list[tuple[str, Facts]]:
        from paramiko import SFTPAttributes
        from paramiko.sftp import CMD_CLOSE, CMD_OPENDIR, CMD_READDIR

        found: list[tuple[str, Facts]] = []
        with self._answering():
            handle = self._raw._request(CMD_OPENDIR, os.fsencode(path))[1].get_binary()
            try:
                while True:
                    try:
                        message = self._raw._request(CMD_READDIR, handle)[1]
                    except EOFError:
                        break
                    for _ in range(message.get_int()):
                        name = os.fsdecode(message.get_binary())
                        message.get_binary()  # longname: for people
                        attributes = SFTPAttributes._from_msg(message)  # type: ignore[attr-defined]
                        if name not in (".", ".."):
                            found.append((name, _facts(attributes)))
                        if len(found) > MAX_ENTRIES or not name:
                            raise OSError(f"a listing that cannot be: entry {len(found)} is {name!r}")
            finally:
                self._raw._async_request(type(None), CMD_CLOSE, handle)
        # Names that lead elsewhere, or a link and a directory of one name, would lead us to write elsewhere.
        names = {name for name, _ in found}
        if len(names) < len(found) or any("/" in name or "\0" in name for name in names):
            raise OSError("a listing that cannot be: a name twice, or with a slash in it")
        return found

    def link_target(self, path: str) -> str:
        with self._answering():
            target = os.fsdecode(self._client.readlink(os.fsencode(path)) or "")
        if not target or len(target) > MAX_LINK or "\0" in target:
            raise OSError("a symbolic link that leads nowhere")
        return target

    def read(self, path: str) -> Generator[bytes, None, None]:
        from paramiko.sftp import CMD_READ, int64

        with self._answering():
            file: Any = self._client.open(os.fsencode(path), "rb")
            try:
                size = file.stat().st_size or 0
                replies = Replies(self._raw)
                under_way: deque[tuple[int, int, int]] = deque()  # number, offset, bytes
                ahead = 0
                while True:
                    # As far as the file is said to go; from there on, one at a time until it ends.
                    while not under_way or (len(under_way) < DEPTH and ahead < size):
                        under_way.append((replies.request(CMD_READ, file.handle, int64(ahead), BLOCK), ahead, BLOCK))
                        ahead += BLOCK
                    number, offset, asked = under_way.popleft()
                    try:
                        data = replies.take(number).get_binary()
                    except EOFError:
                        return
                    if not 0 < len(data) <= asked:
                        raise OSError(f"a reply of {len(data)} bytes to a request for {asked}")
                    yield data
                    if rest := asked - len(data):  # a read may be short before the end (draft, 6.4)
                        offset += len(data)
                        number = replies.request(CMD_READ, file.handle, int64(offset), rest)
                        under_way.appendleft((number, offset, rest))
            finally:
                file._close(async_=True)  # without waiting: Ctrl-C ends us here too

    def write(self, path: str, chunks: Iterable[bytes], facts: Facts | None, *, preserve: bool) -> None:
        there = self.facts(path, follow=False)
        with self._answering():
            if there is not None and there.kind is Kind.OTHER:
                with contextlib.closing(self._client.open(os.fsencode(path), "r+b")) as file:
                    self._send(file, chunks)
                return
            part = os.fsencode(part_of(path))
            file = self._client.open(part, "wxb")
            try:
                created = stat.S_IMODE(self._client.stat(part).st_mode or 0o600)
                if facts is not None and preserve:
                    mode = facts.mode
                elif there is not None and there.kind is Kind.FILE:
                    mode = there.mode
                else:  # the server's umask, which lets be executed whom it lets read
                    wanted = 0o666 if facts is None else facts.mode
                    mode = wanted & (created | (created & 0o444) >> 2)
                if mode != created:
                    self._client.chmod(part, mode)  # before there is anything in it to be seen
                self._send(file, chunks)
                file.close()
                if facts is not None and preserve:
                    self._client.chmod(part, mode)  # writing takes the set-user-ID bit away
                    self._client.utime(part, (facts.mtime, facts.mtime))
                self._rename(part, os.fsencode(path))
            except BaseException:
                self._remove_part(part)
                raise

    def make_directory(self, path: str, mode: int) -> None:
        with self._answering():
            self._client.mkdir(os.fsencode(path), mode & 0o777 | stat.S_IRWXU)

    def make_link(self, path: str, target: str) -> None:
        part = os.fsencode(part_of(path))
        with self._answering():
            self._client.symlink(os.fsencode(target), part)
            try:
                self._rename(part, os.fsencode(path))
            except BaseException:
                self._remove_part(part)
                raise

    def settle(self, path: str, facts: Facts, *, preserve: bool) -> None:
        name = os.fsencode(path)
        with self._answering():
            if preserve:
                self._client.chmod(name, facts.mode)
                self._client.utime(name, (facts.mtime, facts.mtime))
            elif ~facts.mode & stat.S_IRWXU:
                made = stat.S_IMODE(self._client.stat(name).st_mode or 0)
                self._client.chmod(name, made & (facts.mode | 0o7077))

    def _send(self, file: Any, chunks: Iterable[bytes]) -> None:
        """Returns when every byte is confirmed."""
        from paramiko.sftp import CMD_WRITE, int64

        replies = Replies(self._raw)
        under_way: deque[int] = deque()
        offset = 0
        for chunk in chunks:
            for begin in range(0, len(chunk), BLOCK):
                block = chunk[begin : begin + BLOCK]
                under_way.append(replies.request(CMD_WRITE, file.handle, int64(offset), block))
                offset += len(block)
                if len(under_way) >= DEPTH:
                    replies.take(under_way.popleft())
        while under_way:
            replies.take(under_way.popleft())

    def _rename(self, part: bytes, name: bytes) -> None:
        """Replaces what is there: posix-rename@openssh.com; where a server has no such request, in two steps."""
        try:
            self._client.posix_rename(part, name)
        except OSError as error:
            if "unsupported" not in str(error).lower():
                raise
            with contextlib.suppress(FileNotFoundError):
                self._client.remove(name)
            self._client.rename(part, name)

    def _remove_part(self, part: bytes) -> None:
        """On a channel of its own: Ctrl-C may have cut a message on the other in two."""
        from paramiko import SFTPClient, SSHException

        channel = self._client.get_channel()
        assert channel is not None
        with contextlib.suppress(OSError, SSHException, EOFError):
            fresh = channel.get_transport().open_session(timeout=CLEANUP_TIMEOUT)
            fresh.settimeout(CLEANUP_TIMEOUT)
            fresh.invoke_subsystem("sftp")
            SFTPClient(fresh).remove(part)

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Raises Unreachable for a guest that is gone or silent; the file's errors pass."""
        from paramiko import SSHException

        try:
            yield
        except TimeoutError as error:
            raise Unreachable(
                f"the guest of machine {self._machine.name!r} has not answered for {IDLE_TIMEOUT:g} s",
                cause=f"it is {self._machine.status().state.value}",
                remedy=f"vtk vm show {self._machine.name}",
            ) from error
        except (SSHException, EOFError) as error:
            raise lost(self._machine, error) from error
        except OSError as error:
            channel = self._client.get_channel()
            if channel is None or channel.closed or not channel.get_transport().is_active():
                raise lost(self._machine, error) from error
            if error.errno is None and str(error) == "Failure":  # SSH_FX_FAILURE: all that version 3 has to say
                raise OSError("its sftp server fails (a full disk, or a name that cannot be there)") from error
            raise


def _facts(attributes: SFTPAttributes) -> Facts:
    """A server that does not tell the kind has a plain file."""
    mode = attributes.st_mode if attributes.st_mode is not None else stat.S_IFREG | 0o644
    return Facts.of(mode, attributes.st_size or 0, attributes.st_mtime or 0)
