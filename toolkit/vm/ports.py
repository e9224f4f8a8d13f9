"""Ports of 127.0.0.1 for machines."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection

from minivmm.errors import HostError

LOOPBACK = "127.0.0.1"
TRIES = 100


def is_free(port: int) -> bool:
    """Whether a program could listen on it now."""
    with socket.socket() as probe:
        # As QEMU does: what is left in TIME_WAIT does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise HostError(f"no port of {LOOPBACK} can be used", cause=error.strerror or str(error)) from error
    return True


def free_port(reserved: Collection[int] = ()) -> int:
    """A port nobody listens on, and none of those `reserved`. Raises HostError."""
    for _ in range(TRIES):
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, 0))
            except OSError as error:
                raise HostError(f"no port of {LOOPBACK} can be used", cause=error.strerror or str(error)) from error
            port = int(probe.getsockname()[1])
        if port not in reserved:
            return port
    raise HostError(f"no free port of {LOOPBACK} was found", cause=f"{TRIES} tries gave ports of other machines")
