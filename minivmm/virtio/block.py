"""virtio-blk (virtio 1.2, 5.2) on a raw image: data moves between the file and guest memory in one system call."""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from minivmm.layout import Layout
from minivmm.virtio.device import Chain, QueueSpec, VirtioDevice
from minivmm.virtio.image import SECTOR, RawImage

# Feature bits (5.2.3).
F_SEG_MAX = 1 << 2
F_RO = 1 << 5
F_BLK_SIZE = 1 << 6
F_FLUSH = 1 << 9
F_TOPOLOGY = 1 << 10
F_CONFIG_WCE = 1 << 11
F_DISCARD = 1 << 13
F_WRITE_ZEROES = 1 << 14

QUEUE_SIZE = 256
SEG_MAX = QUEUE_SIZE - 2  # header and status take two descriptors
MAX_REQUEST = 64 << 20  # bytes: bounds the time of one request; drivers send a few MiB at most
MAX_RANGES = 16  # ranges in one discard or write-zeroes request
MAX_DISCARD_SECTORS = (1 << 30) // SECTOR  # of one range: costs the host little, whatever its length
MAX_ZEROES_SECTORS = MAX_REQUEST // MAX_RANGES // SECTOR  # of one range, which may have to be written out

MAX_ERRORS = 32  # the newest are kept


class Disk(NamedTuple):
    """A raw disk image given to a machine."""

    path: str | Path
    read_only: bool = False


class RequestType(IntEnum):
    """virtio_blk_req.type (5.2.6)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class RequestStatus(IntEnum):
    """virtio_blk_req.status (5.2.6)."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


class RequestHeader(NamedTuple):
    """The head of struct virtio_blk_req (5.2.6). Data and the status byte follow."""

    type: int
    reserved: int
    sector: int  # of 512 bytes, whatever blk_size says


HEADER = Layout("<IIQ", RequestHeader)


class Range(NamedTuple):
    """struct virtio_blk_discard_write_zeroes (5.2.6)."""

    sector: int
    num_sectors: int
    flags: int


RANGE = Layout("<QII", Range)
UNMAP = 1  # Range.flags, for write-zeroes only

ID_BYTES = 20


class BlockConfig(NamedTuple):
    """struct virtio_blk_config (5.2.4). Fields of features that are not offered are 0."""

    capacity: int  # sectors of 512 bytes
    size_max: int
    seg_max: int
    cylinders: int
    heads: int
    sectors: int
    blk_size: int
    physical_block_exp: int  # 2^n logical blocks make a physical one
    alignment_offset: int
    min_io_size: int
    opt_io_size: int
    writeback: int  # CONFIG_WCE: 1 writeback, 0 writethrough; the one field a driver may write
    num_queues: int
    max_discard_sectors: int
    max_discard_seg: int
    discard_sector_alignment: int
    max_write_zeroes_sectors: int
    max_write_zeroes_seg: int
    write_zeroes_may_unmap: int


BLOCK_CONFIG = Layout("<QIIHBBIBBHIBxHIIIIIB3x", BlockConfig)
WRITEBACK_OFFSET = 32


