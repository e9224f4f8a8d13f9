"""A domain of an experiment: one of our guests, which says what it sees in JSON lines and may be told what to do."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from minivmm.errors import VtkError
from toolkit.labs.trace import Trace

if TYPE_CHECKING:
    from minivmm.outcome import RunResult
    from minivmm.xen.domain import Domain
    from minivmm.xen.hypervisor import Hypervisor

MEMORY = 16 << 20  # bytes of a domain
LOOK = 0.1  # seconds between two looks whether a domain that says nothing is still there
MAX_LINE = 4096  # bytes; a guest of ours writes no longer one


class ExperimentBroken(VtkError):
    """The experiment could not be carried out to its end: the claim is not borne out."""


class Said(NamedTuple):
    """One JSON object of a guest's."""

    message: dict[str, Any]
    at: int
    """When its line was complete: ns of time.perf_counter_ns."""
    step: int
    """How many steps the trace had then, this line's own hypercall among them."""


@contextlib.contextmanager
def hypervisor(*, domains: int = 1, audit: int = 0, exitless: bool = False) -> Iterator[Hypervisor]:
    """A machine with room for so many domains of one vCPU. `audit`, `exitless`: see minivmm.xen.hypervisor."""
    from minivmm.xen.hypervisor import Hypervisor
    from minivmm.xen.machine import machine_size

    with Hypervisor(machine_size(domains * MEMORY, domains), cpus=domains, audit=audit, exitless=exitless) as machine:
        yield machine


class LabDomain:
    """The guest called `guest` as a domain of `machine`. Not thread-safe: one experiment talks to it."""

    def __init__(
        self, machine: Hypervisor, guest: str, *, deadline: float, cmdline: str = "", traced: bool = True
    ) -> None:
        import guest_os
        from minivmm.boot import xen_image

        self.machine = machine
        self.guest = guest
        self.trace = Trace()
        self.said: list[Said] = []
        self._deadline = deadline
        self._line = b""
        self._heard = threading.Condition()
        self._read = 0
        kernel = xen_image.read(guest_os.image(guest, "xen"))
        self.domain: Domain = machine.create_domain(
            kernel, MEMORY, cmdline=cmdline.encode(), name=guest, console=self._hear
        )
        if traced:
            self.domain.watch = self.trace

    def _hear(self, data: bytes) -> None:
        """On the vCPU's thread, while its hypercall is answered."""
        at, step = time.perf_counter_ns(), len(self.trace.steps)
        *lines, self._line = (self._line + data).split(b"\n")
        self._line = self._line[-MAX_LINE:]
        for line in lines:
            message = _parse(line)
            if message is not None:
                with self._heard:
                    self.said.append(Said(message, at, step))
                    self._heard.notify()

    # -- a guest that does what it is told, line by line

    def start(self) -> None:
        """Lets it run."""
        self.machine.start(self.domain, self._deadline)

    def answer(self) -> dict[str, Any]:
        """What it says next. Raises ExperimentBroken when it says nothing."""
        limit = time.monotonic() + self._deadline
        with self._heard:
            while not self._heard.wait_for(lambda: len(self.said) > self._read, LOOK):
                if self.domain.end is not None or time.monotonic() > limit:
                    raise ExperimentBroken(
                        f"{self.guest} (domain {self.domain.domid}) does not answer", cause=self._how_it_ended()
                    )
            self._read += 1
            return self.said[self._read - 1].message

    def _how_it_ended(self) -> str:
        end = self.domain.end
        return f"it ended: {end.outcome.value}, {end.detail}" if end else "it waits for what does not come"

    def tell(self, command: str) -> None:
        """Types a line."""
        self.machine.send(self.domain, command.encode() + b"\n")

    def ask(self, command: str) -> dict[str, Any]:
        """Types a line; what it says next."""
        self.tell(command)
        return self.answer()

    def asleep(self) -> bool:
        """Whether its vCPU sleeps, once it has had time to: waits for that."""
        limit = time.monotonic() + self._deadline
        while time.monotonic() < limit:
            with self.machine.core.lock:
                if any(vcpu.blocked for vcpu in self.domain.vcpus) or self.domain.end is not None:
                    return self.domain.end is None
            time.sleep(0.001)
        return False

    # -- a guest that runs to its end

    def run(self) -> RunResult:
        """Runs it to its end, at most to the deadline."""
        return self.machine.run(self.domain, self._deadline)

    def find(self, key: str, value: str) -> Said:
        """The first object with this member. Raises ExperimentBroken when there is none."""
        for said in self.said:
            if said.message.get(key) == value:
                return said
        raise ExperimentBroken(f"{self.guest} did not get to {key}={value}", cause=self._how_it_ended())


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
