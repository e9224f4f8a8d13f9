"""Who owns each machine frame, and the machine-to-physical table: the half of the frame table that knows no types.

Not thread-safe: the hypervisor's lock is held around every call.
"""

from __future__ import annotations

import errno
import struct
from collections import Counter
from collections.abc import Callable, Iterable

from minivmm.errors import ConfigError
from minivmm.memory import PAGE_SIZE, GuestMemory
from minivmm.xen.abi import Domid
from minivmm.xen.errors import HypercallError
from minivmm.xen.frame_words import ALLOCATED, OWNER, PAGE_SHIFT, REF_ONE, REF_SHIFT, SHARED, TYPE

INVALID_M2P_ENTRY = (1 << 64) - 1
_ZEROES = bytes(PAGE_SIZE)


def nothing(_mfn: int) -> None:
    """What a hook does that nobody has set."""


class FrameOwners:
    """The machine frames `frames` of `memory`. The machine-to-physical table is kept in the last few of them.

    `forget(mfn)` is the caller's: the frame changes its owner (or type), and no CPU may keep a translation to it.
    Raises ConfigError when there is no room for the machine-to-physical table.
    """

    def __init__(self, memory: GuestMemory, frames: Iterable[int]) -> None:
        self.memory = memory
        pool = sorted(set(frames))
        count = pool[-1] + 1 if pool else 0
        m2p_frames = -(-8 * count // PAGE_SIZE)
        m2p = pool[len(pool) - m2p_frames :]
        if len(pool) <= m2p_frames or m2p[-1] - m2p[0] != len(m2p) - 1:
            raise ConfigError(f"{len(pool)} frames are too few for a machine of domains", remedy="--mem 64M")
        self.m2p_mfns = range(m2p[0], m2p[-1] + 1)
        self.state: list[int] = [Domid.XEN] * count  # one word a frame: frame_words.py
        for mfn in pool[:-m2p_frames]:
            self.state[mfn] = Domid.INVALID
        self._free = pool[-m2p_frames - 1 :: -1]  # a stack, lowest frame on top
        self.pages: Counter[int] = Counter()
        """Frames by owner: Xen's tot_pages. Given-back ones count until they are free, shared ones never."""
        self.max_pages: dict[int, int] = {}
        """How many a domain may own, where somebody said so. Whoever gives it a frame heeds it."""
        self.forget: Callable[[int], None] = nothing
        for mfn in self.m2p_mfns:
            memory.write(mfn << PAGE_SHIFT, b"\xff" * PAGE_SIZE)

    @property
    def free_frames(self) -> int:
        """How many frames belong to nobody."""
        return len(self._free)

    def allocate(self, domid: int) -> int:
        """A zeroed frame for `domid`, lowest first: from a fresh table, one call after the other gives a run.

        Raises HypercallError(ENOMEM) when none is left, ESRCH for a reserved domid.
        """
        if not 0 <= domid < Domid.FIRST_RESERVED:
            raise HypercallError(errno.ESRCH, f"domid {domid} owns no frames")
        if not self._free:
            raise HypercallError(errno.ENOMEM, "no free machine frame")
        mfn = self._free.pop()
        self.give(domid, mfn)
        return mfn

    def allocate_many(self, domid: int, count: int) -> list[int]:
        """`count` times allocate, all or none: a domain's whole memory at once. Raises HypercallError as it does."""
        if count > len(self._free):
            raise HypercallError(errno.ENOMEM, f"{len(self._free)} free machine frames, not {count}")
        return [self.allocate(domid) for _ in range(count)]

    def allocate_runs(self, domid: int, count: int, order: int, end: int) -> list[int]:
        """Up to `count` runs of 2**order zeroed frames for `domid`, aligned to their size and below mfn `end`. Returns
        the first frame of each, fewer than asked for when there are no more. One pass over the table for all of them.
        """
        size = 1 << order
        nobody = [Domid.INVALID] * size
        runs: list[int] = []
        for mfn in range(0, min(end, len(self.state)) - size + 1, size):
            if len(runs) == count:
                break
            if self.state[mfn : mfn + size] == nobody:
                runs.append(mfn)
                for each in range(mfn, mfn + size):
                    self.give(domid, each)
        self._free = [mfn for mfn in self._free if self.state[mfn] == Domid.INVALID]
        return runs

    def free(self, domid: int, mfn: int) -> None:
        """Takes the frame from its domain. It is nobody's once the last mapping, pin or use of it is gone."""
        word = self.owned(domid, mfn)
        if not word & ALLOCATED or word & SHARED:
            raise HypercallError(errno.EINVAL, f"mfn {mfn:#x} is not the domain's to give back, or already given back")
        self.state[mfn] = word & ~ALLOCATED
        self._drop(mfn)

    def free_all(self, domid: int) -> None:
        """`free` for every frame of a domain that ends, those that nobody uses in runs: a GiB has 262,144 of them."""
        unused = domid | ALLOCATED | REF_ONE
        in_use = []
        start = end = 0  # of a run of unused ones
        for mfn, word in enumerate(self.state):
            if word & ~TYPE == unused:
                if mfn != end:
                    self._discard_run(domid, range(start, end))
                    start = mfn
                end = mfn + 1
            elif word & (OWNER | ALLOCATED | SHARED) == domid | ALLOCATED:
                in_use.append(mfn)
        self._discard_run(domid, range(start, end))
        for mfn in in_use:
            self.free(domid, mfn)

    def _discard_run(self, domid: int, mfns: range) -> None:
        """Frames of a domain that nobody refers to become nobody's."""
        for mfn in mfns:
            self.forget(mfn)
        self.pages[domid] -= len(mfns)
        self.memory.discard(mfns.start << PAGE_SHIFT, len(mfns) << PAGE_SHIFT)
        self.memory.write((self.m2p_mfns.start << PAGE_SHIFT) + 8 * mfns.start, b"\xff" * 8 * len(mfns))
        self.state[mfns.start : mfns.stop] = [Domid.INVALID] * len(mfns)
        self._free += reversed(mfns)

    def steal(self, domid: int, mfn: int) -> None:
        """Takes a frame that nobody uses away from its domain, contents and all: `give` and `discard` say whose it is.

        Raises HypercallError(EINVAL) for one in use, for a shared one, for another's.
        """
        word = self.owned(domid, mfn)
        if word >> REF_SHIFT != 1 or not word & ALLOCATED or word & SHARED:
            raise HypercallError(errno.EINVAL, f"mfn {mfn:#x} is in use: it cannot leave domain {domid}")
        self.forget(mfn)
        self.state[mfn] = Domid.XEN
        self.pages[domid] -= 1

    def give(self, domid: int, mfn: int) -> None:
        """Makes a stolen frame, or one nobody owns, the domain's. The caller has checked both."""
        self.state[mfn] = domid | ALLOCATED | REF_ONE
        self.pages[domid] += 1

    def discard(self, mfn: int) -> None:
        """Makes a frame without references nobody's, and empty, so that no secret reaches the next owner."""
        self.memory.write(mfn << PAGE_SHIFT, _ZEROES)
        self.set_machphys(mfn, INVALID_M2P_ENTRY)
        self.state[mfn] = Domid.INVALID
        self._free.append(mfn)

    def owned(self, domid: int, mfn: int) -> int:
        """The word of a frame of `domid`. Raises HypercallError(EINVAL) when there is none, or it is another's."""
        if not 0 <= mfn < len(self.state) or domid >= Domid.FIRST_RESERVED:
            raise HypercallError(errno.EINVAL, f"there is no mfn {mfn:#x} for domain {domid}")
        word = self.state[mfn]
        if word & OWNER != domid:
            raise HypercallError(errno.EINVAL, f"mfn {mfn:#x} is not domain {domid}'s")
        return word

    def frames_of(self, domid: int) -> list[int]:
        """Every frame `domid` owns, freed ones that are still in use included."""
        return [mfn for mfn, word in enumerate(self.state) if word & OWNER == domid]

    def _drop(self, mfn: int) -> None:
        """One general reference less."""
        word = self.state[mfn] - REF_ONE
        self.state[mfn] = word
        if word < REF_ONE:
            self._release(mfn)

    def _release(self, mfn: int) -> None:
        """Nobody refers to the frame any more."""
        self.forget(mfn)
        word = self.state[mfn]
        if not word & SHARED:
            self.pages[word & OWNER] -= 1
        self.discard(mfn)

    def set_machphys(self, mfn: int, pfn: int) -> None:
        """The machine-to-physical table's entry for a frame the caller has checked."""
        self.memory.write_u64((self.m2p_mfns.start << PAGE_SHIFT) + 8 * mfn, pfn)

    def set_machphys_all(self, mfns: list[int]) -> None:
        """set_machphys of a fresh domain: pfn n is `mfns[n]`."""
        table = self.m2p_mfns.start << PAGE_SHIFT
        if mfns == list(range(mfns[0], mfns[0] + len(mfns))):
            self.memory.write(table + 8 * mfns[0], struct.pack(f"<{len(mfns)}Q", *range(len(mfns))))
            return
        for pfn, mfn in enumerate(mfns):
            self.set_machphys(mfn, pfn)
