"""One vCPU: registers, its state, and the kvm_run page it shares with the kernel."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from typing import Any

from minivmm.errors import KvmError
from minivmm.kvm import abi
from minivmm.kvm.ioctl import call, explain
from minivmm.kvm.stats import Stats


class Vcpu:
    """A vCPU's file descriptor and its kvm_run page.

    `run_bytes`, `run32` and `run64` are the page cast to bytes, 32- and 64-bit words: the cheapest way to read it from
    Python (0.05 us a field; docs/backends.md).
    """

    def __init__(self, fd: int, vcpu_id: int, run_size: int) -> None:
        self.fd = fd
        self.id = vcpu_id
        self._stats_fd = -1
        try:
            self._run_page = mmap.mmap(fd, run_size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as error:
            os.close(fd)
            raise KvmError(
                "mmap", error.errno or 0, f"kvm_run of vCPU {vcpu_id} cannot be mapped", cause=str(error)
            ) from error
        # Opened now: the call waits for the vCPU's mutex, which a vCPU that sleeps in KVM_RUN holds.
        self._stats = self._open_stats()
        self.run_bytes = memoryview(self._run_page)
        self.run32 = self.run_bytes.cast("I")
        self.run64 = self.run_bytes.cast("Q")

    def _open_stats(self) -> Stats | None:
        try:
            return Stats(self._call(abi.KVM_GET_STATS_FD))
        except KvmError as error:
            if error.errno in (errno.ENOTTY, errno.EINVAL):
                return None
            raise

    def _call(self, request: int, argument: Any = 0) -> int:
        return call(self.fd, request, argument, subject=f"vCPU {self.id}")

    def run(self) -> abi.Exit | None:
        """Runs the guest until its next exit; None when a signal or `immediate_exit` came first. Raises KvmError."""
        try:
            fcntl.ioctl(self.fd, abi.KVM_RUN)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.EAGAIN):
                return None
            raise explain(abi.KVM_RUN, error.errno or 0, f"vCPU {self.id}") from error
        return abi.Exit(self.run32[abi.Run.EXIT_REASON // 4])

    def complete_io(self) -> None:
        """Finishes a pending PIO or MMIO instruction without running on: before registers are read or set."""
        self.immediate_exit = True
        try:
            self.run()
        finally:
            self.immediate_exit = False

    @property
    def immediate_exit(self) -> bool:
        """While set, KVM_RUN returns at once with EINTR."""
        return bool(self.run_bytes[abi.Run.IMMEDIATE_EXIT])

    @immediate_exit.setter
    def immediate_exit(self, value: bool) -> None:
        self.run_bytes[abi.Run.IMMEDIATE_EXIT] = value

    def get_regs(self) -> abi.kvm_regs:
        """The general-purpose registers (4.11)."""
        regs = abi.kvm_regs()
        self._call(abi.KVM_GET_REGS, regs)
        return regs

    def set_regs(self, regs: abi.kvm_regs) -> None:
        """Sets the general-purpose registers (4.12)."""
        self._call(abi.KVM_SET_REGS, regs)

    def get_sregs(self) -> abi.kvm_sregs:
        """Segments, descriptor tables and control registers (4.13)."""
        sregs = abi.kvm_sregs()
        self._call(abi.KVM_GET_SREGS, sregs)
        return sregs

    def set_sregs(self, sregs: abi.kvm_sregs) -> None:
        """Sets segments, descriptor tables and control registers (4.14)."""
        self._call(abi.KVM_SET_SREGS, sregs)

    def share_registers(self) -> None:
        """From the next KVM_RUN on its page holds the registers after every exit (6.74, KVM_CAP_SYNC_REGS), and takes
        in what `Run.DIRTY_REGS` names at every entry: reading and setting them costs no call. Needs the capability."""
        self.run64[abi.Run.VALID_REGS // 8] = abi.KVM_SYNC_X86_REGS | abi.KVM_SYNC_X86_SREGS

    def set_msr(self, index: int, value: int) -> None:
        """Sets one model-specific register (4.19). Raises KvmError when KVM refuses it."""
        if self._call(abi.KVM_SET_MSRS, abi.kvm_msrs(1, 0, abi.kvm_msr_entry(index, 0, value))) != 1:
            raise KvmError("KVM_SET_MSRS", 0, f"vCPU {self.id} does not take {value:#x} in MSR {index:#x}")

    def get_msr(self, index: int) -> int:
        """One model-specific register (4.18). Raises KvmError when KVM does not have it."""
        msrs = abi.kvm_msrs(1, 0, abi.kvm_msr_entry(index))
        if self._call(abi.KVM_GET_MSRS, msrs) != 1:
            raise KvmError("KVM_GET_MSRS", 0, f"vCPU {self.id} has no MSR {index:#x}")
        return int(msrs.entry.data)

    def tsc_khz(self) -> int:
        """How fast the guest's TSC counts, in kHz (4.56)."""
        return self._call(abi.KVM_GET_TSC_KHZ)

    def get_xsave(self) -> abi.kvm_xsave:
        """The x87, SSE and AVX state (4.42)."""
        state = abi.kvm_xsave()
        self._call(abi.KVM_GET_XSAVE, state)
        return state

    def set_xsave(self, state: abi.kvm_xsave) -> None:
        """Sets the x87, SSE and AVX state (4.43)."""
        self._call(abi.KVM_SET_XSAVE, state)

    def get_xcr0(self) -> int:
        """Which extended state is enabled (4.44)."""
        registers = abi.kvm_xcrs()
        self._call(abi.KVM_GET_XCRS, registers)
        return int(registers.xcrs[0].value)

    def set_xcr0(self, value: int) -> None:
        """Which extended state is enabled (4.45). Raises KvmError for what the vCPU's CPUID does not offer."""
        self._call(abi.KVM_SET_XCRS, abi.kvm_xcrs(1, 0, (abi.kvm_xcr(0, 0, value),)))

    def exception_waits(self) -> bool:
        """Whether an exception is half-way into the guest (4.31): the next KVM_RUN delivers it, wherever RIP is."""
        events = abi.kvm_vcpu_events()
        self._call(abi.KVM_GET_VCPU_EVENTS, events)
        return bool(events.exception_injected)

    def clear_events(self) -> None:
        """Nothing is on its way into the guest any more: no exception, interrupt or NMI (4.32)."""
        self._call(abi.KVM_SET_VCPU_EVENTS, abi.kvm_vcpu_events())

    def get_debug_registers(self) -> abi.kvm_debugregs:
        """DR0 to DR3, DR6, DR7 (4.33)."""
        registers = abi.kvm_debugregs()
        self._call(abi.KVM_GET_DEBUGREGS, registers)
        return registers

    def set_debug_registers(self, registers: abi.kvm_debugregs) -> None:
        """Sets DR0 to DR3, DR6, DR7 (4.34)."""
        self._call(abi.KVM_SET_DEBUGREGS, registers)

    def set_cpuid(self, leaves: abi.kvm_cpuid2) -> None:
        """What the guest's CPUID answers (4.46)."""
        self._call(abi.KVM_SET_CPUID2, leaves)

    def get_mp_state(self) -> abi.MpState:
        """Whether it runs, is halted, or waits to be started (4.38)."""
        state = abi.kvm_mp_state()
        self._call(abi.KVM_GET_MP_STATE, state)
        return abi.MpState(state.mp_state)

    def stats(self) -> dict[str, int]:
        """KVM's own cumulative counters of this vCPU (4.133); empty where the kernel has none."""
        return self._stats.read() if self._stats is not None else {}

    def close(self) -> None:
        """Unmaps kvm_run and lets go of the vCPU."""
        if self.fd < 0:
            return
        for view in (self.run64, self.run32, self.run_bytes):
            view.release()
        self._run_page.close()
        if self._stats is not None:
            self._stats.close()
        if self._stats_fd >= 0:
            os.close(self._stats_fd)
            self._stats_fd = -1
        os.close(self.fd)
        self.fd = -1
