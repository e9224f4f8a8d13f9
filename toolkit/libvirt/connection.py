"""Asking a libvirt daemon: one connection a URI and process, every question with a deadline.

libvirt's calls block as long as the daemon does, and Ctrl-C does not get through to them. So each question is put by a
thread of its own, and who asks waits for that with a deadline; a thread that is never answered ends with the process.
"""

from __future__ import annotations

import functools
import os
import threading
import urllib.parse
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

from minivmm.errors import ConfigError, VtkError
from toolkit.libvirt.errors import (
    DomainMissing,
    LibvirtDown,
    LibvirtLost,
    LibvirtMissing,
    LibvirtRefused,
    LibvirtSilent,
)

OPEN_TIMEOUT = 15.0  # seconds; a session's daemon starts first (1 s), an ssh connection takes what it takes
ANSWER_TIMEOUT = 15.0  # seconds for a short question; some ms on an idle host
PROBE_TIMEOUT = 120.0  # seconds: at first libvirt asks every QEMU what it can do, 30 s here
KEEPALIVE_INTERVAL = 5  # seconds of silence after which the other side is asked whether it lives
KEEPALIVE_COUNT = 3  # such questions without an answer until the connection is given up

Connection = Any  # libvirt.virConnect; libvirt-python has no types
Domain = Any  # libvirt.virDomain
Answer = TypeVar("Answer")

_connections: dict[str, Connection] = {}
_opening = threading.Lock()


def default_uri() -> str:
    """As virsh has it: $LIBVIRT_DEFAULT_URI, else the system's daemon for root and the session's for a user."""
    named = os.environ.get("LIBVIRT_DEFAULT_URI", "")
    return named or ("qemu:///system" if os.geteuid() == 0 else "qemu:///session")


def checked_uri(uri: str) -> str:
    """`uri`, when it can be one of QEMU's (libvirt.org/uri.html). Raises ConfigError."""
    try:
        parts = urllib.parse.urlsplit(uri)
    except ValueError as error:
        raise ConfigError(f"{uri!r} is no URI", cause=str(error), remedy="--uri qemu:///system") from error
    if parts.scheme.partition("+")[0] != "qemu" or not parts.path.strip("/"):
        raise ConfigError(
            f"{uri!r} is not the URI of a libvirt with QEMU machines",
            cause="it is qemu[+TRANSPORT]://[USER@][HOST][:PORT]/system or /session",
            remedy="--uri qemu:///session, or --uri qemu+ssh://HOST/system",
        )
    return uri


def is_local(uri: str) -> bool:
    """Whether the daemon is on this host: its unix socket is opened, or its driver is in this process."""
    parts = urllib.parse.urlsplit(uri)
    return not parts.hostname and parts.scheme.partition("+")[2] in ("", "unix")


def host_of(uri: str) -> str:
    """The host, as a person would name it."""
    parts = urllib.parse.urlsplit(uri)
    if parts.hostname:
        return parts.hostname
    return os.uname().nodename if is_local(uri) else uri


def library() -> ModuleType:
    """libvirt-python, quiet: it prints its errors on standard error unless told not to. Raises LibvirtMissing."""
    try:
        import libvirt
    except ImportError as error:
        raise LibvirtMissing(
            "machines of libvirt need libvirt-python",
            cause=str(error),
            remedy="sudo apt install python3-libvirt, or: sudo apt install libvirt-dev pkg-config gcc, "
            "then pip install 'vtk[libvirt]'",
        ) from error
    module: ModuleType = libvirt
    return module


def ask(uri: str, question: Callable[[Connection], Answer], *, timeout: float = ANSWER_TIMEOUT) -> Answer:
    """What `question` returns when it is given a connection to `uri`; libvirt's errors as ours. A connection that is
    not there yet has as long again to be made, OPEN_TIMEOUT at most.

    Raises LibvirtMissing, LibvirtDown, LibvirtLost, LibvirtSilent, LibvirtRefused, and what `question` raises.
    """
    libvirt = library()
    answer: list[Answer] = []
    failure: list[BaseException] = []

    def put() -> None:
        try:
            answer.append(question(_open(libvirt, uri)))
        except BaseException as error:  # noqa: BLE001 - raised again by who waits
            failure.append(error)

    thread = threading.Thread(target=put, name="vtk-libvirt", daemon=True)
    thread.start()
    thread.join(timeout + (0.0 if uri in _connections else min(timeout, OPEN_TIMEOUT)))
    if thread.is_alive():
        _connections.pop(uri, None)
        raise LibvirtSilent(
            f"libvirt at {uri} has not answered within {timeout:g} s",
            cause="its daemon hangs or is overloaded, or the network does not carry; "
            "what it was asked may still happen",
            remedy=f"vtk vm list, and where it stays so: {_restart(uri)}",
        )
    if failure:
        error = failure[0]
        if isinstance(error, libvirt.libvirtError):
            raise translated(uri, error) from error
        raise error
    return answer[0]


