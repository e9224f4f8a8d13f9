"""What a flush promised is kept. (A kill of the process stands for a crash of the VMM; the medium is the kernel's.)"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minivmm.virtio.block import HEADER, Block, Disk, RequestHeader, RequestStatus, RequestType
from minivmm.virtio.driver import MockDriver
from tests.minivmm.virtio.flushing_guest import content, sectors_of

SECTOR = 512
SECTORS = 16
REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize("kill_at", [1, 2, 7, 60, 233])
def test_kill_during_flush_loses_no_acknowledged_write(tmp_path: Path, kill_at: int) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SECTORS * SECTOR))
    command = [sys.executable, "-m", "tests.minivmm.virtio.flushing_guest", str(path), str(SECTORS)]
    safe = 0
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as guest:
        assert guest.stdout is not None
        try:
            for line in guest.stdout:
                event, number = line.split()
                if event == "safe":
                    safe = int(number)
                elif int(number) >= kill_at:
                    break
        finally:
            guest.kill()  # the flush of round kill_at has begun, and may end or not
        for line in guest.stdout:
            if line.startswith("safe") and line.endswith("\n"):
                safe = int(line.split()[1])

    assert safe >= kill_at - 1
    disk = path.read_bytes()
    for sector in range(SECTORS):
        promised = max((r for r in range(safe + 1) if r and sector in sectors_of(r, SECTORS)), default=0)
        held = disk[sector * SECTOR : (sector + 1) * SECTOR]
        assert int.from_bytes(held[:8], "little") >= promised
        assert held == content(int.from_bytes(held[:8], "little")), "no sector is half old and half new"
    Block(Disk(path)).close()  # the lock went with the process


def test_a_flush_is_acknowledged_after_the_medium_has_everything_written_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SECTORS * SECTOR))
    driver = MockDriver(Block(Disk(path)))
    driver.start()
    flush = driver.buffers(HEADER.pack(RequestHeader(RequestType.FLUSH, 0, 0)), into=(1,))
    driver.memory.write(flush[1].address, b"\xff")
    events: list[tuple[str, int]] = []

    def status_and_used() -> int:
        """The flush's status byte; the used ring must not have moved on beyond the writes either."""
        assert driver.memory.read_u16(driver.queues[0].device + 2) <= 2
        return driver.memory.read(flush[1].address, 1)[0]

    pwritev = os.pwritev

    def written(fd: int, buffers: list[memoryview], offset: int) -> int:
        events.append(("write", status_and_used()))
        return pwritev(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", written)
    monkeypatch.setattr(os, "fdatasync", lambda _: events.append(("flush", status_and_used())))
    for sector in (0, 1):
        header = HEADER.pack(RequestHeader(RequestType.OUT, 0, sector))
        driver.queues[0].post(driver.buffers(header, bytes(SECTOR), into=(1,)))
    driver.queues[0].post(flush)
    driver.queues[0].kick()

    assert events == [("write", 0xFF), ("write", 0xFF), ("flush", 0xFF)]
    assert driver.memory.read(flush[1].address, 1)[0] == RequestStatus.OK
    driver.close()
