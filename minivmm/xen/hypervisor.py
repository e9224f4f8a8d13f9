"""The hypervisor: one KVM VM is the physical machine, domains run on its CPUs at ring 3.

    memory   frames 1 .. monitor     domains' frames, and the machine-to-physical table (frames.py)
             a few                   the tables that map that table read-only in every address space
             the rest                the monitor: descriptor tables, the ring-0 stub (minivmm/deprivileged)

A vCPU of a domain has a CPU of the machine for itself, and a thread that runs it; the host's scheduler does the rest.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from itertools import chain
from typing import Any

from minivmm.boot.xen_image import XenImage
from minivmm.deprivileged.cpu import DeprivilegedCpu
from minivmm.deprivileged.monitor import Monitor
from minivmm.errors import ConfigError
from minivmm.kvm.system import Kvm
from minivmm.memory import HOLE_END, PAGE_SIZE, GuestMemory
from minivmm.outcome import EndOfRun, Outcome, RunResult
from minivmm.x86.paging import Pte
from minivmm.xen import store_domains
from minivmm.xen.abi import XEN_LEGACY_MAX_VCPUS
from minivmm.xen.builder import build
from minivmm.xen.clock import NANOSECONDS, Clock
from minivmm.xen.console import ConsoleRing
from minivmm.xen.core import Core
from minivmm.xen.cpuid import CpuidPolicy
from minivmm.xen.domain import Domain
from minivmm.xen.errors import HypercallError
from minivmm.xen.event_abi import Virq
from minivmm.xen.exitless import attend, pays
from minivmm.xen.frame_words import PageType
from minivmm.xen.hypercall_page import exitless_page, plain_page
from minivmm.xen.mailbox import Mailbox
from minivmm.xen.pit import Ports
from minivmm.xen.processor import live
from minivmm.xen.store_ring import StoreConnection
from minivmm.xen.vcpu import VirtualCpu

# Where the machine-to-physical table is mapped: Xen's own place, slot 256, cannot be mapped for native code on a
# software back end (docs/backends.md). A kernel asks (XENMEM_machphys_mapping).
M2P_SLOT = 257
M2P_VIRT = -1 << 48 & (1 << 64) - 1 | M2P_SLOT << 39
MAILBOX_PAGES = 4
_LINK = Pte.PRESENT | Pte.WRITABLE | Pte.USER | Pte.ACCESSED
_READ_ONLY = Pte.PRESENT | Pte.USER | Pte.ACCESSED


class Hypervisor:
    """A machine of `memory` bytes and `cpus` CPUs for domains. `audit` counts every frame's uses again after so many
    hypercalls (0: never), and ends a domain whose counts are wrong. `exitless`: whether kernels with a hypercall page
    and one vCPU get a mailbox (mailbox.py); None: where it pays. A context manager. Raises HostError, ConfigError.
    """

    def __init__(self, memory: int = 64 << 20, *, cpus: int = 1, audit: int = 0, exitless: bool | None = None) -> None:
        self._release = contextlib.ExitStack()
        self.audit = audit
        self.exitless = pays() if exitless is None else exitless
        with contextlib.ExitStack() as undo:
            undo.callback(self._release.close)
            self.memory = GuestMemory(memory)
            self._release.callback(self.memory.close)
            base = self.memory.low_size - Monitor.pages(self.memory, cpus) * PAGE_SIZE
            # An entry for every frame number there is, those of the hole below 4 GiB too.
            highest = HOLE_END + self.memory.high_size if self.memory.high_size else self.memory.low_size
            m2p_tables = 2 + -(-(highest // PAGE_SIZE * 8) // (512 * PAGE_SIZE))
            self._m2p_tables = base - m2p_tables * PAGE_SIZE
            self._mailboxes = self._m2p_tables - cpus * MAILBOX_PAGES * PAGE_SIZE
            if self._mailboxes < PAGE_SIZE:
                raise ConfigError(f"{memory >> 20} MiB are too few for a machine of domains", remedy="--mem 64M")
            self.monitor = Monitor(self.memory, base, cpus=cpus, open_ports=())
            with Kvm() as kvm:
                self._start_machine(kvm, cpus)
            clock = Clock(self.free_cpus[0].vcpu.tsc_khz())
            high = range(HOLE_END // PAGE_SIZE, (HOLE_END + self.memory.high_size) // PAGE_SIZE)
            frames = chain(range(1, self._mailboxes // PAGE_SIZE), high)
            self.core = Core(self.memory, frames, clock, M2P_VIRT, self._cpuid)
            self._release.callback(self.core.close)
            self.core.frames.install_hypervisor_slots = self._install
            self._m2p_entry = self._map_m2p()
            self._next_domid = 1
            undo.pop_all()

    def _start_machine(self, kvm: Kvm, cpus: int) -> None:
        self.vm = kvm.create_vm()
        self._release.callback(self.vm.close)
        self.vm.set_memory_regions(self.memory.regions)
        self._cpuid = CpuidPolicy(kvm.supported_cpuid())
        self.free_cpus: list[DeprivilegedCpu] = []
        for index in range(cpus):
            vcpu = self.vm.create_vcpu(index)
            self._release.callback(vcpu.close)
            vcpu.set_cpuid(self._cpuid.kvm_leaves(index))  # on a software back end ring 3 sees the host's
            cpu = DeprivilegedCpu(vcpu, self.monitor, index)
            self._release.callback(cpu.close)
            self.free_cpus.append(cpu)

    def _map_m2p(self) -> int:
        """Fills the tables that map the machine-to-physical table. Returns the PML4 entry."""
        memory, top = self.memory, self._m2p_tables
        directory, first = top + PAGE_SIZE, top + 2 * PAGE_SIZE
        memory.write(top, bytes(self.monitor.base - top))
        memory.write_u64(top, directory | _LINK)
        for index, mfn in enumerate(self.core.frames.m2p_mfns):
            table = first + index // 512 * PAGE_SIZE
            memory.write_u64(directory + index // 512 * 8, table | _LINK)
            memory.write_u64(table + index % 512 * 8, mfn * PAGE_SIZE | _READ_ONLY)
        return top | _LINK

    def _install(self, mfn: int) -> None:
        """A frame becomes an L4: the hypervisor's slots."""
        self.monitor.install(mfn * PAGE_SIZE)
        self.memory.write_u64(mfn * PAGE_SIZE + 8 * M2P_SLOT, self._m2p_entry)

    # -- a domain's life

    def create_domain(
        self,
        kernel: XenImage,
        memory: int,
        *,
        vcpus: int = 1,
        cmdline: bytes = b"",
        initrd: bytes = b"",
        name: str = "",
        console: Callable[[bytes], None] | None = None,
    ) -> Domain:
        """A domain of `memory` bytes that boots `kernel`, its page tables checked and pinned. `console` gets what it
        says, on a vCPU's thread.

        Raises ImageError, or ConfigError when it does not fit the machine.
        """
        if not 1 <= vcpus <= min(len(self.free_cpus), XEN_LEGACY_MAX_VCPUS):
            raise ConfigError(
                f"a domain with {vcpus} vCPUs cannot be made",
                cause=f"the machine has {len(self.free_cpus)} CPUs left",
                remedy="a machine with more CPUs",
            )
        with self.core.lock:
            domid = self._next_domid
            self._next_domid += 1
            try:
                return self._build(domid, kernel, memory // PAGE_SIZE, vcpus, cmdline, initrd, name, console)
            except HypercallError as error:
                self._take_back(domid)
                raise ConfigError(
                    f"a domain of {memory >> 20} MiB cannot be made", cause=error.message, remedy="a larger machine"
                ) from error
            except BaseException:
                self._take_back(domid)
                raise

    def _build(
        self,
        domid: int,
        kernel: XenImage,
        pages: int,
        vcpus: int,
        cmdline: bytes,
        initrd: bytes,
        name: str,
        console: Callable[[bytes], None] | None,
    ) -> Domain:
        core, frames, memory = self.core, self.core.frames, self.memory
        shared_info = frames.allocate_shared(domid) * PAGE_SIZE
        domain = Domain(domid, name or f"domain{domid}", kernel, shared_info, pages)
        domain.sink = console
        core.domains[domid] = domain
        core.memory_op.add_domain(domid, max_pages=pages)
        core.events.add_domain(domid, vcpus=vcpus, shared_info=shared_info)
        core.grants.add_domain(domid)
        domain.store_port = core.events.attach(domid, lambda _port: self._serve_store(domain))
        domain.console_port = core.events.attach(domid, lambda _port: _serve_console(domain))
        domain.mfns = frames.allocate_many(domid, pages)
        start = domain.start = build(
            memory,
            kernel,
            domain.mfns,
            shared_info_mfn=shared_info // PAGE_SIZE,
            cmdline=cmdline,
            initrd=initrd,
            store_evtchn=domain.store_port,
            console_evtchn=domain.console_port,
        )
        exitless = self.exitless and vcpus == 1
        if start.hypercall_page_mfn is not None:
            memory.write(start.hypercall_page_mfn * PAGE_SIZE, exitless_page() if exitless else plain_page())
        frames.set_machphys_all(domain.mfns)
        root = start.page_tables[0]
        core.tables.pin(domid, root.mfn, root.level)
        core.tables.new_baseptr(domid, root.mfn)
        for mfn in (start.store_mfn, start.console_mfn):
            frames.get_page_type(domid, mfn, PageType.WRITABLE)
            domain.held_mfns.append(mfn)
        domain.ports = Ports(core.clock.now)
        domain.console_ring = ConsoleRing(
            memory,
            start.console_mfn * PAGE_SIZE,
            domain.write_output,
            lambda: core.events.raise_port(domid, domain.console_port),
        )
        domain.store_connection = StoreConnection(
            memory,
            start.store_mfn * PAGE_SIZE,
            domid,
            core.store,
            lambda: core.events.raise_port(domid, domain.store_port),
        )
        store_domains.introduce(
            core.store,
            domid,
            name=domain.name,
            memory_kib=pages * PAGE_SIZE // 1024,
            vcpus=vcpus,
            console_port=domain.console_port,
            console_mfn=start.console_mfn,
            store_port=domain.store_port,
            store_mfn=start.store_mfn,
        )
        core.clock.write_wall_clock(memory, shared_info)
        for index in range(vcpus):
            domain.vcpus.append(VirtualCpu(domain, index, self.free_cpus.pop(), core))
        if exitless and start.hypercall_page_mfn is not None:
            self._give_mailbox(domain.vcpus[0])
        self._set_registers(domain.vcpus[0])
        return domain

    def _give_mailbox(self, vcpu: VirtualCpu) -> None:
        """The CPU's own pages: three tables, and the mailbox."""
        top = self._mailboxes + vcpu.cpu.vcpu.id * MAILBOX_PAGES * PAGE_SIZE
        *tables, page = range(top, top + MAILBOX_PAGES * PAGE_SIZE, PAGE_SIZE)
        for table, below in zip(tables, [*tables[1:], page], strict=True):
            self.memory.write(table, (below | _LINK).to_bytes(8, "little").ljust(PAGE_SIZE, b"\0"))
        vcpu.mailbox = Mailbox(self.memory, page)
        vcpu.mailbox_entry = top | _LINK

    def _set_registers(self, vcpu: VirtualCpu) -> None:
        """The first vCPU begins as xen.h says: at the kernel's entry, RSI on start_info."""
        registers, cpu = vcpu.domain.start.registers, vcpu.cpu
        for name in ("rip", "rsp", "rsi", "rflags"):
            setattr(cpu.regs, name, getattr(registers, name))
        cpu.cs, cpu.ss = registers.cs, registers.ss
        vcpu.load_root(registers.cr3 // PAGE_SIZE)
        vcpu.kernel_stack = registers.rsp
        vcpu.initialised = vcpu.up = True
        vcpu.update_time(force=True)

    def start(self, domain: Domain, timeout: float = 60.0) -> None:
        """Lets it run, for at most `timeout` seconds of wall-clock time."""
        core = self.core
        with core.lock:
            late = EndOfRun(Outcome.DEADLINE, "the time allowed ran out")
            domain.started = core.clock.now()
            core.timers.set((domain, "end"), domain.started + int(timeout * NANOSECONDS), lambda: domain.finish(late))
            for vcpu in domain.vcpus:
                name = f"{domain.name}-vcpu{vcpu.index}"
                thread = threading.Thread(target=live, args=(vcpu, self.audit), name=name, daemon=True)
                domain.threads.append(thread)
                if vcpu.mailbox is not None:
                    attending = threading.Thread(
                        target=attend, args=(vcpu, vcpu.mailbox), name=f"{name}-mailbox", daemon=True
                    )
                    domain.threads.append(attending)
            for thread in domain.threads:
                thread.start()

    def wait(self, domain: Domain) -> RunResult:
        """Waits for its end."""
        for thread in domain.threads:
            thread.join()
        with self.core.lock:
            self.core.timers.cancel((domain, "end"))
            end = domain.end
            assert end is not None
            return RunResult(
                end.outcome,
                end.detail,
                end.code,
                bytes(domain.output),
                (domain.stopped - domain.started) / NANOSECONDS,
                domain.statistics(),
                domain.registers,
                domain.dump,
            )

    def run(self, domain: Domain, timeout: float = 60.0) -> RunResult:
        """Runs the domain from its start to its end, at most `timeout` seconds. Ctrl-C ends it."""
        self.start(domain, timeout)
        try:
            return self.wait(domain)
        except KeyboardInterrupt:
            self.stop(domain)
            return self.wait(domain)

    def stop(self, domain: Domain, detail: str = "stopped from outside") -> None:
        """Ends it from outside."""
        with self.core.lock:
            domain.finish(EndOfRun(Outcome.INTERRUPTED, detail))

    def pause(self, domain: Domain) -> None:
        """Keeps its vCPUs off the CPUs. Returns at once; they stop within microseconds."""
        with self.core.lock:
            domain.paused = True
            for vcpu in domain.vcpus:
                if vcpu.inside:
                    vcpu.cpu.kick()

    def unpause(self, domain: Domain) -> None:
        """Lets a paused domain go on."""
        with self.core.lock:
            domain.paused = False
            for vcpu in domain.vcpus:
                vcpu.wakeup.notify()

    def send(self, domain: Domain, data: bytes) -> None:
        """Types `data` on its console."""
        with self.core.lock:
            domain.console_ring.send(data)

    def send_debug(self, domain: Domain) -> None:
        """VIRQ_DEBUG to each of its vCPUs: a kernel prints its state."""
        with self.core.lock:
            for vcpu in domain.vcpus:
                self.core.events.raise_virq(domain.domid, Virq.DEBUG, vcpu.index)

    def destroy(self, domain: Domain) -> None:
        """Takes everything back. A running domain is ended first."""
        self._end(domain)
        with self.core.lock:
            self._take_back(domain.domid)

    def _end(self, domain: Domain) -> None:
        self.stop(domain)
        for thread in domain.threads:
            thread.join()

    def _serve_store(self, domain: Domain) -> None:
        """Answers what the domain asks of the store: a bounded part now, the rest when others had their turn."""
        if domain.store_connection.serve():
            self.core.timers.set((domain, "store"), self.core.clock.now(), lambda: self._serve_store(domain))

    def _take_back(self, domid: int) -> None:
        """Every frame is free again, every count zero, but for frames that another domain has mapped by grant."""
        core = self.core
        domain = core.domains.get(domid)
        if domain is not None:
            self._let_go(domain)
        core.tables.destroy(domid)
        with contextlib.suppress(HypercallError):
            core.grants.remove_domain(domid)
        core.memory_op.remove_domain(domid)
        core.domains.pop(domid, None)
        self.vm.forget_translations()

    def _let_go(self, domain: Domain) -> None:
        """Takes the hypervisor's own hands off a domain, as far as it had been made."""
        core, domid = self.core, domain.domid
        if domain.vcpus:
            core.timers.cancel((domain, "store"))
            domain.store_connection.close()
            store_domains.remove(core.store, domid)
        core.timers.cancel((domain, "end"))
        for vcpu in domain.vcpus:
            for timer in ("singleshot", "periodic", "poll"):
                core.timers.cancel((vcpu, timer))
            vcpu.info.release()
            if vcpu.mailbox is not None:
                vcpu.mailbox.close()
            vcpu.cpu.reset()
            self.free_cpus.append(vcpu.cpu)
        with contextlib.suppress(HypercallError):
            core.events.remove_domain(domid)
        domain.vcpus.clear()
        for mfn in domain.held_mfns:
            core.frames.put_page_type(mfn, PageType.WRITABLE)
        core.frames.free_shared(domid, domain.shared_info // PAGE_SIZE)

    def close(self) -> None:
        """Ends every domain and gives everything back to the host."""
        for domain in self.core.domains.values():
            self._end(domain)
        with self.core.lock:
            for domain in self.core.domains.values():
                self._let_go(domain)
        self._release.close()

    def __enter__(self) -> Hypervisor:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _serve_console(domain: Domain) -> None:
    domain.console_ring.take()
