"""What all domains share: machine memory and who uses it, event channels, grants, time, and the lock around them.

Every method of the hypervisor's parts runs with `lock` held and, when a guest asked for it, with `current` set.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from minivmm.memory import PAGE_SIZE, GuestMemory
from minivmm.x86.paging import Pte
from minivmm.xen.clock import Clock
from minivmm.xen.errors import HypercallError
from minivmm.xen.events import EventChannels
from minivmm.xen.frames import FrameTable
from minivmm.xen.grant_frames import GrantFrames
from minivmm.xen.grants import Grants
from minivmm.xen.memory import Memory
from minivmm.xen.page_tables import PageTables
from minivmm.xen.store import Store
from minivmm.xen.timers import Timers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from minivmm.xen.cpuid import CpuidPolicy
    from minivmm.xen.domain import Domain
    from minivmm.xen.vcpu import VirtualCpu


BREATH = 50e-6  # seconds: a lock taken again at once is not given to those who wait


class Core:
    """The parts that know no domain's life. `frames` are those of `memory` that domains may have."""

    def __init__(
        self, memory: GuestMemory, frames: Iterable[int], clock: Clock, m2p_virt: int, cpuid: CpuidPolicy
    ) -> None:
        self.memory = memory
        self.lock = threading.RLock()
        self.clock = clock
        self.timers = Timers(self.lock, clock.now)
        self.domains: dict[int, Domain] = {}
        self.current: VirtualCpu | None = None
        """Whose event is being answered."""
        self.cpuid = cpuid
        """What domains are told of the processor."""
        self._stale = False
        self.frames = FrameTable(memory, frames)
        self.frames.store_entry = self._store_entry
        self.frames.forget = self._forget
        self.tables = PageTables(self.frames)
        self.memory_op = Memory(self.tables)
        self.memory_op.m2p_virt = m2p_virt
        self.grants = Grants(memory, GrantFrames(self.tables), self._copy_to_guest)
        self.events = EventChannels(memory, self._notify, self._polled)
        self.store = Store()

    # -- translations other vCPUs may have cached

    def _store_entry(self, address: int, old: int, new: int) -> None:
        """A domain's page-table entry changes. Without a current vCPU nothing runs on these tables."""
        vcpu = self.current
        if vcpu is None:
            self.memory.write_u64(address, new)
            return
        vcpu.cpu.store_entry(address, old, new)
        if old & Pte.PRESENT:
            self._stale = True

    def _forget(self, mfn: int) -> None:
        vcpu = self.current
        if vcpu is not None:
            vcpu.cpu.forget_page(mfn * PAGE_SIZE)
            self._stale = True
            self.shoot_down()

    def shoot_down(self) -> None:
        """Has the other vCPUs of the current domain drop their translations: before a frame is used anew, and before
        the call that changed entries returns."""
        if not self._stale:
            return
        self._stale = False
        vcpu = self.current
        if vcpu is None or len(vcpu.domain.vcpus) == 1:
            return
        if any(other.up or other.inside for other in vcpu.domain.vcpus if other is not vcpu):
            vcpu.cpu.apply_stores()
            self.hold_others()
        for other in vcpu.domain.vcpus:
            if other is not vcpu:
                other.cpu.flush()  # one that is down too: it comes up again with what it had cached

    def hold_others(self) -> None:
        """Returns when no other vCPU of the current domain is in the guest: none comes back before the lock is free. So
        no CPU sets accessed and dirty bits in an entry that is read, and then written."""
        vcpu = self.current
        if vcpu is None or len(vcpu.domain.vcpus) == 1:
            return
        others = [other for other in vcpu.domain.vcpus if other is not vcpu and other.inside]
        for other in others:
            other.cpu.kick()
        for other in others:
            while other.inside:  # until KVM_RUN has returned: then that thread waits for our lock
                os.sched_yield()

    def let_others_in(self) -> None:
        """Between two parts of a long call, nothing half done: whoever waits for the lock has it first, as Xen preempts
        hypercalls. The caller's domain may have ended when this returns."""
        vcpu = self.current
        self.shoot_down()
        self.current = None
        self.lock.release()
        time.sleep(BREATH)
        self.lock.acquire()
        self.current = vcpu

    # -- callbacks of the parts

    def _notify(self, domid: int, vcpu: int) -> None:
        self.domains[domid].vcpus[vcpu].wake()

    def _polled(self, domid: int, port: int) -> None:
        domain = self.domains.get(domid)
        if domain is not None and domain.polling:
            for vcpu in domain.vcpus:
                if port in vcpu.polled:
                    vcpu.wake()

    def _copy_to_guest(self, domid: int, pointer: int, data: bytes) -> None:
        vcpu = self.current
        if vcpu is None or vcpu.domain.domid != domid:
            raise HypercallError(14, f"domain {domid} is not the one that runs")  # EFAULT
        vcpu.pages.write(pointer, data)

    def close(self) -> None:
        """Ends the timers' thread."""
        self.timers.close()