class Refused(Exception):
    """A request that ends with this status, and why. Internal to this file: answered in the status byte."""

    def __init__(self, status: RequestStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Block(VirtioDevice):
    """A disk. Opens and locks the image: raises ImageError when that cannot be a disk or is in use.

    A request that fails is answered with IOERR or UNSUPP, and the cause is kept in `errors`. A file that shrinks
    while the machine runs gives IOERR to reads beyond its end; writes there make it grow again.
    """

    device_type = 2
    queues = (QueueSpec("requestq", max_size=QUEUE_SIZE),)

    def __init__(self, disk: Disk, *, serial: str = "") -> None:
        self.image = RawImage(disk.path, read_only=disk.read_only)
        self.errors: deque[str] = deque(maxlen=MAX_ERRORS)
        """Why requests failed, newest last."""
        self._size = self.image.size
        self._id = serial.encode()[:ID_BYTES].ljust(ID_BYTES, b"\0")
        self._write_through = False
        self._features = 0
        features = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_CONFIG_WCE
        features |= F_RO if disk.read_only else F_DISCARD | F_WRITE_ZEROES
        super().__init__(features=features, config=BLOCK_CONFIG.pack(self._describe()))
        self._serve = {
            RequestType.IN.value: self._read,
            RequestType.OUT.value: self._write,
            RequestType.FLUSH.value: self._flush,
            RequestType.GET_ID.value: self._get_id,
            RequestType.DISCARD.value: self._discard,
            RequestType.WRITE_ZEROES.value: self._write_zeroes,
        }

    def _describe(self) -> BlockConfig:
        block_sectors = max(self.image.block_size // SECTOR, 1)
        return BlockConfig(
            capacity=self._size // SECTOR,
            size_max=0,
            seg_max=SEG_MAX,
            cylinders=0,
            heads=0,
            sectors=0,
            blk_size=SECTOR,
            physical_block_exp=block_sectors.bit_length() - 1,
            alignment_offset=0,
            min_io_size=block_sectors,
            opt_io_size=0,
            writeback=1,
            num_queues=1,
            max_discard_sectors=MAX_DISCARD_SECTORS,
            max_discard_seg=MAX_RANGES,
            discard_sector_alignment=block_sectors,
            max_write_zeroes_sectors=MAX_ZEROES_SECTORS,
            max_write_zeroes_seg=MAX_RANGES,
            write_zeroes_may_unmap=1,
        )

    # Cost: 3.8 us for a 4 KiB read from the page cache, 1.0 us of it in preadv; with queue and transport, from kick to
    # completion, 10 us. Guarded by benchmarks/virtio.py.
    def handle_requestq(self, chain: Chain) -> int:
        """Serves one request and writes its status byte. Returns the used length."""
        kind, _, sector = HEADER.unpack(chain.take(HEADER.size))
        status = chain.take_last_writable()
        serve = self._serve.get(kind)
        try:
            if serve is None:
                raise Refused(RequestStatus.UNSUPP, f"request type {kind} is not supported")
            written = serve(chain, sector)
        except Refused as refused:
            return self._fail(chain, status, refused.status, refused.reason)
        except OSError as error:
            return self._fail(chain, status, RequestStatus.IOERR, f"{self.image.path}: {error.strerror}")
        status[0] = RequestStatus.OK
        return written + 1

    def _fail(self, chain: Chain, status: memoryview, answer: RequestStatus, reason: str) -> int:
        self.errors.append(f"{answer.name}: {reason}")
        status[0] = answer
        # 2.7.8.2: the used length counts from the first writable byte, and the data before the status is not written.
        return 0 if chain.writable else 1

    def _extent(self, sector: int, length: int) -> int:
        """The byte offset of `length` bytes at `sector`. Raises Refused(IOERR) when they are not all on the disk."""
        offset = sector * SECTOR
        if length % SECTOR:
            raise Refused(RequestStatus.IOERR, f"{length} bytes are not whole sectors")
        if offset + length > self._size:
            raise Refused(RequestStatus.IOERR, f"sector {sector} + {length} bytes is beyond the end of the disk")
        return offset

    def _data_extent(self, sector: int, length: int) -> int:
        """As `_extent`, for data that moves. Raises Refused(IOERR) also for more than one request may carry."""
        if length > MAX_REQUEST:
            raise Refused(RequestStatus.IOERR, f"{length} bytes in one request; at most {MAX_REQUEST} are served")
        return self._extent(sector, length)

    def _read(self, chain: Chain, sector: int) -> int:
        length = chain.writable_size
        offset = self._data_extent(sector, length)
        count = self.image.read_into(chain.writable, offset, length) if length else 0
        if count < length:
            raise Refused(RequestStatus.IOERR, f"{self.image.path} shrank: it ends at {offset + count}")
        return length

    def _writable(self) -> None:
        if self.image.read_only:
            raise Refused(RequestStatus.IOERR, "the disk is read-only")  # 5.2.6.2

    def _write(self, chain: Chain, sector: int) -> int:
        self._writable()
        length = chain.readable_size
        offset = self._data_extent(sector, length)
        if length:
            self.image.write_from(chain.readable, offset, length)
        self._settle()
        return 0

    def _settle(self) -> None:
        """In writethrough, a request is complete only when its data is on the medium (5.2.6.2)."""
        if self._write_through:
            self.image.flush()

    def _flush(self, _chain: Chain, _sector: int) -> int:
        if not self.image.read_only:
            self.image.flush()
        return 0

    def _get_id(self, chain: Chain, _sector: int) -> int:
        return chain.scatter(self._id)

    def _ranges(self, chain: Chain, allowed_flags: int, max_sectors: int) -> list[tuple[int, int, int]]:
        """The request's ranges as (offset, length, flags), checked all before any is served (5.2.6.2)."""
        self._writable()
        count, odd = divmod(chain.readable_size, RANGE.size)
        if odd or not count:
            raise Refused(RequestStatus.IOERR, f"{chain.readable_size} bytes of ranges are not whole ones")
        if count > MAX_RANGES:
            raise Refused(RequestStatus.UNSUPP, f"{count} ranges in one request; at most {MAX_RANGES} are served")
        ranges = []
        for _ in range(count):
            sector, num_sectors, flags = RANGE.unpack(chain.take(RANGE.size))
            if flags & ~allowed_flags:
                raise Refused(RequestStatus.UNSUPP, f"flags {flags:#x} of a range")
            if num_sectors > max_sectors:
                raise Refused(RequestStatus.IOERR, f"{num_sectors} sectors in one range; at most {max_sectors}")
            ranges.append((self._extent(sector, num_sectors * SECTOR), num_sectors * SECTOR, flags))
        return ranges

    def _discard(self, chain: Chain, _sector: int) -> int:
        for offset, length, _ in self._ranges(chain, 0, MAX_DISCARD_SECTORS):
            if length:
                self.image.discard(offset, length)
        self._settle()
        return 0

    def _write_zeroes(self, chain: Chain, _sector: int) -> int:
        for offset, length, flags in self._ranges(chain, UNMAP, MAX_ZEROES_SECTORS):
            if length:
                self.image.write_zeroes(offset, length, unmap=bool(flags & UNMAP))
        self._settle()
        return 0

    # --- the driver's wishes --------------------------------------------------------------------------------------

    def negotiated(self, features: int) -> None:
        """Without FLUSH a driver cannot ask for durability, so every write has it (5.2.5.2, 5.2.6.2)."""
        self._features = features
        self._set_writeback(bool(features & F_FLUSH))

    def write_config(self, offset: int, data: bytes) -> None:
        """CONFIG_WCE: `writeback` is the one field a driver may set, to 0 or 1."""
        settable = F_CONFIG_WCE | F_FLUSH
        if offset == WRITEBACK_OFFSET and len(data) == 1 and self._features & settable == settable:
            self._set_writeback(bool(data[0]))

    def _set_writeback(self, writeback: bool) -> None:
        """Going to writethrough makes what was written before durable as well, at the next completed request."""
        self.config[WRITEBACK_OFFSET] = writeback
        self._write_through = not writeback

    def reset(self) -> None:
        """Back to writeback; data that was acknowledged but not flushed stays in the file."""
        self._features = 0
        self._set_writeback(True)

    def close(self) -> None:
        """Closes and unlocks the image. What a flush acknowledged is on the medium; the rest is the host's to write."""
        self.image.close()
