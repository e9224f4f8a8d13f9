"""The figures of machines in Prometheus' text format 0.0.4, and an HTTP server of them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from minivmm.errors import ConfigError, HostError
from toolkit.vm.figures import Reading
from toolkit.vm.provider import State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_TIMEOUT = 10.0  # seconds a client has to send its request


class Metric(NamedTuple):
    """One family: what it is called, of which type, and what it says."""

    name: str
    kind: str
    help: str


METRICS = {
    "cpu_time": Metric("vtk_machine_cpu_seconds_total", "counter", "Host CPU time used by the machine."),
    "memory": Metric("vtk_machine_memory_bytes", "gauge", "Memory the machine was given."),
    "balloon": Metric("vtk_machine_balloon_bytes", "gauge", "Memory that the balloon leaves it."),
    "available": Metric("vtk_machine_memory_available_bytes", "gauge", "Memory the guest could give to a program."),
    "resident": Metric("vtk_machine_resident_bytes", "gauge", "Host memory its process holds."),
    "disk_read": Metric("vtk_machine_disk_read_bytes_total", "counter", "Bytes read from its disks."),
    "disk_written": Metric("vtk_machine_disk_written_bytes_total", "counter", "Bytes written to its disks."),
    "disk_reads": Metric("vtk_machine_disk_reads_total", "counter", "Read requests to its disks."),
    "disk_writes": Metric("vtk_machine_disk_writes_total", "counter", "Write requests to its disks."),
    "net_received": Metric("vtk_machine_network_receive_bytes_total", "counter", "Bytes received by the guest."),
    "net_sent": Metric("vtk_machine_network_transmit_bytes_total", "counter", "Bytes sent by the guest."),
    "exits": Metric("vtk_machine_exits_total", "counter", "Exits from guest code to the hypervisor."),
}
"""By the field of Figures."""


def exposition(readings: list[Reading]) -> str:
    """The text: each family once, a line a machine; what is not known has no line."""
    lines = [
        "# HELP vtk_machine_state What the machine is doing: 1 for the state it is in.",
        "# TYPE vtk_machine_state gauge",
    ]
    for reading in readings:
        for state in State:
            labels = f'name="{_escaped(reading.name)}",state="{state.value}"'
            lines.append(f"vtk_machine_state{{{labels}}} {int(reading.status.state is state)}")
    for field, metric in METRICS.items():
        known = [
            (reading.name, value) for reading in readings if (value := getattr(reading.figures, field)) is not None
        ]
        if known:
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
            lines += [f'{metric.name}{{name="{_escaped(name)}"}} {value}' for name, value in known]
    return "\n".join(lines) + "\n"


def parsed_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, `[::1]:PORT`. Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ConfigError(f"{text!r} cannot be listened on", cause="it is HOST:PORT", remedy="--listen 127.0.0.1:9177")
    return host.removeprefix("[").removesuffix("]"), int(port)


def server(address: tuple[str, int], read: Callable[[], list[Reading]]) -> ThreadingHTTPServer:
    """An HTTP server that answers GET /metrics. Raises HostError when the address cannot be listened on."""

    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(HTTPStatus.NOT_FOUND, "the figures are at /metrics")
                return
            try:
                body = exposition(read()).encode()
            except HostError as error:
                self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, error.message)
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """A scrape every few seconds is no news."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        daemon_threads = True

    try:
        return Server(address, Handler)
    except OSError as error:
        raise HostError(
            f"{address[0]}:{address[1]} cannot be listened on",
            cause=error.strerror or str(error),
            remedy="--listen 127.0.0.1:PORT, with another port",
        ) from error


def _escaped(text: str) -> str:
    """A label's value."""
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
