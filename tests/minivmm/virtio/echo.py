"""The simplest device, for tests of what is common to all: gives back what it was sent."""

from __future__ import annotations

from collections.abc import Callable

from minivmm.virtio.device import Chain, QueueSpec, VirtioDevice

SIZE = 16


class Echo(VirtioDevice):
    """Copies the readable bytes of a request into its writable ones. `before` is called first, with each chain."""

    device_type = 63
    queues = (QueueSpec("echoq", max_size=SIZE),)

    def __init__(self, before: Callable[[Chain], None] = lambda _: None) -> None:
        super().__init__(config=bytes(range(1, 11)))
        self.before = before
        self.requests: list[bytes] = []
        self.closed = 0

    def handle_echoq(self, chain: Chain) -> int | None:
        """Returns the number of bytes copied."""
        self.before(chain)
        data = chain.gather(1 << 20)
        self.requests.append(data)
        return chain.scatter(data)

    def close(self) -> None:
        """Counts."""
        self.closed += 1
