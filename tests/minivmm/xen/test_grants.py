"""Grant tables, one property a test; any order of calls is test_grants_model.py's."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from errno import EFAULT, EINVAL, ENOSYS, EPERM, ESRCH

import pytest

from minivmm.errors import ConfigError
from minivmm.memory import GuestMemory
from minivmm.xen import grant_abi as abi
from minivmm.xen.abi import Domid
from minivmm.xen.atomic import AtomicMemory
from minivmm.xen.errors import HypercallError
from minivmm.xen.grant_abi import GntMap, GrantOp, GrantStatus, Gtf
from minivmm.xen.grant_table import GrantRefused
from minivmm.xen.grants import Grants
from tests.minivmm.xen.grant_model import PAGE, FrameOwner

POINTER, BAD_POINTER = 0x7000, 0xDEAD000
ADDRESS = 0x10000


class Xen:
    """A control domain 0 and domains 1 and 2, each with two frames and a grant table of at most 3."""

    def __init__(self) -> None:
        self.memory = GuestMemory(1 << 20)
        self.frames = FrameOwner()
        self.grants = Grants(self.memory, self.frames, self.copy_to_guest)
        self.lists: list[bytes] = []
        for domid in (0, 1, 2):
            self.grants.add_domain(domid, privileged=domid == 0, max_frames=3)
        self.mfns = {domid: (self.frames.allocate(domid), self.frames.allocate(domid)) for domid in (1, 2)}

    def copy_to_guest(self, _domid: int, pointer: int, data: bytes) -> None:
        if pointer == BAD_POINTER:
            raise HypercallError(EFAULT, f"{pointer:#x} is not mapped")
        self.lists.append(data)

    def grant(self, domid: int, ref: int, flags: int, to: int, frame: int) -> int:
        """The guest writes an entry. Returns its address."""
        entry = self.grants.entry(domid, ref)
        self.memory.write(entry, abi.GRANT_ENTRY.pack(abi.GrantEntry(flags, to, frame)))
        return entry

    def map(
        self, caller: int, dom: int, ref: int, flags: int = GntMap.HOST_MAP, host: int = ADDRESS
    ) -> abi.MapGrantRef:
        request = abi.MAP_GRANT_REF.pack(abi.MapGrantRef(host, flags, ref, dom, 0, 0, 0))
        return abi.MAP_GRANT_REF.unpack(self.grants.grant_table_op(caller, GrantOp.MAP_GRANT_REF, request))

    def unmap(self, caller: int, handle: int, host: int = ADDRESS) -> int:
        request = abi.UNMAP_GRANT_REF.pack(abi.UnmapGrantRef(host, 0, handle, 0))
        return abi.UNMAP_GRANT_REF.unpack(self.grants.grant_table_op(caller, GrantOp.UNMAP_GRANT_REF, request)).status


@pytest.fixture
def xen() -> Iterator[Xen]:
    machine = Xen()
    yield machine
    machine.memory.close()


def test_a_mapped_grant_is_marked_in_use_until_it_is_unmapped(xen: Xen) -> None:
    entry = xen.grant(1, 8, Gtf.PERMIT_ACCESS, 2, xen.mfns[1][0])
    mapped = xen.map(2, 1, 8)
    assert (mapped.status, mapped.dev_bus_addr) == (GrantStatus.OKAY, xen.mfns[1][0] * PAGE)
    assert xen.memory.read_u16(entry) == Gtf.PERMIT_ACCESS | Gtf.READING | Gtf.WRITING
    assert xen.unmap(2, mapped.handle) == GrantStatus.OKAY
    assert xen.memory.read_u16(entry) == Gtf.PERMIT_ACCESS
    assert xen.unmap(2, mapped.handle) == GrantStatus.BAD_HANDLE
    assert not +xen.frames.references


def test_a_batch_goes_on_after_an_element_that_fails(xen: Xen) -> None:
    xen.grant(1, 0, Gtf.PERMIT_ACCESS, 2, xen.mfns[1][0])
    requests = [abi.MapGrantRef(host, GntMap.HOST_MAP, ref, 1, 0, 0, 0) for host, ref in ((0, 0), (1, 5), (ADDRESS, 0))]
    answers = xen.grants.grant_table_op(2, GrantOp.MAP_GRANT_REF, abi.MAP_GRANT_REF.pack_all(requests))
    statuses = [abi.MAP_GRANT_REF.unpack(answers, offset).status for offset in range(0, len(answers), 32)]
    assert statuses == [GrantStatus.GENERAL_ERROR, GrantStatus.GENERAL_ERROR, GrantStatus.OKAY]


def test_what_the_guest_writes_while_a_grant_is_in_use_changes_nothing(xen: Xen) -> None:
    xen.grant(1, 0, Gtf.PERMIT_ACCESS, 2, xen.mfns[1][0])
    first = xen.map(2, 1, 0)
    entry = xen.grant(1, 0, Gtf.PERMIT_ACCESS, 0, xen.mfns[1][1])
    assert xen.map(2, 1, 0, host=ADDRESS + PAGE).dev_bus_addr == xen.mfns[1][0] * PAGE
    assert xen.map(0, 1, 0).status == GrantStatus.GENERAL_ERROR
    xen.memory.write(entry, bytes(8))
    assert xen.unmap(2, first.handle) == GrantStatus.OKAY
    assert xen.memory.read(entry, 8) == bytes(8)
    assert xen.frames.references[xen.mfns[1][0]] == 1


def test_a_guest_that_changes_the_entry_during_the_check_gets_no_mark_on_the_new_one(
    xen: Xen, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = xen.grant(1, 0, Gtf.PERMIT_ACCESS, 2, xen.mfns[1][0])
    exchange = AtomicMemory.compare_exchange

    def revoked_just_before(self: AtomicMemory, address: int, expected: int, new: int) -> int:
        self._memory.write(address, bytes(4))
        return exchange(self, address, expected, new)

    monkeypatch.setattr(AtomicMemory, "compare_exchange", revoked_just_before)
    assert xen.map(2, 1, 0).status == GrantStatus.GENERAL_ERROR
    assert xen.memory.read_u32(entry) == 0
    assert not +xen.frames.references


def test_a_guest_that_never_holds_still_is_given_up_on(xen: Xen, monkeypatch: pytest.MonkeyPatch) -> None:
    xen.grant(1, 0, Gtf.PERMIT_ACCESS, 2, xen.mfns[1][0])
    attempts: list[int] = []

    def always_changed(_self: AtomicMemory, _address: int, expected: int, _new: int) -> int:
        attempts.append(expected)
        return expected ^ 1

    monkeypatch.setattr(AtomicMemory, "compare_exchange", always_changed)
    assert xen.map(2, 1, 0).status == GrantStatus.GENERAL_ERROR
    assert len(attempts) == 5


def test_a_grant_has_at_most_128_uses(xen: Xen) -> None:
    xen.grant(1, 0, Gtf.PERMIT_ACCESS, 2, xen.mfns[1][0])
    statuses = [xen.map(2, 1, 0, host=ADDRESS + PAGE * number).status for number in range(129)]
    assert statuses == [GrantStatus.OKAY] * 128 + [GrantStatus.GENERAL_ERROR]


def test_a_dead_granters_frames_and_table_stay_until_the_last_unmap(xen: Xen) -> None:
    mfn = xen.mfns[1][0]
    table = xen.grant(1, 0, Gtf.PERMIT_ACCESS, 2, mfn) // PAGE
    handle = xen.map(2, 1, 0).handle
    xen.frames.end(1)
    xen.grants.remove_domain(1)
    assert mfn not in xen.frames.free
    assert table in xen.frames.shared
    assert xen.map(2, 1, 0, host=ADDRESS + PAGE).status == GrantStatus.BAD_DOMAIN
    assert xen.unmap(2, handle) == GrantStatus.OKAY
    assert mfn in xen.frames.free
    assert table not in xen.frames.shared


def test_the_end_of_a_user_releases_all_it_had_mapped(xen: Xen) -> None:
    entry = xen.grant(1, 0, Gtf.PERMIT_ACCESS, 2, xen.mfns[1][0])
    for number in range(3):
        assert xen.map(2, 1, 0, host=ADDRESS + PAGE * number).status == GrantStatus.OKAY
    xen.grants.remove_domain(2)
    assert not +xen.frames.references
    assert xen.memory.read_u16(entry) == Gtf.PERMIT_ACCESS


def test_a_third_domain_copies_between_two_that_granted_it(xen: Xen) -> None:
    source = xen.grant(1, 0, Gtf.PERMIT_ACCESS | Gtf.READONLY, 0, xen.mfns[1][0])
    xen.grant(2, 0, Gtf.PERMIT_ACCESS, 0, xen.mfns[2][0])
    xen.memory.write(xen.mfns[1][0] * PAGE + 10, b"granted")
    request = abi.COPY.pack(abi.Copy(0, 1, 10, 0, 2, 4089, 7, 3, 99))
    assert abi.COPY.unpack(xen.grants.grant_table_op(0, GrantOp.COPY, request)).status == GrantStatus.OKAY
    assert xen.memory.read(xen.mfns[2][0] * PAGE + 4089, 7) == b"granted"
    assert xen.memory.read_u16(source) == Gtf.PERMIT_ACCESS | Gtf.READONLY


def test_a_transfer_moves_the_frame_and_says_which(xen: Xen) -> None:
    mfn = xen.mfns[1][0]
    entry = xen.grant(2, 0, Gtf.ACCEPT_TRANSFER, 1, 0)
    request = abi.TRANSFER.pack(abi.Transfer(mfn, 2, 0, 99))
    assert abi.TRANSFER.unpack(xen.grants.grant_table_op(1, GrantOp.TRANSFER, request)).status == GrantStatus.OKAY
    assert xen.frames.owner[mfn] == 2
    completed = Gtf.ACCEPT_TRANSFER | Gtf.TRANSFER_COMMITTED | Gtf.TRANSFER_COMPLETED
    assert abi.GRANT_ENTRY.unpack(xen.memory.read(entry, 8)) == (completed, 1, mfn)


def test_setup_table_grows_up_to_the_limit_and_lists_the_frames(xen: Xen) -> None:
    def setup(caller: int, dom: int, count: int, pointer: int = POINTER) -> int:
        request = abi.SETUP_TABLE.pack(abi.SetupTable(dom, count, 99, pointer))
        return abi.SETUP_TABLE.unpack(xen.grants.grant_table_op(caller, GrantOp.SETUP_TABLE, request)).status

    assert setup(1, Domid.SELF, 3) == GrantStatus.OKAY
    assert struct.unpack("<3Q", xen.lists[-1]) == tuple(xen.grants.entry(1, 512 * n) // PAGE for n in range(3))
    assert setup(1, Domid.SELF, 4) == GrantStatus.GENERAL_ERROR
    assert setup(1, Domid.SELF, 1, BAD_POINTER) == GrantStatus.BAD_VIRT_ADDR
    assert setup(1, 2, 1) == GrantStatus.PERMISSION_DENIED
    assert setup(0, 2, 2) == GrantStatus.OKAY
    assert setup(0, 9, 1) == GrantStatus.BAD_DOMAIN
    xen.frames.free.clear()
    assert setup(2, Domid.SELF, 3) == GrantStatus.GENERAL_ERROR
    query = abi.QUERY_SIZE.pack(abi.QuerySize(2, 0, 0, 99))
    assert abi.QUERY_SIZE.unpack(xen.grants.grant_table_op(0, GrantOp.QUERY_SIZE, query)) == (2, 2, 3, 0)


@pytest.mark.parametrize(
    ("cmd", "argument", "errno"),
    [
        (GrantOp.SET_VERSION, struct.pack("<I", 2), ENOSYS),
        (GrantOp.SET_VERSION, struct.pack("<I", 3), EINVAL),
        (GrantOp.GET_VERSION, struct.pack("<HHI", 2, 0, 0), EPERM),
        (GrantOp.GET_VERSION, struct.pack("<HHI", 9, 0, 0), ESRCH),
        (GrantOp.SETUP_TABLE, bytes(48), EINVAL),
        (GrantOp.COPY, bytes(39), EINVAL),
        (9, bytes(24), ENOSYS),
        (2**32 - 1, b"", ENOSYS),
    ],
)
def test_what_there_is_not_is_refused_with_xens_error(xen: Xen, cmd: int, argument: bytes, errno: int) -> None:
    with pytest.raises(HypercallError) as refused:
        xen.grants.grant_table_op(1, cmd, argument)
    assert refused.value.errno == errno


def test_version_1_is_what_there_is(xen: Xen) -> None:
    assert xen.grants.grant_table_op(1, GrantOp.SET_VERSION, struct.pack("<I", 1)) == struct.pack("<I", 1)
    answer = xen.grants.grant_table_op(1, GrantOp.GET_VERSION, struct.pack("<HHI", Domid.SELF, 0, 0))
    assert abi.GET_VERSION.unpack(answer).version == 1


def test_a_device_mapping_needs_an_iommu_that_is_not_there(xen: Xen) -> None:
    xen.grant(1, 0, Gtf.PERMIT_ACCESS, 2, xen.mfns[1][0])
    flags = GntMap.HOST_MAP | GntMap.DEVICE_MAP
    assert xen.map(2, 1, 0, flags).status == GrantStatus.NO_DEVICE_SPACE


def test_a_domain_is_added_once_and_entries_beyond_the_table_are_nobodys(xen: Xen) -> None:
    with pytest.raises(ConfigError):
        xen.grants.add_domain(1)
    with pytest.raises(ConfigError):
        xen.grants.add_domain(Domid.SELF)
    with pytest.raises(GrantRefused):
        xen.grants.entry(1, 512)
