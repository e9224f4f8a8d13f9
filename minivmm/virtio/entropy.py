"""virtio-rng (virtio 1.2, 5.4): fills whatever the driver offers with random bytes of the host."""

from __future__ import annotations

import os
from collections.abc import Callable

from minivmm.errors import DriverError
from minivmm.virtio.device import Chain, QueueSpec, VirtioDevice

DEFAULT_LIMIT = 64 << 10


class Entropy(VirtioDevice):
    """The entropy device. One request makes the host produce at most `limit` bytes, which come from `source`."""

    device_type = 4
    queues = (QueueSpec("requestq", max_size=256),)

    def __init__(self, *, limit: int = DEFAULT_LIMIT, source: Callable[[int], bytes] = os.urandom) -> None:
        super().__init__()
        self._limit = limit
        self._source = source

    def handle_requestq(self, chain: Chain) -> int:
        """Returns the number of random bytes written: at least one, at most the limit (5.4.6.2)."""
        if chain.readable or not chain.writable:
            raise DriverError("an entropy request has device-writable buffers only (virtio 1.2, 5.4.6.1)")
        return chain.scatter(self._source(min(chain.writable_size, self._limit)))
