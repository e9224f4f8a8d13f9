"""A connection to a machine's ssh server (paramiko): it answers, shows the pinned host key, and lets a key in.

The keys, in this order: the machine's own; those of ~/.ssh/config (toolkit.vm.ssh_settings); those of ssh-agent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit.vm import waiting
from toolkit.vm.errors import Unfinished, Unreachable
from toolkit.vm.machine import POLL_PERIOD, Machine
from toolkit.vm.ssh_host_key import HostKey, check, pinned
from toolkit.vm.ssh_settings import Settings, settings_of

if TYPE_CHECKING:
    from paramiko import PKey, Transport

CONNECT_TIMEOUT = 30.0  # seconds for each step of the key exchange and the log-in: an emulated guest is slow at both
MAX_KEYS = 5  # tried: sshd hangs up at the sixth (MaxAuthTries in sshd_config(5))
PROXY_GRACE = 2.0  # seconds a proxy command has to end by itself

# AES-GCM first: it needs no separate MAC and is the quickest here. The rest are paramiko's, in its order.
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
KEY_ALGORITHMS = {"rsa-sha2-512": "ssh-rsa", "rsa-sha2-256": "ssh-rsa"}
"""Host key algorithms (RFC 8332) with another name than the key they use."""

# It tells on standard error what its exceptions tell.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def connected(machine: Machine, *, user: str | None = None, wait_timeout: float = 60.0) -> Iterator[Transport]:
    """A connection that is logged in, closed at the block's end; waits `wait_timeout` seconds for the server.

    Raises Unreachable, Unfinished for a server that does not come in time, ConfigError for a ~/.ssh/config that cannot
    be understood, StateError.
    """
    from paramiko import SSHException

    settings = settings_of(machine, user)
    with contextlib.ExitStack() as held:
        try:
            if settings.proxy:
                stream = _proxied(machine, settings, wait_timeout, held)
            else:
                stream = _answering(machine, wait_timeout)
            transport = _open(machine, stream)
            held.callback(transport.close)
            _log_in(machine, transport, settings)
        except (SSHException, EOFError, OSError) as error:
            raise lost(machine, error) from error
        yield transport


def lost(machine: Machine, error: BaseException | str) -> Unreachable:
    """The connection is not to be had, or broke."""
    cause = error if isinstance(error, str) else str(error) or type(error).__name__
    return Unreachable(
        f"machine {machine.name!r} is not reached by ssh", cause=cause, remedy=f"vtk vm logs {machine.name}"
    )


def _answering(machine: Machine, timeout: float) -> socket.socket:
    """A connection on which the server has greeted; its greeting is still to be read."""
    if (stream := _greeted(machine.ssh_address(), min(waiting.GREETING_TIMEOUT, timeout))) is not None:
        return stream
    try:
        waiting.wait(machine, "ssh", timeout)  # it says why none can come
    except Unfinished as error:
        error.remedy = error.remedy.replace("--timeout", "--wait")  # as the option is called here
        raise
    return socket.create_connection(machine.ssh_address(), CONNECT_TIMEOUT)


def _greeted(address: tuple[str, int], timeout: float) -> socket.socket | None:
    stream = None
    try:
        stream = socket.create_connection(address, timeout)
        if stream.recv(4, socket.MSG_PEEK) == b"SSH-":
            stream.settimeout(None)
            return stream
    except OSError:
        pass
    if stream is not None:
        stream.close()
    return None


def _proxied(machine: Machine, settings: Settings, timeout: float, held: contextlib.ExitStack) -> socket.socket:
    """The connection that ~/.ssh/config's command makes. Raises Unreachable when it gives none in time."""
    deadline = time.monotonic() + timeout
    while True:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {settings.proxy}"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                start_new_session=True,
            )
        held.callback(_end, process)
        held.callback(ours.close)
        left = max(deadline - time.monotonic(), POLL_PERIOD)
        ours.settimeout(left)
        with contextlib.suppress(OSError):
            if ours.recv(4, socket.MSG_PEEK) == b"SSH-":
                ours.settimeout(None)
                return ours
        if time.monotonic() >= deadline or machine.status().state in waiting.ENDED:
            raise lost(machine, f"no ssh server answers through {settings.proxy!r} (ProxyCommand of ~/.ssh/config)")
        time.sleep(min(1.0, left))


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(PROXY_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _open(machine: Machine, stream: socket.socket) -> Transport:
    """Keys are exchanged and the host key is the pinned one."""
    from paramiko import Transport

    try:
        transport = Transport(stream)
    except BaseException:
        stream.close()
        raise
    try:
        transport.banner_timeout = transport.handshake_timeout = CONNECT_TIMEOUT
        options = transport.get_security_options()
        options.ciphers = (*CIPHERS, *(name for name in options.ciphers if name not in CIPHERS))
        # A server with several keys shows the one that is asked for first.
        known = {key.kind for key in pinned(machine)}
        options.key_types = sorted(options.key_types, key=lambda name: KEY_ALGORITHMS.get(name, name) not in known)
        transport.start_client(timeout=CONNECT_TIMEOUT)
        shown = transport.get_remote_server_key()
        check(machine, HostKey(shown.get_name(), shown.get_base64()))
    except BaseException:
        transport.close()
        raise
    return transport


def _log_in(machine: Machine, transport: Transport, settings: Settings) -> None:
    from paramiko import AuthenticationException, SSHException

    transport.auth_timeout = CONNECT_TIMEOUT
    told: list[str] = []
    with contextlib.ExitStack() as held:
        for count, (name, key) in enumerate(_keys(machine, settings, told, held)):
            if count == MAX_KEYS:
                told.append(f"and no more than {MAX_KEYS} keys are tried")
                break
            try:
                if not (more := transport.auth_publickey(settings.user, key)):
                    return
                told.append(f"{name} is not enough: {', '.join(more)}")
            except AuthenticationException as error:
                told.append(f"{name}: {str(error).rstrip('.').lower() or 'refused'}")
            except SSHException as error:
                if not told:
                    raise
                told.append(f"{name}: {error}")  # it hung up on one key too many
            if not transport.is_active():
                break
    public = machine.directory / "id_ed25519.pub"
    raise Unreachable(
        f"machine {machine.name!r} does not let {settings.user!r} in",
        cause="; ".join(told) or "there is no key to try",
        remedy=f"--user, or put {public} into its authorized_keys (vtk vm console {machine.name})"
        if public.exists()
        else "ssh-add a key that its guest knows, or IdentityFile in ~/.ssh/config under Host vtk-" + machine.name,
    )


def _keys(
    machine: Machine, settings: Settings, told: list[str], held: contextlib.ExitStack
) -> Iterator[tuple[str, PKey]]:
    """Each with what it is called. `told` gets those that cannot be used."""
    from paramiko import Agent, PKey, SSHException
    from paramiko.pkey import UnknownKeyType

    own = machine.directory / "id_ed25519"
    for name, file in (("the machine's key", own), *((str(path), path) for path in settings.identities)):
        try:
            yield name, PKey.from_path(file)
        except FileNotFoundError:
            pass  # a machine that was there before vtk; and as ssh(1), a file that is named and not there
        except (OSError, SSHException, ValueError, TypeError, UnknownKeyType) as error:
            reason = "it has a passphrase: ssh-add it" if isinstance(error, TypeError) else str(error)
            told.append(f"{name} cannot be used: {reason}")
    if settings.agent and os.environ.get("SSH_AUTH_SOCK"):
        try:
            agent = Agent()
            held.callback(agent.close)
            keys = agent.get_keys()
        except (OSError, SSHException) as error:
            told.append(f"ssh-agent does not answer: {error}")
            return
        for key in keys:
            yield f"ssh-agent's {key.comment or key.get_name()}", key