def translated(uri: str, error: Any) -> VtkError:
    """A libvirtError as one of ours."""
    libvirt = library()
    code, words = error.get_error_code(), (error.get_error_message() or "no reason given").strip()
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return DomainMissing(f"libvirt at {uri} has no such domain", code, cause=words)
    gone = code == libvirt.VIR_ERR_RPC or "client socket is closed" in words or "keepalive" in words
    if gone or "Cannot recv data" in words or "End of file while reading" in words:
        _connections.pop(uri, None)
        return LibvirtLost(
            f"libvirt at {uri} went away in the middle",
            cause=f"{words}; its machines go on without it",
            remedy=f"{_restart(uri)}; then vtk vm list tells what became of it, and vtk vm resume lets go on what "
            "stands still",
        )
    remedy = ""
    if "ermission denied" in words:
        remedy = (
            "--uri qemu:///session, where QEMU runs as you; or put the file where the daemon's QEMU "
            "(user libvirt-qemu) may read it, as in /var/lib/libvirt/images"
        )
    return LibvirtRefused(f"libvirt at {uri} refuses", code, cause=words, remedy=remedy)


def _open(libvirt: ModuleType, uri: str) -> Connection:
    """The connection to `uri`. Raises LibvirtDown."""
    with _opening:
        known = _connections.get(uri)
        if known is None:
            _run_event_loop()
    if known is not None:
        return known
    try:
        connection = libvirt.open(unasking(uri))
    except libvirt.libvirtError as error:
        raise _down(libvirt, uri, error) from error
    try:
        connection.setKeepAlive(KEEPALIVE_INTERVAL, KEEPALIVE_COUNT)
        connection.registerCloseCallback(_closed, uri)
    except libvirt.libvirtError as error:
        # A driver in this very process (qemu:///embed) cannot be lost.
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise _down(libvirt, uri, error) from error
    with _opening:
        return _connections.setdefault(uri, connection)


def unasking(uri: str) -> str:
    """With ssh told not to ask for a password or a host key: nobody would see it ask (libvirt.org/uri.html, no_tty)."""
    if not urllib.parse.urlsplit(uri).scheme.endswith("+ssh") or "no_tty=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}no_tty=1"


def _closed(_connection: Connection, _reason: int, uri: str) -> None:
    _connections.pop(uri, None)


@functools.cache
def _run_event_loop() -> None:
    """What keeps connections alive, in a thread. libvirt wants it before the first connection."""
    libvirt = library()
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=run, name="vtk-libvirt-events", daemon=True).start()


def _down(libvirt: ModuleType, uri: str, error: Any) -> LibvirtDown:
    words = error.get_error_message() or "no reason given"
    remedy = _restart(uri)
    if error.get_error_code() in (libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_ERR_AUTH_UNAVAILABLE) or (
        is_local(uri) and "ermission denied" in words
    ):
        remedy = "sudo usermod -aG libvirt $USER, then log in again; or --uri qemu:///session"
    elif not is_local(uri) and any(each in words for each in ("ermission denied", "Host key verification")):
        remedy = f"ssh must get in without asking: ssh {host_of(uri)} true, and ssh-copy-id {host_of(uri)}"
    elif "no connection driver" in words:
        remedy = "sudo apt install libvirt-daemon-driver-qemu"
    elif "/session" in uri and "XDG_RUNTIME_DIR" in words:
        remedy = "log in with a session of systemd (XDG_RUNTIME_DIR), or set XDG_RUNTIME_DIR to a directory of yours"
    return LibvirtDown(f"there is no libvirt at {uri}", cause=words, remedy=remedy)


def _restart(uri: str) -> str:
    """How its daemon is started."""
    if not is_local(uri):
        return f"virsh -c '{uri}' version, and on {host_of(uri)}: sudo systemctl restart libvirtd"
    if urllib.parse.urlsplit(uri).path == "/session":
        return "libvirtd -d  (as you; it belongs to libvirt-daemon: sudo apt install libvirt-daemon-system)"
    return "sudo systemctl restart libvirtd  (sudo apt install libvirt-daemon-system, when there is none)"


def forget_all() -> None:
    """The next question opens its connection anew."""
    _connections.clear()
