"""A vCPU in its thread: the loop around KVM_RUN, which hands each exit to the bus until something ends the run."""

from __future__ import annotations

import errno
import fcntl
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from minivmm.bus import Bus
from minivmm.errors import GuestError, HostError
from minivmm.kvm import abi
from minivmm.kvm.abi import Exit, MpState, Run
from minivmm.kvm.ioctl import explain
from minivmm.kvm.kick import KICK
from minivmm.kvm.vcpu import Vcpu
from minivmm.outcome import EndOfRun, Outcome
from minivmm.x86.registers import RFLAGS_IF

if TYPE_CHECKING:
    from minivmm.exits import Observer


# Where a KVM_EXIT_MMIO is in kvm_run, in units of the view it is read through.
_MMIO_ADDRESS, _MMIO_DATA = Run.MMIO_PHYS_ADDR // 8, Run.MMIO_DATA // 8
_MMIO_LEN = Run.MMIO_LEN // 4
_MMIO_IS_WRITE = Run.MMIO_IS_WRITE


class Processor(threading.Thread):
    """Runs one vCPU until the machine ends. `ended` is told how, by the first vCPU to know."""

    def __init__(
        self,
        vcpu: Vcpu,
        bus: Bus,
        ended: Callable[[Processor, EndOfRun], None],
        observer: Observer | None = None,
    ) -> None:
        super().__init__(name=f"vcpu-{vcpu.id}", daemon=True)
        self.vcpu = vcpu
        self.counts = [0] * (max(Exit) + 1)
        """Exits to user space, indexed by KVM_EXIT_*."""
        self.asleep = False
        """Set by `look` when nothing but another vCPU can wake this one."""
        self._bus = bus
        self._ended = ended
        self._observer = observer
        self._stopping = False
        self._go = threading.Event()
        self._go.set()
        self._standing = threading.Event()
        self._looking = threading.Event()
        self._looked = threading.Event()

    def kick(self) -> None:
        """Gets the thread out of KVM_RUN, wherever it is: flag first, then signal, so that no kick is lost."""
        self.vcpu.immediate_exit = True
        if self.ident is not None and self.is_alive():
            signal.pthread_kill(self.ident, KICK)

    def stop(self) -> None:
        """Ends the loop at the next opportunity. Thread-safe."""
        self._stopping = True
        self._go.set()
        self.kick()

    def pause(self) -> None:
        """Has the thread stand still between two exits until `resume`. Thread-safe."""
        self._go.clear()
        if self._stopping:  # stop() has set it before this cleared it
            self._go.set()
        self.kick()

    def resume(self) -> None:
        """Lets it go on. Thread-safe."""
        self._go.set()

    def stands(self, timeout: float) -> bool:
        """Whether the thread, which was paused, stands still or has ended within `timeout` seconds."""
        return self._standing.wait(timeout) or not self.is_alive()

    def look(self, timeout: float) -> bool:
        """Has the thread find out whether it is asleep for good; True when it answered within `timeout` seconds."""
        self._looked.clear()
        self._looking.set()
        self.kick()
        return self._looked.wait(timeout)

    def run(self) -> None:
        """The thread's body. Whatever happens in here becomes an outcome."""
        try:
            while not self._stopping:
                self._stand_still()
                if self._observer is None:
                    self._serve()
                else:
                    self._serve_observed(self._observer)
                self._interrupted()
        except EndOfRun as end:
            self._ended(self, end)
        except GuestError as error:
            self._ended(
                self, EndOfRun(Outcome.INTERNAL_ERROR, f"the guest broke a rule nobody answered: {error.message}")
            )
        except HostError as error:
            self._ended(self, EndOfRun(Outcome.HOST_ERROR, error.message))
        except Exception as error:  # noqa: BLE001  the thread's boundary: a bug here must end the run, and say what it was
            self._ended(self, EndOfRun(Outcome.HOST_ERROR, f"minivmm failed: {type(error).__name__}: {error}"))
        finally:
            self._standing.set()

    def _stand_still(self) -> None:
        """Waits while the machine is paused."""
        while not self._go.is_set():
            self._standing.set()
            self._go.wait()
            self._standing.clear()

    def _serve(self) -> None:
        """Runs the guest and serves its exits until a signal interrupts it. Raises EndOfRun, GuestError, HostError.

        The hot path. Cost over the same loop in C: 0.3 to 1.0 us for a one-byte port access (benchmark `exit-loop`).
        Locals are bound once; kvm_run is read through casts; no object is made per exit.
        """
        vcpu, bus, counts = self.vcpu, self._bus, self.counts
        ioctl, fd, run = fcntl.ioctl, vcpu.fd, abi.KVM_RUN
        run_bytes, run32, run64 = vcpu.run_bytes, vcpu.run32, vcpu.run64
        out_byte, in_byte = bus.out_byte.get, bus.in_byte.get
        reason_at, io_at, io_data_offset_at = Run.EXIT_REASON // 4, Run.IO // 8, Run.IO_DATA_OFFSET // 8
        exit_io, exit_mmio = int(Exit.IO), int(Exit.MMIO)
        data_at = 0x1000  # KVM_PIO_PAGE_OFFSET: x86 keeps PIO data in the page after kvm_run
        while True:
            try:  # costs nothing until it raises; around the call alone, or a device's own OSError would pass for KVM's
                ioctl(fd, run)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN):
                    return
                raise explain(run, error.errno or 0, f"vCPU {vcpu.id}") from error
            reason = run32[reason_at]
            counts[reason] += 1
            if reason == exit_io:
                access = run64[io_at]
                if (write := out_byte(access)) is not None:
                    write(run_bytes[data_at])
                elif (read := in_byte(access)) is not None:
                    run_bytes[data_at] = read()
                else:
                    bus.port_access(access, run_bytes[run64[io_data_offset_at] :])
            elif reason == exit_mmio:
                self._mmio()
            else:
                self._rare(reason)

    def _serve_observed(self, observer: Observer) -> None:
        """`_serve` for a caller who wants to see each exit: the same in everything but speed."""
        from minivmm.exits import record

        vcpu, bus = self.vcpu, self._bus
        while (reason := vcpu.run()) is not None:
            self.counts[reason] += 1
            try:
                if reason is Exit.IO:
                    bus.port_access(vcpu.run64[Run.IO // 8], vcpu.run_bytes[vcpu.run64[Run.IO_DATA_OFFSET // 8] :])
                elif reason is Exit.MMIO:
                    self._mmio()
                else:
                    self._rare(reason)
            finally:  # the exit that ends the run is seen too
                observer(record(vcpu, reason))

    def _mmio(self) -> None:
        """Serves a KVM_EXIT_MMIO."""
        vcpu = self.vcpu
        address, size = vcpu.run64[_MMIO_ADDRESS], vcpu.run32[_MMIO_LEN]
        if vcpu.run_bytes[_MMIO_IS_WRITE]:
            self._bus.mmio_write(address, size, vcpu.run64[_MMIO_DATA] & (1 << 8 * size) - 1)
        else:
            vcpu.run64[_MMIO_DATA] = self._bus.mmio_read(address, size)

    def _rare(self, reason: int) -> None:
        """Serves an exit that ends the run or hardly ever comes."""
        vcpu = self.vcpu
        match reason:
            case Exit.SHUTDOWN:
                raise EndOfRun(Outcome.TRIPLE_FAULT, "the CPU shut down: a fault while delivering a double fault")
            case Exit.HLT:  # only without the in-kernel irqchip
                raise EndOfRun(Outcome.HALTED, "the guest executed hlt and has no interrupt controller to wake it")
            case Exit.FAIL_ENTRY:
                hardware = vcpu.run64[Run.FAIL_ENTRY_REASON // 8]
                raise EndOfRun(Outcome.FAIL_ENTRY, f"the CPU refused the guest's state: hardware reason {hardware:#x}")
            case Exit.INTERNAL_ERROR:
                raise EndOfRun(Outcome.INTERNAL_ERROR, self._internal_error())
            case Exit.SYSTEM_EVENT:
                raise EndOfRun(Outcome.SHUTDOWN, f"system event {vcpu.run32[Run.SYSTEM_EVENT_TYPE // 4]}")
            case Exit.INTR | Exit.IRQ_WINDOW_OPEN:
                return
            case _:
                raise EndOfRun(Outcome.INTERNAL_ERROR, f"an exit nobody serves: KVM_EXIT reason {reason}")

    def _internal_error(self) -> str:
        """What KVM could not do, in words: the instruction's bytes where it gives them."""
        vcpu = self.vcpu
        suberror = vcpu.run32[Run.INTERNAL_SUBERROR // 4]
        if suberror != abi.KVM_INTERNAL_ERROR_EMULATION:
            return f"KVM internal error, suberror {suberror}"
        known = vcpu.run32[Run.INTERNAL_NDATA // 4] >= 1
        if known and vcpu.run64[Run.EMULATION_FLAGS // 8] & abi.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES:
            size = min(vcpu.run_bytes[Run.EMULATION_INSN_SIZE], 15)
            at = Run.EMULATION_INSN_BYTES
            return f"KVM cannot emulate the instruction {vcpu.run_bytes[at : at + size].hex(' ')}"
        return "KVM cannot emulate an instruction of the guest"

    def _interrupted(self) -> None:
        """After EINTR: clears the kick, and looks at the vCPU's state when asked to."""
        self.vcpu.immediate_exit = False
        if self._stopping:
            return
        if self._looking.is_set():
            self._looking.clear()
            state = self.vcpu.get_mp_state()
            self.asleep = state in (MpState.UNINITIALIZED, MpState.INIT_RECEIVED) or (
                state is MpState.HALTED and not self.vcpu.get_regs().rflags & RFLAGS_IF
            )
            self._looked.set()
