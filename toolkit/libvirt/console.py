"""A domain's serial console as a socket: libvirt's stream (virDomainOpenConsole), which reaches remote hosts too."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

from toolkit.libvirt.connection import Domain, library
from toolkit.libvirt.errors import LibvirtRefused
from toolkit.libvirt.provider import with_domain
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.errors import MachineBusy

CHUNK = 4096  # bytes


def open_console(machine: MachineDirectory) -> socket.socket:
    """One end of a pair; the other is carried to the stream and back by two threads, until either side hangs up."""
    libvirt = library()

    def attach(domain: Domain) -> Any:
        stream = domain.connect().newStream()
        domain.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_SAFE)
        return stream

    try:
        stream = with_domain(machine, attach)
    except LibvirtRefused as error:
        if "Active console session exists" in error.cause:
            raise MachineBusy(
                f"the console of machine {machine.name!r} is in use", cause="by another program, virsh or virt-manager"
            ) from error
        raise
    ours, theirs = socket.socketpair()
    threads = (_to_socket, _to_stream)
    for carry in threads:
        threading.Thread(target=carry, args=(stream, theirs), name="vtk-libvirt-console", daemon=True).start()
    return ours


def _to_socket(stream: Any, end: socket.socket) -> None:
    """Until the domain ends or the socket is closed."""
    libvirt = library()
    with contextlib.suppress(OSError, libvirt.libvirtError):
        while data := stream.recv(CHUNK):
            end.sendall(data)
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def _to_stream(stream: Any, end: socket.socket) -> None:
    """Until the socket is closed; the stream is ended then, which ends the other thread."""
    libvirt = library()
    with contextlib.suppress(OSError, libvirt.libvirtError):
        while data := end.recv(CHUNK):
            view = memoryview(data)
            while view:
                view = view[stream.send(bytes(view)) :]
    with contextlib.suppress(libvirt.libvirtError):
        stream.abort()
    end.close()
