"""The QEMU guest agent in a machine (docs.qemu.org, interop/qemu-ga-ref): JSON by the line, over a virtio-serial port.

Nobody may be there: the port is looked at first (QMP's query-chardev), and an answer is waited for shortly.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from toolkit.vm import presence
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.errors import AgentSilent

SOCKET = "agent.sock"
LOCK = "agent.lock"
TIMEOUT = 3.0  # seconds for an answer; 10 ms under KVM, 0.1 s under emulation
MAX_ANSWER = 4 << 20  # bytes; the guest is not trusted
DELIMITER = b"\xff"  # before the answer to guest-sync-delimited: what came earlier was for somebody else


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """What the guest says of itself."""

    os: str = ""
    hostname: str = ""
    addresses: tuple[str, ...] = field(default=())  # those that are not of its loopback
    received: int | None = None  # bytes, on all its interfaces but the loopback
    sent: int | None = None


Questions = list[tuple[str, dict[str, Any]]]  # a command of the agent's and its arguments, each
FACTS: Questions = [("guest-get-osinfo", {}), ("guest-get-host-name", {}), ("guest-network-get-interfaces", {})]
NETWORK: Questions = [("guest-network-get-interfaces", {})]


def ask(machine: MachineDirectory, questions: Questions, timeout: float = TIMEOUT) -> list[Any]:
    """The agent's answers, None to a command it refuses. Raises AgentSilent, MachineBusy when another vtk is at it."""
    with machine.held(LOCK, f"the guest agent of machine {machine.name!r}"):
        try:
            with machine.connect(presence.file_name(machine, SOCKET), timeout) as connection:
                talk = _Talk(connection, time.monotonic() + timeout)
                talk.synchronize()
                return [talk.execute(command, arguments) for command, arguments in questions]
        except (OSError, EOFError, ValueError) as error:
            raise AgentSilent(
                f"the guest agent of machine {machine.name!r} does not answer",
                cause=f"no answer within {timeout:g} s" if isinstance(error, TimeoutError) else str(error),
                remedy=f"see that qemu-guest-agent is installed and running in it, and vtk vm show {machine.name}",
            ) from error


def facts(answers: list[Any]) -> GuestFacts:
    """What the answers to FACTS say. The guest is believed, but not trusted: whatever it sends is taken."""
    system, host, interfaces = answers
    received, sent, addresses = _network(interfaces)
    return GuestFacts(
        os=_text(system, "pretty-name"),
        hostname=_text(host, "host-name"),
        addresses=tuple(addresses),
        received=received,
        sent=sent,
    )


def network_bytes(answers: list[Any]) -> tuple[int | None, int | None]:
    """Received and sent by the guest since it booted, from the answer to NETWORK."""
    received, sent, _ = _network(answers[0])
    return received, sent


def _network(interfaces: Any) -> tuple[int | None, int | None, list[str]]:
    received: int | None = None
    sent: int | None = None
    addresses: list[str] = []
    for interface in _entries(interfaces):
        if interface.get("name") == "lo":
            continue
        addresses += [_text(entry, "ip-address") for entry in _entries(interface.get("ip-addresses"))]
        counters = interface.get("statistics")
        if isinstance(counters, dict):
            received = (received or 0) + _count(counters.get("rx-bytes"))
            sent = (sent or 0) + _count(counters.get("tx-bytes"))
    return received, sent, [address for address in addresses if address]


def _entries(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _text(answer: Any, key: str) -> str:
    """A string that the guest gave, fit for a terminal."""
    value = answer.get(key) if isinstance(answer, dict) else None
    return "".join(filter(str.isprintable, value))[:200] if isinstance(value, str) else ""


class _Talk:
    """One connection to the agent, until the deadline."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self._pending = b""

    def synchronize(self) -> None:
        """Past what an earlier, broken-off conversation has left in the port. Raises OSError, EOFError, ValueError."""
        token = secrets.randbits(31)
        # The delimiter first ends what the agent may have half of.
        self._send(DELIMITER, "guest-sync-delimited", {"id": token})
        while True:
            self._read_past(DELIMITER)
            if json.loads(self._read_past(b"\n")) == {"return": token}:
                return

    def execute(self, command: str, arguments: dict[str, Any]) -> Any:
        """The answer; None to a command that the agent refuses. Raises OSError, EOFError, ValueError."""
        self._send(b"", command, arguments)
        answer = json.loads(self._read_past(b"\n"))
        return answer.get("return") if isinstance(answer, dict) else None

    def _send(self, before: bytes, command: str, arguments: dict[str, Any]) -> None:
        self._connection.settimeout(max(0.001, self._deadline - time.monotonic()))
        question = {"execute": command} | ({"arguments": arguments} if arguments else {})
        self._connection.sendall(before + json.dumps(question).encode() + b"\n")

    def _read_past(self, end: bytes) -> bytes:
        while end not in self._pending:
            remaining = self._deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            if len(self._pending) > MAX_ANSWER:
                raise ValueError("an answer without an end")
            self._connection.settimeout(remaining)
            data = self._connection.recv(1 << 16)
            if not data:
                raise EOFError("the port was closed")
            self._pending += data
        found, _, self._pending = self._pending.partition(end)
        return found
