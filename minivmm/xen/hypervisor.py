"""The hypervisor: one KVM VM is the physical machine, domains run on its CPU at ring 3.

    memory   frames 1 .. monitor     domains' frames, and the machine-to-physical table (frames.py)
             the rest                the monitor: descriptor tables, the ring-0 stub (minivmm/deprivileged)

A first slice: one vCPU, domains one after the other, the hypercalls of hypercalls.py, traps bounced to its kernel.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from minivmm.boot.xen_image import XenImage
from minivmm.deprivileged.cpu import DeprivilegedCpu
from minivmm.deprivileged.events import Interrupted, Stopped, SystemCall, Trap
from minivmm.deprivileged.monitor import Monitor
from minivmm.errors import ConfigError
from minivmm.kvm.system import Kvm
from minivmm.memory import PAGE_SIZE, GuestMemory
from minivmm.outcome import EndOfRun, Outcome, RunResult
from minivmm.xen import hypercalls, traps
from minivmm.xen.builder import build
from minivmm.xen.domain import Domain
from minivmm.xen.errors import HypercallError
from minivmm.xen.frames import FrameTable
from minivmm.xen.hypercall_abi import Hypercall
from minivmm.xen.page_tables import PageTables

HYPERCALL_ENTRY_SIZE = 32  # bytes of the hypercall page a number has
HYPERCALL_ENTRIES = PAGE_SIZE // HYPERCALL_ENTRY_SIZE
_WORD = (1 << 64) - 1


class Hypervisor:
    """A machine of `memory` bytes for domains. A context manager. Raises HostError, ConfigError."""

    def __init__(self, memory: int = 64 << 20) -> None:
        self._release = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.callback(self._release.close)
            self.memory = GuestMemory(memory)
            self._release.callback(self.memory.close)
            with Kvm() as kvm:
                vm = kvm.create_vm()
                self._release.callback(vm.close)
                vm.set_memory_regions(self.memory.regions)
                vcpu = vm.create_vcpu(0)
                self._release.callback(vcpu.close)
                vcpu.set_cpuid(kvm.supported_cpuid())
            base = self.memory.low_size - Monitor.pages(self.memory) * PAGE_SIZE
            self.monitor = Monitor(self.memory, base)
            self.cpu = DeprivilegedCpu(vcpu, self.monitor)
            self._release.callback(self.cpu.close)
            self.frames = FrameTable(self.memory, range(1, base // PAGE_SIZE))
            self.frames.install_hypervisor_slots = lambda mfn: self.monitor.install(mfn * PAGE_SIZE)
            self.frames.store_entry = self.cpu.store_entry
            self.frames.forget = lambda _mfn: self.cpu.flush()
            self.tables = PageTables(self.frames)
            self._next_domid = 1
            undo.pop_all()

    def create_domain(self, kernel: XenImage, memory: int, *, cmdline: bytes = b"", initrd: bytes = b"") -> Domain:
        """A domain of `memory` bytes that boots `kernel`, its page tables checked and pinned.

        Raises ImageError, or ConfigError when it does not fit the machine.
        """
        domid = self._next_domid
        try:
            shared_info = self.frames.allocate(domid)
            mfns = [self.frames.allocate(domid) for _ in range(memory // PAGE_SIZE)]
            start = build(self.memory, kernel, mfns, shared_info_mfn=shared_info, cmdline=cmdline, initrd=initrd)
            if start.hypercall_page_mfn is not None:
                self.memory.write(start.hypercall_page_mfn * PAGE_SIZE, hypercall_page())
            for pfn, mfn in enumerate(mfns):
                self.frames.set_machphys(mfn, pfn)
            self.tables.pin(domid, start.page_tables[0].mfn, start.page_tables[0].level)
            self.tables.new_baseptr(domid, start.page_tables[0].mfn)
        except HypercallError as error:
            self._give_back(domid)
            raise ConfigError(
                f"a domain of {memory >> 20} MiB cannot be made", cause=error.message, remedy="a larger machine"
            ) from error
        except BaseException:
            self._give_back(domid)
            raise
        self._next_domid += 1
        return Domain(domid, kernel, start, self.memory, mfns, shared_info, self.tables)

    def run(self, domain: Domain, timeout: float = 60.0) -> RunResult:
        """Runs the domain from its start to its end, at most `timeout` seconds. Raises KvmError."""
        cpu, registers = self.cpu, domain.start.registers
        for name in ("rip", "rsp", "rsi", "rflags"):
            setattr(cpu.regs, name, getattr(registers, name))
        cpu.root, cpu.cs, cpu.ss = registers.cr3, registers.cs, registers.ss
        started = time.monotonic()
        deadline = started + timeout
        alarm = threading.Timer(timeout, cpu.kick)
        alarm.daemon = True
        alarm.start()
        try:
            end = self._serve(domain, deadline)
        finally:
            alarm.cancel()
        return RunResult(
            end.outcome,
            end.detail,
            end.code,
            bytes(domain.console),
            time.monotonic() - started,
            domain.hypercalls | domain.unknown_hypercalls,
        )

    def _serve(self, domain: Domain, deadline: float) -> EndOfRun:
        """Answers the domain until it ends."""
        cpu = self.cpu
        try:
            while True:
                match cpu.run():
                    case SystemCall() if not domain.in_kernel:
                        return EndOfRun(Outcome.CRASHED, "a system call of the domain's user code: nobody answers yet")
                    case SystemCall() if cpu.regs.rax & 0xFFFF_FFFF == Hypercall.IRET:
                        domain.hypercalls["iret"] += 1
                        traps.iret(domain, cpu)
                    case SystemCall():
                        regs = cpu.regs
                        arguments = (regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9)
                        regs.rax = hypercalls.call(domain, regs.rax & 0xFFFF_FFFF, arguments) & _WORD
                    case Trap() as trap:
                        domain.traps_taken[trap.vector] += 1
                        traps.bounce(domain, cpu, trap)
                    case Interrupted():
                        pass
                    case Stopped(reason):
                        return EndOfRun(Outcome.INTERNAL_ERROR, reason)
                    case event:
                        return EndOfRun(Outcome.CRASHED, f"the domain did what nobody answers: {event}")
                if time.monotonic() >= deadline:
                    return EndOfRun(Outcome.DEADLINE, "the time allowed ran out")
        except EndOfRun as end:
            # A new one: the frames of this one's traceback, and of its cause's, hold the registers' view of kvm_run.
            return EndOfRun(end.outcome, end.detail, end.code)

    def destroy(self, domain: Domain) -> None:
        """Takes everything back: every frame is free again, every count zero."""
        self.cpu.root = self.monitor.root
        self._give_back(domain.domid)

    def _give_back(self, domid: int) -> None:
        kept = self.tables.destroy(domid)
        if kept:
            raise AssertionError(f"domain {domid} leaves frames in use behind: {kept}")

    def close(self) -> None:
        """Gives everything back to the host."""
        self._release.close()

    def __enter__(self) -> Hypervisor:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def hypercall_page() -> bytes:
    """The page whose entry N makes hypercall N: `mov eax, N; syscall; ret`, 32 bytes apart, filled up with ud2."""
    page = bytearray(b"\x0f\x0b" * (PAGE_SIZE // 2))
    for number in range(HYPERCALL_ENTRIES):
        code = b"\xb8" + number.to_bytes(4, "little") + b"\x0f\x05\xc3"
        at = number * HYPERCALL_ENTRY_SIZE
        page[at : at + len(code)] = code
    return bytes(page)
