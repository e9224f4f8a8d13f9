"""A command in a machine's guest over ssh (paramiko), its output as it comes and its exit status.

The machine's own key opens; the host key that the guest shows first is kept, and another one later is refused.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from toolkit.vm.errors import Unreachable
from toolkit.vm.machine import Machine
from toolkit.vm.waiting import wait

if TYPE_CHECKING:
    from paramiko import Channel, PKey, Transport

CONNECT_TIMEOUT = 30.0  # seconds for the key exchange and the log-in: an emulated guest is slow at both
SIGNALLED = 255  # the status of a command that a signal ended: ssh(1) gives the same
CHUNK = 32 << 10  # bytes
POLL_PERIOD = 0.02  # seconds between looks at a silent channel: paramiko has no descriptor for both streams

# It tells on standard error what its exceptions tell.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)

Sink = Callable[[bytes], None]


def execute(
    machine: Machine,
    command: str,
    *,
    stdout: Sink,
    stderr: Sink,
    stdin: bytes | None = None,
    user: str | None = None,
    wait_timeout: float = 60.0,
    timeout: float | None = None,
) -> int:
    """Runs `command` by the log-in shell of the guest's user; waits `wait_timeout` seconds for the ssh server.

    Returns the command's exit status; SIGNALLED when a signal ended it. Raises Unreachable, and Unfinished for a server
    or an end that did not come in time.
    """
    from paramiko import SSHException

    wait(machine, "ssh", wait_timeout)
    try:
        transport = _connect(machine, user or machine.config().user)
    except (OSError, SSHException, EOFError) as error:
        raise _unreachable(machine, str(error) or type(error).__name__) from error
    try:
        channel = transport.open_session(timeout=CONNECT_TIMEOUT)
        channel.exec_command(command)
        if stdin:
            channel.sendall(stdin)
        channel.shutdown_write()
        return _follow(machine, transport, channel, stdout, stderr, timeout)
    except (OSError, SSHException, EOFError) as error:
        raise _unreachable(machine, f"the connection broke: {error or type(error).__name__}") from error
    finally:
        transport.close()


def _connect(machine: Machine, user: str) -> Transport:
    from paramiko import AuthenticationException, Ed25519Key, Transport

    key = Ed25519Key.from_private_key_file(str(machine.directory / "id_ed25519"))
    address = machine.ssh_address()
    transport = Transport(socket.create_connection(address, CONNECT_TIMEOUT))
    try:
        transport.start_client(timeout=CONNECT_TIMEOUT)
        _check_host_key(machine, transport.get_remote_server_key())
        transport.auth_timeout = CONNECT_TIMEOUT
        transport.auth_publickey(user, key)
    except AuthenticationException as error:
        transport.close()
        raise Unreachable(
            f"machine {machine.name!r} does not let {user!r} in",
            cause=f"its guest does not know the machine's key ({error})",
            remedy=f"--user, or put {machine.directory / 'id_ed25519.pub'} into its authorized_keys on the console",
        ) from error
    except BaseException:
        transport.close()
        raise
    return transport


def _check_host_key(machine: Machine, key: PKey) -> None:
    """Raises Unreachable when it is not the one the guest showed at first."""
    shown = f"{key.get_name()} {key.get_base64()}"
    kept = machine.directory / "known_hosts"
    with machine.directory.locked(f"exec {machine.name}"):
        if not kept.exists():
            host, port = machine.ssh_address()
            machine.directory.write("known_hosts", f"[{host}]:{port} {shown}\n".encode())
            return
        known = kept.read_text().split(None, 1)[1].strip()
    if known != shown:
        raise Unreachable(
            f"machine {machine.name!r} shows another host key than at first",
            cause="its guest was installed anew, or another program answers on its port",
            remedy=f"rm {kept}  (when you know why)",
        )


def _follow(
    machine: Machine, transport: Transport, channel: Channel, stdout: Sink, stderr: Sink, timeout: float | None
) -> int:
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        ended = channel.exit_status_ready() and (channel.eof_received or channel.closed)
        moved = False
        while channel.recv_ready():
            stdout(channel.recv(CHUNK))
            moved = True
        while channel.recv_stderr_ready():
            stderr(channel.recv_stderr(CHUNK))
            moved = True
        if ended and not moved:
            status = channel.recv_exit_status()
            if status < 0 and not transport.is_active():
                raise _unreachable(machine, "the connection ended before the command did")
            return status if status >= 0 else SIGNALLED
        if deadline is not None and time.monotonic() >= deadline:
            raise Unreachable(
                f"the command has not ended within {timeout:g} s", cause="it was left running", remedy="--timeout"
            )
        if not moved:
            channel.status_event.wait(POLL_PERIOD)


def _unreachable(machine: Machine, cause: str) -> Unreachable:
    return Unreachable(
        f"machine {machine.name!r} is not reached by ssh", cause=cause, remedy=f"vtk vm logs {machine.name}"
    )
