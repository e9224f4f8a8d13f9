"""virtio-blk: every request and every way it can go wrong, with the status and used length of the specification."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from minivmm.virtio.block import (
    BLOCK_CONFIG,
    F_CONFIG_WCE,
    F_DISCARD,
    F_FLUSH,
    F_RO,
    F_WRITE_ZEROES,
    HEADER,
    MAX_DISCARD_SECTORS,
    MAX_RANGES,
    MAX_REQUEST,
    MAX_ZEROES_SECTORS,
    RANGE,
    UNMAP,
    WRITEBACK_OFFSET,
    Block,
    Disk,
    Range,
    RequestHeader,
    RequestStatus,
    RequestType,
)
from minivmm.virtio.driver import Buffer, Completion, MockDriver
from minivmm.virtio.mmio import Status

SECTORS = 64
SECTOR = 512


class DiskDriver(MockDriver):
    """A mock driver with the requests of a disk. `status` bytes begin as 0xff, which no device answers."""

    def ask(
        self, kind: int, sector: int = 0, *data: bytes, into: Sequence[int] = (), indirect: bool = False
    ) -> Completion:
        return self.request(0, HEADER.pack(RequestHeader(kind, 0, sector)), *data, into=(*into, 1), indirect=indirect)

    def status_of(self, kind: int, sector: int = 0, *data: bytes, into: Sequence[int] = ()) -> RequestStatus:
        return RequestStatus(self.ask(kind, sector, *data, into=into).data[-1])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SECTORS * SECTOR))
    return path


@pytest.fixture
def driver(path: Path) -> Iterator[DiskDriver]:
    driver = DiskDriver(Block(Disk(path), serial="serial-number"))
    driver.start()
    yield driver
    driver.close()


def test_the_configuration_describes_the_disk(driver: DiskDriver) -> None:
    config = BLOCK_CONFIG.unpack(driver.read_config())
    assert config.capacity == SECTORS
    assert config.blk_size == SECTOR
    assert config.seg_max == driver.queues[0].size - 2
    assert config.writeback == 1
    assert config.max_discard_sectors == MAX_DISCARD_SECTORS
    assert config.max_write_zeroes_sectors == MAX_ZEROES_SECTORS
    assert BLOCK_CONFIG.size == 60
    assert BLOCK_CONFIG.pack(config._replace(writeback=0xAA)).index(0xAA) == WRITEBACK_OFFSET


@pytest.mark.parametrize("indirect", [False, True])
def test_a_read_returns_what_the_file_holds(driver: DiskDriver, path: Path, indirect: bool) -> None:
    completion = driver.ask(RequestType.IN, 3, into=(100, 924, 1024), indirect=indirect)
    assert completion.data == path.read_bytes()[3 * SECTOR : 7 * SECTOR] + b"\0"
    assert completion.used == 2049


def test_a_write_lands_in_the_file_and_nowhere_else(driver: DiskDriver, path: Path) -> None:
    before, data = path.read_bytes(), os.urandom(1024)
    completion = driver.ask(RequestType.OUT, 5, data[:10], data[10:])
    assert (completion.data, completion.used) == (b"\0", 1)
    assert path.read_bytes() == before[: 5 * SECTOR] + data + before[7 * SECTOR :]


def test_header_data_and_status_may_lie_in_any_buffers(driver: DiskDriver, path: Path) -> None:
    """2.7.4.1: the framing means nothing. Header in three pieces with data behind it; data and status in one."""
    data = os.urandom(SECTOR)
    request = HEADER.pack(RequestHeader(RequestType.OUT, 0, 1)) + data
    assert driver.request(0, request[:1], request[1:10], request[10:], into=(1,)).data == b"\0"
    assert path.read_bytes()[SECTOR : 2 * SECTOR] == data
    header = HEADER.pack(RequestHeader(RequestType.IN, 0, 1))
    assert driver.request(0, header[:15], header[15:], into=(SECTOR + 1,)).data == data + b"\0"


def test_the_last_sector_can_be_used_and_the_one_behind_it_cannot(driver: DiskDriver) -> None:
    assert driver.status_of(RequestType.IN, SECTORS - 1, into=(SECTOR,)) is RequestStatus.OK
    assert driver.status_of(RequestType.OUT, SECTORS - 1, bytes(SECTOR)) is RequestStatus.OK


@pytest.mark.parametrize("sector", [SECTORS, SECTORS - 1, 2**55, 2**64 - 1])
def test_sectors_beyond_the_end_are_an_io_error_and_nothing_moves(driver: DiskDriver, path: Path, sector: int) -> None:
    before = path.read_bytes()
    completion = driver.ask(RequestType.IN, sector, into=(2 * SECTOR,))
    assert completion.data == bytes(2 * SECTOR) + bytes([RequestStatus.IOERR])
    assert completion.used == 0, "no byte was written from the first writable one on"
    assert driver.status_of(RequestType.OUT, sector, bytes(2 * SECTOR)) is RequestStatus.IOERR
    assert path.read_bytes() == before
    assert "beyond the end" in driver_errors(driver)[-1]


def driver_errors(driver: MockDriver) -> list[str]:
    assert isinstance(driver.device, Block)
    return list(driver.device.errors)


def test_a_length_that_is_not_whole_sectors_is_an_io_error(driver: DiskDriver) -> None:
    assert driver.status_of(RequestType.IN, 0, into=(511,)) is RequestStatus.IOERR
    assert driver.status_of(RequestType.OUT, 0, b"x") is RequestStatus.IOERR
    assert "not whole sectors" in driver_errors(driver)[-1]


def test_a_request_without_data_is_nothing_to_do(driver: DiskDriver) -> None:
    assert driver.status_of(RequestType.IN) is RequestStatus.OK
    assert driver.status_of(RequestType.OUT) is RequestStatus.OK


@pytest.mark.parametrize("kind", [2, 5, 9, 12, 0x8000_0000, 0xFFFF_FFFF])
def test_an_unknown_request_is_unsupported(driver: DiskDriver, kind: int) -> None:
    assert driver.status_of(kind, 0, into=(SECTOR,)) is RequestStatus.UNSUPP


@pytest.mark.parametrize("out", [(), (b"short header",)])
def test_a_request_without_a_whole_header_needs_reset(driver: DiskDriver, out: tuple[bytes, ...]) -> None:
    driver.queues[0].post(driver.buffers(*out, into=(1,)))
    driver.queues[0].kick()
    assert driver.status & Status.DEVICE_NEEDS_RESET


def test_a_request_without_room_for_its_status_needs_reset(driver: DiskDriver) -> None:
    driver.queues[0].post(driver.buffers(HEADER.pack(RequestHeader(RequestType.FLUSH, 0, 0))))
    driver.queues[0].kick()
    assert "status" in driver.transport.faults[-1]


def test_the_serial_number_is_20_bytes_padded_with_zeroes(driver: DiskDriver) -> None:
    completion = driver.ask(RequestType.GET_ID, into=(20,))
    assert completion.data == b"serial-number".ljust(20, b"\0") + b"\0"
    assert completion.used == 21


def test_a_read_only_disk_refuses_whatever_writes(path: Path) -> None:
    before = path.read_bytes()
    driver = DiskDriver(Block(Disk(path, read_only=True)))
    assert driver.offered() & F_RO
    assert not driver.offered() & (F_DISCARD | F_WRITE_ZEROES)
    driver.start()
    one = RANGE.pack(Range(0, 1, 0))
    assert driver.status_of(RequestType.OUT, 0, bytes(SECTOR)) is RequestStatus.IOERR
    assert driver.status_of(RequestType.DISCARD, 0, one) is RequestStatus.IOERR
    assert driver.status_of(RequestType.WRITE_ZEROES, 0, one) is RequestStatus.IOERR
    assert driver.status_of(RequestType.IN, 0, into=(SECTOR,)) is RequestStatus.OK
    assert driver.status_of(RequestType.FLUSH) is RequestStatus.OK
    assert path.read_bytes() == before
    driver.close()


def test_write_zeroes_and_discard_make_the_range_read_as_zeroes(driver: DiskDriver, path: Path) -> None:
    before = path.read_bytes()
    ranges = b"".join(map(RANGE.pack, (Range(1, 2, 0), Range(8, 1, UNMAP))))
    assert driver.status_of(RequestType.WRITE_ZEROES, 0, ranges) is RequestStatus.OK
    assert driver.status_of(RequestType.DISCARD, 0, RANGE.pack(Range(16, 8, 0))) is RequestStatus.OK
    expected = bytearray(before)
    for first, count in ((1, 2), (8, 1), (16, 8)):
        expected[first * SECTOR : (first + count) * SECTOR] = bytes(count * SECTOR)
    assert path.read_bytes() == expected
    assert path.stat().st_size == SECTORS * SECTOR


@pytest.mark.parametrize(
    ("kind", "ranges", "status"),
    [
        (RequestType.DISCARD, [Range(0, 1, UNMAP)], RequestStatus.UNSUPP),
        (RequestType.WRITE_ZEROES, [Range(0, 1, 2)], RequestStatus.UNSUPP),
        (RequestType.DISCARD, [Range(0, 1, 0)] * (MAX_RANGES + 1), RequestStatus.UNSUPP),
        (RequestType.DISCARD, [Range(0, MAX_DISCARD_SECTORS + 1, 0)], RequestStatus.IOERR),
        (RequestType.WRITE_ZEROES, [Range(0, MAX_ZEROES_SECTORS + 1, 0)], RequestStatus.IOERR),
        (RequestType.WRITE_ZEROES, [Range(SECTORS, 1, 0)], RequestStatus.IOERR),
        (RequestType.WRITE_ZEROES, [Range(0, 1, 0), Range(2**64 - 1, 2, 0)], RequestStatus.IOERR),
        (RequestType.WRITE_ZEROES, [], RequestStatus.IOERR),
    ],
)
def test_ranges_that_cannot_be_served_change_nothing(
    driver: DiskDriver, path: Path, kind: RequestType, ranges: list[Range], status: RequestStatus
) -> None:
    before = path.read_bytes()
    assert driver.status_of(kind, 0, b"".join(map(RANGE.pack, ranges))) is status
    assert path.read_bytes() == before


def test_half_a_range_is_an_io_error(driver: DiskDriver) -> None:
    assert driver.status_of(RequestType.DISCARD, 0, bytes(17)) is RequestStatus.IOERR


def test_a_disk_that_shrank_gives_an_io_error_and_keeps_the_cause(driver: DiskDriver, path: Path) -> None:
    os.truncate(path, 10 * SECTOR)
    assert driver.status_of(RequestType.IN, 9, into=(SECTOR,)) is RequestStatus.OK
    assert driver.status_of(RequestType.IN, 9, into=(2 * SECTOR,)) is RequestStatus.IOERR
    assert "shrank: it ends at 5120" in driver_errors(driver)[-1]
    assert driver.status_of(RequestType.IN, 20, into=(SECTOR,)) is RequestStatus.IOERR
    assert driver.status_of(RequestType.OUT, 20, b"\1" * SECTOR) is RequestStatus.OK
    assert driver.ask(RequestType.IN, 20, into=(SECTOR,)).data == b"\1" * SECTOR + b"\0"


@pytest.mark.parametrize("cause", [errno.EIO, errno.ENOSPC])
def test_a_failing_host_disk_is_an_io_error_with_its_cause(
    driver: DiskDriver, monkeypatch: pytest.MonkeyPatch, cause: int
) -> None:
    def fail(*_: object) -> int:
        raise OSError(cause, os.strerror(cause))

    for name in ("preadv", "pwritev", "fdatasync"):
        monkeypatch.setattr(os, name, fail)
    assert driver.status_of(RequestType.IN, 0, into=(SECTOR,)) is RequestStatus.IOERR
    assert driver.status_of(RequestType.OUT, 0, bytes(SECTOR)) is RequestStatus.IOERR
    assert driver.status_of(RequestType.FLUSH) is RequestStatus.IOERR
    assert os.strerror(cause) in driver_errors(driver)[-1]
    monkeypatch.undo()
    assert driver.status_of(RequestType.IN, 0, into=(SECTOR,)) is RequestStatus.OK


def test_an_enormous_request_is_refused_before_it_holds_the_vcpu(tmp_path: Path) -> None:
    path = tmp_path / "sparse.img"
    path.touch()
    os.truncate(path, 1 << 40)
    driver = DiskDriver(Block(Disk(path)))
    driver.start()
    header, status = driver.buffers(HEADER.pack(RequestHeader(RequestType.IN, 0, 0)), into=(1,))
    megabyte = Buffer(1 << 20, 1 << 20, writable=True)
    driver.queues[0].request([header, *[megabyte] * (MAX_REQUEST // megabyte.length + 1), status])
    assert driver.memory.read(status.address, 1)[0] == RequestStatus.IOERR
    assert "in one request" in driver_errors(driver)[-1]
    driver.close()


def count_flushes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    flushes: list[int] = []
    monkeypatch.setattr(os, "fdatasync", flushes.append)
    return flushes


def test_flush_is_fdatasync_and_a_write_alone_is_not(driver: DiskDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes = count_flushes(monkeypatch)
    driver.status_of(RequestType.OUT, 0, bytes(SECTOR))
    assert not flushes
    assert driver.status_of(RequestType.FLUSH) is RequestStatus.OK
    assert len(flushes) == 1


def test_a_driver_that_cannot_flush_gets_every_write_flushed(
    driver: DiskDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes = count_flushes(monkeypatch)
    driver.start(driver.offered() & ~F_FLUSH)
    assert BLOCK_CONFIG.unpack(driver.read_config()).writeback == 0
    driver.write_config(WRITEBACK_OFFSET, b"\1")
    for kind, data in (
        (RequestType.OUT, bytes(SECTOR)),
        (RequestType.DISCARD, RANGE.pack(Range(0, 1, 0))),
        (RequestType.WRITE_ZEROES, RANGE.pack(Range(0, 1, 0))),
    ):
        before = len(flushes)
        assert driver.status_of(kind, 0, data) is RequestStatus.OK
        assert len(flushes) == before + 1


def test_the_driver_chooses_writethrough_by_the_configuration(
    driver: DiskDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes = count_flushes(monkeypatch)
    driver.write_config(WRITEBACK_OFFSET, b"\0")
    assert BLOCK_CONFIG.unpack(driver.read_config()).writeback == 0
    driver.status_of(RequestType.OUT, 0, bytes(SECTOR))
    assert len(flushes) == 1
    driver.write_config(WRITEBACK_OFFSET, b"\1")
    driver.status_of(RequestType.OUT, 0, bytes(SECTOR))
    assert len(flushes) == 1
    driver.write_config(0, b"\xff")
    assert BLOCK_CONFIG.unpack(driver.read_config()).capacity == SECTORS, "nothing else can be written"


def test_without_config_wce_the_cache_mode_cannot_be_changed(driver: DiskDriver) -> None:
    driver.start(driver.offered() & ~F_CONFIG_WCE)
    driver.write_config(WRITEBACK_OFFSET, b"\0")
    assert BLOCK_CONFIG.unpack(driver.read_config()).writeback == 1


def test_block_devices_of_the_host_are_disks_too(tmp_path: Path) -> None:
    """A loop device stands for any; skipped where this machine gives none."""
    backing = tmp_path / "backing.img"
    backing.write_bytes(os.urandom(SECTORS * SECTOR))
    try:
        made = subprocess.run(
            ["losetup", "--find", "--show", str(backing)], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no loop device: {error}")
    device = made.stdout.strip()
    try:
        driver = DiskDriver(Block(Disk(device)))
        driver.start()
        assert BLOCK_CONFIG.unpack(driver.read_config()).capacity == SECTORS
        assert driver.ask(RequestType.IN, 2, into=(SECTOR,)).data[:-1] == backing.read_bytes()[1024:1536]
        driver.close()
    finally:
        subprocess.run(["losetup", "--detach", device], timeout=10, check=True)
