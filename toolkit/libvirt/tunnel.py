"""A port of this host that leads to one of another host's loopback, as long as this process lives: by `ssh -W`.

The host is that of a qemu+ssh URI, reached as libvirt reaches it: by the user's own ssh, with its configuration.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import socket
import subprocess
import threading
import urllib.parse

from minivmm.errors import HostError
from toolkit.libvirt.connection import host_of
from toolkit.vm.errors import Unsupported
from toolkit.vm.ports import LOOPBACK

TRANSPORTS = ("ssh", "libssh", "libssh2")


@functools.cache
def local_port(uri: str, port: int) -> int:
    """The port here; each connection to it is an ssh of its own. Raises Unsupported, HostError."""
    command = ssh_command(uri, f"{LOOPBACK}:{port}")
    listener = socket.create_server((LOOPBACK, 0))
    threading.Thread(target=_serve, args=(listener, command), name="vtk-tunnel", daemon=True).start()
    return int(listener.getsockname()[1])


def ssh_command(uri: str, target: str) -> list[str]:
    """The ssh(1) that carries its standard input and output to `target`, as the URI's host names it."""
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme.partition("+")[2] not in TRANSPORTS:
        raise Unsupported(
            f"a guest at {uri} cannot be reached by ssh from here",
            cause="its port is open on its host's loopback only, and vtk gets there through ssh to that host",
            remedy=f"--uri qemu+ssh://{parts.hostname}{parts.path}, or vtk vm console",
        )
    told = urllib.parse.parse_qs(parts.query)
    ssh = told.get("command", ["ssh"])[0]
    if shutil.which(ssh) is None:
        raise HostError(
            f"{ssh} is not installed", cause="it carries to the host", remedy="sudo apt install openssh-client"
        )
    line = [ssh, "-T", "-o", "BatchMode=yes", "-W", target]
    if parts.port:
        line += ["-p", str(parts.port)]
    if parts.username:
        line += ["-l", urllib.parse.unquote(parts.username)]
    if "keyfile" in told:
        line += ["-i", told["keyfile"][0]]
    if told.get("no_verify", ["0"])[0] != "0":
        line += ["-o", "StrictHostKeyChecking=no"]
    return [*line, "--", host_of(uri)]


def _serve(listener: socket.socket, command: list[str]) -> None:
    while True:
        connection, _ = listener.accept()
        # The connection is ssh's standard input and output: no byte of it goes through this process.
        with connection, contextlib.suppress(OSError):
            end = connection.fileno()
            process = subprocess.Popen(command, stdin=end, stdout=end, stderr=subprocess.DEVNULL)
            threading.Thread(target=process.wait, daemon=True).start()
