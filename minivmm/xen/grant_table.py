"""One domain's grant table, version 1: the entries in its shared frames, and who uses which.

The guest writes the entries and may do so at any time. So an entry is read once, checked, and claimed by a
compare-and-exchange of flags and domid together; from then on only `active`, which is the hypervisor's, says which
frame is in use by whom. A use ends by clearing GTF_reading and GTF_writing, whatever the guest has made of the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from minivmm.errors import GuestError
from minivmm.memory import PAGE_SIZE, GuestMemory
from minivmm.xen.atomic import AtomicMemory
from minivmm.xen.errors import HypercallError
from minivmm.xen.grant_abi import GRANT_ENTRY, READING_BIT, TRANSFER_COMPLETED_BIT, WRITING_BIT, GrantStatus, Gtf

ENTRIES_A_FRAME = PAGE_SIZE // GRANT_ENTRY.size
MAX_PINS = 128  # uses of one entry at a time, as Xen counts them
MAX_ATTEMPTS = 5  # compare-and-exchange against a guest that keeps changing the word


class GrantRefused(GuestError):
    """One element of a grant operation fails with `status`; the hypercall goes on with the next."""

    def __init__(self, status: GrantStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Frames(Protocol):
    """What grants need of the owner of machine frames. Every method but the put_ and un- ones may raise HypercallError.

    References outlive their domain: a frame of a dead one is free when its last reference is put.
    """

    vcpu: int
    """Whose page tables the virtual addresses of map_grant and unmap_grant mean: a vCPU of their `domid`."""

    def get_page(self, domid: int, mfn: int) -> None:
        """A reference to a frame, which must be the domain's."""

    def put_page(self, domid: int, mfn: int) -> None:
        """Gives it back."""

    def get_writable(self, domid: int, mfn: int) -> None:
        """A reference to the frame's type, which must be or become writable memory: no page table, no descriptors."""

    def put_writable(self, domid: int, mfn: int) -> None:
        """Gives it back."""

    def map_grant(self, domid: int, mfn: int, host_addr: int, flags: int) -> None:
        """Enters the frame in the domain's page tables at `host_addr`, as `flags` (GntMap) says."""

    def unmap_grant(self, domid: int, mfn: int, host_addr: int, flags: int) -> None:
        """Takes it out again. HypercallError when the entry there is not that mapping any more."""

    def allocate_shared(self, domid: int) -> int:
        """A frame of the hypervisor's that the domain may map: part of its grant table. Returns its mfn."""

    def free_shared(self, domid: int, mfn: int) -> None:
        """The domain and all uses of its table are gone."""

    def steal(self, domid: int, mfn: int) -> None:
        """Takes a frame nobody refers to away from its domain."""

    def give(self, domid: int, mfn: int) -> None:
        """Makes a stolen frame the domain's."""

    def discard(self, mfn: int) -> None:
        """Frees a stolen frame."""


@dataclass(slots=True)
class Active:
    """An entry in use: by one domain, for one frame, whatever the entry says meanwhile."""

    user: int
    mfn: int
    readers: int = 0
    writers: int = 0


@dataclass(slots=True)
class Mapping:
    """What a handle stands for: one use of an entry that holds until it is unmapped."""

    granter: GrantTable
    ref: int
    mfn: int
    host_addr: int
    flags: int  # GntMap
    writable: bool


