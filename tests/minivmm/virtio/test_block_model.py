"""A disk against its model, a bytearray: whatever is asked of it, in whatever buffers, both hold the same."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from minivmm.memory import GuestMemory
from minivmm.virtio.block import HEADER, RANGE, UNMAP, Block, Disk, Range, RequestHeader, RequestStatus, RequestType
from minivmm.virtio.driver import MockDriver

SECTOR = 512
SECTORS = 32

sectors = st.integers(0, SECTORS + 2)
counts = st.integers(0, 5)
cuts = st.lists(st.integers(1, 700), max_size=6)


def pieces(length: int, cuts: list[int]) -> list[int]:
    """`length` cut into at most len(cuts) + 1 parts."""
    parts = []
    for cut in cuts:
        if length > cut:
            parts.append(cut)
            length -= cut
    return [*parts, length]


class DiskAgainstModel(RuleBasedStateMachine):
    """`model` is what the disk must hold."""

    @initialize(content=st.binary(max_size=64))
    def make(self, content: bytes) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name, "disk.img")
        self.model = bytearray((content * SECTORS * SECTOR)[: SECTORS * SECTOR].ljust(SECTORS * SECTOR, b"\0"))
        self.path.write_bytes(self.model)
        self.driver = MockDriver(Block(Disk(self.path)), memory=GuestMemory(1 << 20))
        self.driver.start()

    def ask(
        self, kind: int, sector: int, data: bytes, into: int, cuts: list[int], indirect: bool
    ) -> tuple[bytes, RequestStatus]:
        if self.driver._free > 1 << 19:
            self.driver.start()
        request = HEADER.pack(RequestHeader(kind, 0, sector)) + data
        out, at = [], 0
        for part in pieces(len(request), cuts):
            out.append(request[at : at + part])
            at += part
        completion = self.driver.request(0, *out, into=pieces(into + 1, cuts), indirect=indirect)
        return completion.data[:-1], RequestStatus(completion.data[-1])

    @rule(sector=sectors, count=counts, cuts=cuts, indirect=st.booleans())
    def read(self, sector: int, count: int, cuts: list[int], indirect: bool) -> None:
        data, status = self.ask(RequestType.IN, sector, b"", count * SECTOR, cuts, indirect)
        if sector + count > SECTORS:
            assert status is RequestStatus.IOERR
        else:
            assert status is RequestStatus.OK
            assert data == self.model[sector * SECTOR : (sector + count) * SECTOR]

    @rule(sector=sectors, count=counts, seed=st.binary(min_size=1, max_size=40), cuts=cuts, indirect=st.booleans())
    def write(self, sector: int, count: int, seed: bytes, cuts: list[int], indirect: bool) -> None:
        data = (seed * SECTOR * count)[: count * SECTOR]
        _, status = self.ask(RequestType.OUT, sector, data, 0, cuts, indirect)
        if sector + count > SECTORS:
            assert status is RequestStatus.IOERR
        else:
            assert status is RequestStatus.OK
            self.model[sector * SECTOR : (sector + count) * SECTOR] = data

    @rule(
        ranges=st.lists(st.tuples(sectors, counts), min_size=1, max_size=4),
        zeroes=st.booleans(),
        unmap=st.booleans(),
        cuts=cuts,
    )
    def clear(self, ranges: list[tuple[int, int]], zeroes: bool, unmap: bool, cuts: list[int]) -> None:
        kind = RequestType.WRITE_ZEROES if zeroes else RequestType.DISCARD
        flags = UNMAP if zeroes and unmap else 0
        data = b"".join(RANGE.pack(Range(sector, count, flags)) for sector, count in ranges)
        _, status = self.ask(kind, 0, data, 0, cuts, False)
        if any(sector + count > SECTORS for sector, count in ranges):
            assert status is RequestStatus.IOERR
            return
        assert status is RequestStatus.OK
        for sector, count in ranges:
            self.model[sector * SECTOR : (sector + count) * SECTOR] = bytes(count * SECTOR)

    @rule(length=st.integers(1, 1000).filter(lambda n: n % SECTOR != 0))
    def read_part_of_a_sector(self, length: int) -> None:
        _, status = self.ask(RequestType.IN, 0, b"", length, [], False)
        assert status is RequestStatus.IOERR

    @rule()
    def flush(self) -> None:
        assert self.ask(RequestType.FLUSH, 0, b"", 0, [], False)[1] is RequestStatus.OK

    @rule(kind=st.integers(14, 2**32 - 1))
    def ask_for_what_is_not_there(self, kind: int) -> None:
        assert self.ask(kind, 0, b"", 0, [], False)[1] is RequestStatus.UNSUPP

    @invariant()
    def the_file_is_the_model(self) -> None:
        if hasattr(self, "model"):
            assert self.path.read_bytes() == self.model
            assert not self.driver.transport.faults

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.driver.close()
            self.directory.cleanup()


DiskAgainstModel.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)
test_a_disk_holds_what_its_model_holds = DiskAgainstModel.TestCase
