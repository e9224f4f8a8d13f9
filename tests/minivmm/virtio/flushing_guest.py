"""A process that writes to a disk and flushes it, over and over, and says on its output what it was told is safe.

Run by test_durability.py, which kills it: `python -m tests.minivmm.virtio.flushing_guest DISK SECTORS`. It prints
"flushing N" when the host begins the flush of round N, and "safe N" when the device has acknowledged it.
"""

from __future__ import annotations

import os
import sys
from unittest import mock

from minivmm.virtio.block import HEADER, Block, Disk, RequestHeader, RequestStatus, RequestType
from minivmm.virtio.driver import MockDriver

WRITES = 4  # of one sector each, before every flush


def content(round_: int) -> bytes:
    """The sector written in this round."""
    return round_.to_bytes(8, "little") * 64


def sectors_of(round_: int, sectors: int) -> list[int]:
    """Where this round writes."""
    return [(round_ * WRITES + i) % sectors for i in range(WRITES)]


def main(path: str, sectors: int) -> None:
    """Goes on until killed."""
    driver = MockDriver(Block(Disk(path)))
    driver.start()
    fdatasync = os.fdatasync
    round_ = 0

    def announced(fd: int) -> None:
        os.write(1, f"flushing {round_}\n".encode())
        fdatasync(fd)

    with mock.patch.object(os, "fdatasync", announced):
        while True:
            round_ += 1
            if round_ % 100 == 0:
                driver.start()  # takes back the guest memory of the requests before
            for sector in sectors_of(round_, sectors):
                header = HEADER.pack(RequestHeader(RequestType.OUT, 0, sector))
                assert driver.request(0, header, content(round_), into=(1,)).data[0] == RequestStatus.OK
            flush = HEADER.pack(RequestHeader(RequestType.FLUSH, 0, 0))
            assert driver.request(0, flush, into=(1,)).data[0] == RequestStatus.OK
            os.write(1, f"safe {round_}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