class GrantTable:
    """One domain as a granter (`shared`, `active`) and as a user of others' grants (`mappings`)."""

    def __init__(self, domid: int, memory: GuestMemory, frames: Frames, *, privileged: bool, max_frames: int) -> None:
        self.domid = domid
        self.privileged = privileged
        self.max_frames = max_frames
        self.shared: list[int] = []  # mfns
        self.active: dict[int, Active] = {}
        self.mappings: dict[int, Mapping] = {}
        self.free_handles: list[int] = []
        self.dead = False
        self.atomic = AtomicMemory(memory)
        self._memory = memory
        self._frames = frames

    def grow(self, count: int) -> None:
        """At least `count` frames, new ones empty. Raises HypercallError from the allocator."""
        while len(self.shared) < count:
            mfn = self._frames.allocate_shared(self.domid)
            self._memory.write(mfn * PAGE_SIZE, bytes(PAGE_SIZE))
            self.shared.append(mfn)

    def entry(self, ref: int) -> int:
        """The machine address of an entry. Raises GrantRefused for a reference beyond the table."""
        if not 0 <= ref < len(self.shared) * ENTRIES_A_FRAME:
            raise GrantRefused(GrantStatus.BAD_GNTREF, f"domain {self.domid} has no grant {ref}")
        return self.shared[ref // ENTRIES_A_FRAME] * PAGE_SIZE + ref % ENTRIES_A_FRAME * GRANT_ENTRY.size

    def pin(self, ref: int, user: int, *, writable: bool, mapping: bool) -> Active:
        """Begins a use of an entry by domain `user`; `unpin` ends it. Raises GrantRefused.

        The frame is read from the entry at the first use only, so that all uses mean the same one.
        """
        address = self.entry(ref)
        active = self.active.get(ref)
        if active and (active.user != user or active.readers + active.writers >= MAX_PINS):
            raise GrantRefused(GrantStatus.GENERAL_ERROR, f"grant {ref} of domain {self.domid} is in use")
        if active is None or (writable and not active.writers):
            self._claim(address, ref, user, writable, mapping)
        use = active or Active(user, self._memory.read_u32(address + 4))
        try:
            self._refer(use.mfn, writable)
        except GrantRefused:
            self._unmark(ref, writable)
            raise
        self.active[ref] = use
        if writable:
            use.writers += 1
        else:
            use.readers += 1
        return use

    def unpin(self, ref: int, *, writable: bool) -> None:
        """Ends a use that `pin` began with the same arguments."""
        active = self.active[ref]
        if writable:
            active.writers -= 1
            self._frames.put_writable(self.domid, active.mfn)
        else:
            active.readers -= 1
        self._frames.put_page(self.domid, active.mfn)
        if not active.readers + active.writers:
            del self.active[ref]
        self._unmark(ref, writable)
        self._bury()

    def kill(self) -> None:
        """The domain is gone: what it uses of others ends now, its own table with the last use by others."""
        for mapping in self.mappings.values():
            mapping.granter.unpin(mapping.ref, writable=mapping.writable)
        self.mappings.clear()
        self.dead = True
        self._bury()

    def commit_transfer(self, ref: int, giver: int) -> int:
        """Claims an entry that accepts a frame from domain `giver`. Returns its address. Raises GrantRefused."""
        address = self.entry(ref)
        for _ in range(MAX_ATTEMPTS):
            word = self._memory.read_u32(address)
            if word != Gtf.ACCEPT_TRANSFER | giver << 16:
                raise GrantRefused(GrantStatus.GENERAL_ERROR, f"grant {ref} accepts no frame from domain {giver}")
            if self.atomic.compare_exchange(address, word, word | Gtf.TRANSFER_COMMITTED) == word:
                return address
        raise GrantRefused(GrantStatus.GENERAL_ERROR, f"grant {ref} keeps changing")

    def cancel_transfer(self, address: int, giver: int) -> None:
        """Takes a commitment back, unless the guest has changed the entry meanwhile."""
        accepting = Gtf.ACCEPT_TRANSFER | giver << 16
        self.atomic.compare_exchange(address, accepting | Gtf.TRANSFER_COMMITTED, accepting)

    def complete_transfer(self, address: int, mfn: int) -> None:
        """Tells the guest which frame it got: the frame first, then the flag."""
        self._memory.write_u32(address + 4, mfn)
        self.atomic.test_and_set_bit(address, TRANSFER_COMPLETED_BIT)

    def _claim(self, address: int, ref: int, user: int, writable: bool, mapping: bool) -> None:
        """Marks the entry read (and written) if it permits that, in one step with the check."""
        relevant = Gtf.TYPE_MASK | (Gtf.SUB_PAGE if mapping else 0)
        marks = Gtf.READING | (Gtf.WRITING if writable else 0)
        for _ in range(MAX_ATTEMPTS):
            word = self._memory.read_u32(address)
            if word & relevant != Gtf.PERMIT_ACCESS or word >> 16 != user:
                raise GrantRefused(GrantStatus.GENERAL_ERROR, f"grant {ref} permits domain {user} nothing")
            if writable and word & Gtf.READONLY:
                raise GrantRefused(GrantStatus.GENERAL_ERROR, f"grant {ref} is read-only")
            if self.atomic.compare_exchange(address, word, word | marks) == word:
                return
        raise GrantRefused(GrantStatus.GENERAL_ERROR, f"grant {ref} keeps changing")

    def _refer(self, mfn: int, writable: bool) -> None:
        try:
            self._frames.get_page(self.domid, mfn)
        except HypercallError as error:
            raise GrantRefused(GrantStatus.BAD_PAGE, error.message) from error
        if writable:
            try:
                self._frames.get_writable(self.domid, mfn)
            except HypercallError as error:
                self._frames.put_page(self.domid, mfn)
                raise GrantRefused(GrantStatus.GENERAL_ERROR, error.message) from error

    def _unmark(self, ref: int, writable: bool) -> None:
        """Clears the marks that no remaining use needs."""
        address = self.entry(ref)
        active = self.active.get(ref)
        if writable and not (active and active.writers):
            self.atomic.test_and_clear_bit(address, WRITING_BIT)
        if not active:
            self.atomic.test_and_clear_bit(address, READING_BIT)

    def _bury(self) -> None:
        if self.dead and not self.active:
            for mfn in self.shared:
                self._frames.free_shared(self.domid, mfn)
            self.shared.clear()
