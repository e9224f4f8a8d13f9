"""grant_table_op (xen/grant_table.h): one domain's frames used by another, by the owner's leave.

Each element of a call succeeds or fails by itself and says so in its status; the call itself fails only for what is no
operation or no guest memory. Who may do what is decided here; the entries are `grant_table.py`'s, page tables and
reference counts those of the frame owner behind `Frames`.

Calls are serialised by the caller (one lock for the hypervisor); the guest's CPUs run on meanwhile.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import ExitStack
from errno import EINVAL, ENOSYS, EPERM, ESRCH
from typing import Any

from minivmm.errors import ConfigError
from minivmm.layout import Layout
from minivmm.memory import PAGE_SIZE, GuestMemory
from minivmm.xen import grant_abi as abi
from minivmm.xen.abi import Domid
from minivmm.xen.errors import HypercallError
from minivmm.xen.grant_abi import GntCopy, GntMap, GrantOp, GrantStatus
from minivmm.xen.grant_table import Frames, GrantRefused, GrantTable, Mapping

MAX_FRAMES = 64  # a domain's grant table, Xen's default: 32768 entries
MAX_MAPPINGS = 32768  # handles a domain may hold


class Grants:
    """Every domain's grant table.

    `copy_to_guest(domid, pointer, data)` stores at a guest's virtual address and raises HypercallError where it cannot.
    """

    def __init__(self, memory: GuestMemory, frames: Frames, copy_to_guest: Callable[[int, int, bytes], None]) -> None:
        self._memory = memory
        self._frames = frames
        self._copy_to_guest = copy_to_guest
        self._tables: dict[int, GrantTable] = {}
        # The whole interface: operation, one element's layout, who does it, whether a call takes many. The rest is
        # ENOSYS: version 2 and its operations, and what only translated or ARM guests use.
        self.operations: dict[int, tuple[Layout[Any], Callable[[int, Any], Any], bool]] = {
            GrantOp.MAP_GRANT_REF: (abi.MAP_GRANT_REF, self.map_grant_ref, True),
            GrantOp.UNMAP_GRANT_REF: (abi.UNMAP_GRANT_REF, self.unmap_grant_ref, True),
            GrantOp.SETUP_TABLE: (abi.SETUP_TABLE, self.setup_table, False),
            GrantOp.TRANSFER: (abi.TRANSFER, self.transfer, True),
            GrantOp.COPY: (abi.COPY, self.copy, True),
            GrantOp.QUERY_SIZE: (abi.QUERY_SIZE, self.query_size, False),
            GrantOp.SET_VERSION: (abi.SET_VERSION, self.set_version, False),
            GrantOp.GET_VERSION: (abi.GET_VERSION, self.get_version, False),
        }

    def add_domain(self, domid: int, *, privileged: bool = False, max_frames: int = MAX_FRAMES) -> None:
        """A domain with one empty frame of grant table. Raises ConfigError, and what the allocator raises."""
        if not 0 <= domid < Domid.FIRST_RESERVED or domid in self._tables or max_frames < 1:
            raise ConfigError(f"there can be no new domain {domid} with {max_frames} grant frames")
        table = GrantTable(domid, self._memory, self._frames, privileged=privileged, max_frames=max_frames)
        table.grow(1)
        self._tables[domid] = table

    def remove_domain(self, domid: int) -> None:
        """The domain is dead and its page tables are gone: all it had mapped is released. Frames it granted stay
        referenced until the last user unmaps them; nobody can begin a new use."""
        self._table(domid).kill()
        del self._tables[domid]

    def entry(self, domid: int, ref: int) -> int:
        """The machine address of a grant entry: the domain builder fills the reserved ones. Raises GrantRefused."""
        return self._table(domid).entry(ref)

    # The hypercall

    def grant_table_op(self, caller: int, cmd: int, elements: bytes, vcpu: int = 0) -> bytes:
        """grant_table_op on a copy of the guest's array. Returns what the guest gets back in its place. Raises
        HypercallError. `vcpu` is the caller's: it is its page tables that a virtual address to map at means."""
        self._frames.vcpu = vcpu
        layout, operation, many = self._operation(cmd)
        if len(elements) % layout.size or (not many and len(elements) != layout.size):
            raise HypercallError(EINVAL, f"grant_table_op {cmd} with {len(elements)} bytes")
        self._table(caller)
        answers = []
        for offset in range(0, len(elements), layout.size):
            element = layout.unpack(elements, offset)
            try:
                answer = operation(caller, element)
            except GrantRefused as refused:
                answer = element._replace(status=refused.status)
            answers.append(answer)
        return layout.pack_all(answers)

    def element_size(self, cmd: int) -> int:
        """Bytes an element of operation `cmd`. Raises HypercallError ENOSYS."""
        return self._operation(cmd)[0].size

    def takes_many(self, cmd: int) -> bool:
        """Whether operation `cmd` takes an array. Raises HypercallError ENOSYS."""
        return self._operation(cmd)[2]

    def _operation(self, cmd: int) -> tuple[Layout[Any], Callable[[int, Any], Any], bool]:
        if cmd not in self.operations:
            raise HypercallError(ENOSYS, f"grant_table_op {cmd}")
        return self.operations[cmd]

    # Each of these takes one element and returns it answered. Raises GrantRefused with the element's status.

    def map_grant_ref(self, caller: int, args: abi.MapGrantRef) -> abi.MapGrantRef:
        """Enters a granted frame in the caller's page tables. `dom` names the granter; DOMID_SELF names nobody here."""
        if not args.flags & (GntMap.HOST_MAP | GntMap.DEVICE_MAP):
            raise GrantRefused(GrantStatus.BAD_GNTREF, "a mapping for neither host nor device")
        if args.flags & GntMap.DEVICE_MAP:
            raise GrantRefused(GrantStatus.NO_DEVICE_SPACE, "there is no IOMMU")
        granter = self._granter(args.dom)
        holder = self._table(caller)
        if len(holder.mappings) >= MAX_MAPPINGS:
            raise GrantRefused(GrantStatus.NO_SPACE, f"domain {caller} holds {MAX_MAPPINGS} mappings")
        writable = not args.flags & GntMap.READONLY
        mfn = granter.pin(args.ref, caller, writable=writable, mapping=True).mfn
        try:
            self._frames.map_grant(caller, mfn, args.host_addr, args.flags)
        except HypercallError as error:
            granter.unpin(args.ref, writable=writable)
            raise GrantRefused(GrantStatus.GENERAL_ERROR, error.message) from error
        handle = holder.free_handles.pop() if holder.free_handles else len(holder.mappings)
        holder.mappings[handle] = Mapping(granter, args.ref, mfn, args.host_addr, args.flags, writable)
        # Linux takes the machine frame from dev_bus_addr, also without a device mapping.
        return args._replace(status=GrantStatus.OKAY, handle=handle, dev_bus_addr=mfn * PAGE_SIZE)

    def unmap_grant_ref(self, caller: int, args: abi.UnmapGrantRef) -> abi.UnmapGrantRef:
        """Ends a mapping. With host_addr 0 nothing is named to be unmapped, and the handle stays."""
        holder = self._table(caller)
        mapping = holder.mappings.get(args.handle)
        if mapping is None:
            raise GrantRefused(GrantStatus.BAD_HANDLE, f"domain {caller} has no mapping {args.handle}")
        if args.host_addr:
            if args.host_addr != mapping.host_addr:
                raise GrantRefused(GrantStatus.GENERAL_ERROR, f"mapping {args.handle} is not at {args.host_addr:#x}")
            try:
                self._frames.unmap_grant(caller, mapping.mfn, mapping.host_addr, mapping.flags)
            except HypercallError as error:
                raise GrantRefused(GrantStatus.GENERAL_ERROR, error.message) from error
            del holder.mappings[args.handle]
            holder.free_handles.append(args.handle)
            mapping.granter.unpin(mapping.ref, writable=mapping.writable)
        return args._replace(status=GrantStatus.OKAY)

    def copy(self, caller: int, args: abi.Copy) -> abi.Copy:
        """Copies inside one frame each: the caller's own by mfn, another's by grant."""
        source_table = self._copy_side(caller, args.source_domid, args.flags & GntCopy.SOURCE_GREF)
        dest_table = self._copy_side(caller, args.dest_domid, args.flags & GntCopy.DEST_GREF)
        with ExitStack() as held:
            source = self._claim(held, caller, source_table, args.source, False)
            dest = self._claim(held, caller, dest_table, args.dest, True)
            if max(args.source_offset, args.dest_offset) + args.len > PAGE_SIZE:
                raise GrantRefused(GrantStatus.BAD_COPY_ARG, "a copy across the end of a page")
            data = self._memory.read(source * PAGE_SIZE + args.source_offset, args.len)
            self._memory.write(dest * PAGE_SIZE + args.dest_offset, data)
        return args._replace(status=GrantStatus.OKAY)

    def transfer(self, caller: int, args: abi.Transfer) -> abi.Transfer:
        """Gives a frame away. It leaves the caller even when it does not arrive, unless the status is bad_page."""
        try:
            self._frames.steal(caller, args.mfn)
        except HypercallError as error:
            raise GrantRefused(GrantStatus.BAD_PAGE, error.message) from error
        try:
            self._deliver(caller, args)
        except GrantRefused:
            self._frames.discard(args.mfn)
            raise
        return args._replace(status=GrantStatus.OKAY)

    def setup_table(self, caller: int, args: abi.SetupTable) -> abi.SetupTable:
        """Grows a table to `nr_frames` and tells where its frames are."""
        table = self._target(caller, args.dom)
        if args.nr_frames > table.max_frames:
            raise GrantRefused(GrantStatus.GENERAL_ERROR, f"a grant table of {args.nr_frames} frames")
        try:
            table.grow(args.nr_frames)
        except HypercallError as error:
            raise GrantRefused(GrantStatus.GENERAL_ERROR, error.message) from error
        frames = table.shared[: args.nr_frames]
        try:
            self._copy_to_guest(caller, args.frame_list, struct.pack(f"<{len(frames)}Q", *frames))
        except HypercallError as error:
            raise GrantRefused(GrantStatus.BAD_VIRT_ADDR, error.message) from error
        return args._replace(status=GrantStatus.OKAY)

    def query_size(self, caller: int, args: abi.QuerySize) -> abi.QuerySize:
        """How large a table is and may become, in frames."""
        table = self._target(caller, args.dom)
        return args._replace(nr_frames=len(table.shared), max_nr_frames=table.max_frames, status=GrantStatus.OKAY)

    def set_version(self, _caller: int, args: abi.SetVersion) -> abi.SetVersion:
        """There is version 1. Raises HypercallError: as a Xen limited to it, ENOSYS for 2, EINVAL for what is none."""
        if args.version != 1:
            raise HypercallError(ENOSYS if args.version == 2 else EINVAL, f"grant table version {args.version}")
        return args

    def get_version(self, caller: int, args: abi.GetVersion) -> abi.GetVersion:
        """The version in use. Raises HypercallError ESRCH or EPERM."""
        table = self._table(caller if args.dom == Domid.SELF else args.dom)
        if table.domid != caller and not self._table(caller).privileged:
            raise HypercallError(EPERM, f"domain {caller} has no say over domain {args.dom}")
        return args._replace(version=1)

    def _deliver(self, caller: int, args: abi.Transfer) -> None:
        receiver = self._granter(args.domid)
        address = receiver.commit_transfer(args.ref, caller)
        try:
            self._frames.give(args.domid, args.mfn)
        except HypercallError as error:
            receiver.cancel_transfer(address, caller)
            raise GrantRefused(GrantStatus.GENERAL_ERROR, error.message) from error
        receiver.complete_transfer(address, args.mfn)

    def _copy_side(self, caller: int, domid: int, by_grant: int) -> GrantTable | None:
        """Whose grant one side of a copy uses; None for a frame of the caller's own."""
        if not by_grant:
            if domid != Domid.SELF:
                raise GrantRefused(GrantStatus.PERMISSION_DENIED, "a copy by frame number of what is not the caller's")
            return None
        return self._granter(caller if domid == Domid.SELF else domid)

    def _claim(self, held: ExitStack, caller: int, table: GrantTable | None, name: int, writable: bool) -> int:
        """Holds one side of a copy until `held` closes. Returns its mfn."""
        if table is None:
            return self._claim_own(held, caller, name, writable)
        ref = name & 0xFFFFFFFF
        active = table.pin(ref, caller, writable=writable, mapping=False)
        held.callback(table.unpin, ref, writable=writable)
        return active.mfn

    def _claim_own(self, held: ExitStack, caller: int, mfn: int, writable: bool) -> int:
        try:
            self._frames.get_page(caller, mfn)
        except HypercallError as error:
            raise GrantRefused(GrantStatus.BAD_PAGE, error.message) from error
        held.callback(self._frames.put_page, caller, mfn)
        if writable:
            try:
                self._frames.get_writable(caller, mfn)
            except HypercallError as error:
                raise GrantRefused(GrantStatus.GENERAL_ERROR, error.message) from error
            held.callback(self._frames.put_writable, caller, mfn)
        return mfn

    # Who may

    def _table(self, domid: int) -> GrantTable:
        if domid not in self._tables:
            raise HypercallError(ESRCH, f"there is no domain {domid}")
        return self._tables[domid]

    def _granter(self, domid: int) -> GrantTable:
        if domid not in self._tables:
            raise GrantRefused(GrantStatus.BAD_DOMAIN, f"there is no domain {domid}")
        return self._tables[domid]

    def _target(self, caller: int, domid: int) -> GrantTable:
        table = self._granter(caller if domid == Domid.SELF else domid)
        if table.domid != caller and not self._table(caller).privileged:
            raise GrantRefused(GrantStatus.PERMISSION_DENIED, f"domain {caller} has no say over domain {domid}")
        return table
