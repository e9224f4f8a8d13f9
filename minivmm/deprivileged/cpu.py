"""A vCPU that runs ring-3 code and comes back with an event.

    cpu.regs.rip, cpu.cs, cpu.root = entry, Selector.USER64, pml4
    while True:
        match cpu.run():
            case Trap(Vector.GP, rip=rip): cpu.regs.rip = emulate(rip)
            ...

Between two runs `regs` is ring 3's state, whichever way the vCPU left it: a mutable view of the page shared with the
kernel. Ring 3 is entered by setting segments and registers there, never by code of ours, so the stub has no way back.
"""

from __future__ import annotations

import errno
import signal
import time
from fcntl import ioctl
from threading import get_ident

from minivmm.deprivileged import stub, walk
from minivmm.deprivileged.decode import LONGEST_INSTRUCTION, int_n, port_access_before
from minivmm.deprivileged.events import (
    WITH_ERROR_CODE,
    Event,
    Interrupted,
    MmioAccess,
    PortAccess,
    SoftwareInterrupt,
    Stopped,
    SystemCall,
    Trap,
    Vector,
)
from minivmm.deprivileged.monitor import IST1_TOP, ON_IST1, STACK_TOP, Monitor
from minivmm.deprivileged.state import REGS, RFLAGS_RING3
from minivmm.deprivileged.stopped import why_stopped
from minivmm.deprivileged.stores import CS, SS, StoringCpu
from minivmm.kvm import abi
from minivmm.kvm.abi import Exit, Run
from minivmm.kvm.ioctl import explain
from minivmm.kvm.kick import KICK, accept_kicks
from minivmm.kvm.vcpu import Vcpu
from minivmm.memory import PAGE_SIZE
from minivmm.x86.registers import RFLAGS_IF, RFLAGS_RESERVED

# Words of the kvm_run page.
_REASON = Run.EXIT_REASON // 4
_RIP, _RSP, _RFLAGS, _RCX, _R11 = (
    (Run.SYNC_REGS + getattr(abi.kvm_regs, name).offset) // 8 for name in ("rip", "rsp", "rflags", "rcx", "r11")
)
_CR2 = (Run.SYNC_SREGS + abi.kvm_sregs.cr2.offset) // 8
_CS_SELECTOR, _SS_SELECTOR = (at + abi.kvm_segment.selector.offset for at in (CS, SS))

_RFLAGS_ALWAYS = RFLAGS_IF | RFLAGS_RESERVED

_KVM_RUN = abi.KVM_RUN
_IO = Run.IO // 8
_EXIT_IO, _EXIT_MMIO = int(Exit.IO), int(Exit.MMIO)
_SYSCALL_PORT = stub.SYSCALL_PORT
_IDT = 2  # in an error code: the rest of it is a vector, of a software interrupt
_WAIT = 20e-6  # seconds between two looks at a vCPU that was kicked


class DeprivilegedCpu(StoringCpu):
    """Runs ring-3 code on `vcpu`, whose CPUID must have been set. `index` is its number in the monitor.

    state.py has what ring 3 has between two runs, stores.py its page tables. `kick`, `flush`, `running` and
    `wait_outside` are for other threads, and need no lock.
    """

    def __init__(self, vcpu: Vcpu, monitor: Monitor, index: int = 0) -> None:
        super().__init__(vcpu, monitor, index)
        self._thread = 0
        self.running = False
        """Whether its thread is in KVM_RUN, or on its way there with page tables and flushes as they were."""
        self._runs = self._run_kicked = 0
        self._call_port = monitor.call_port
        self._codes, self._stacks = self.segments.codes, self.segments.stacks
        accept_kicks()

    def kick(self) -> None:
        """Has the run under way, or else the next one, return `Interrupted` soon. Thread-safe."""
        self._run_kicked = self._runs
        self._kicked = True
        self.vcpu.immediate_exit = True
        if self._thread:
            signal.pthread_kill(self._thread, KICK)

    def wait_outside(self) -> None:
        """Returns once the vCPU is out of the KVM_RUN it was in when it was kicked last. It may be in another by then,
        which began after the kick, and with every `flush` of before the kick. For other threads."""
        while self.running and self._runs == self._run_kicked:
            time.sleep(_WAIT)

    def reset(self) -> None:
        """As new, for another guest on this vCPU: nothing of the one before is left in a register or a table, no access
        waits for its answer, no kick is remembered, and what was to be stored is. Raises KvmError."""
        super().reset()
        self._kicked = self.vcpu.immediate_exit = False

    def run(self) -> Event:
        """Runs ring 3 until something happens. Raises KvmError.

        The hot path of every guest in here: benchmark `ring3`.
        """
        self._thread = get_ident()
        vcpu = self.vcpu
        run64 = vcpu.run64
        if self._answer_at is not None:
            self.answer(b"\xff" * self._answer_at[1])
        if self._exit_waits:
            self._exit_waits = False
            return self._event()
        if self._kicked:
            self._kicked = vcpu.immediate_exit = False
            return Interrupted()
        code = self._codes.get(self.cs) or self.segments.code(self.cs)
        stack = self._stacks.get(self.ss) or self.segments.stack(self.ss)
        if code is None or stack is None:  # as iret has it
            return Trap(Vector.GP, (self.ss if code else self.cs) & 0xFFFC, 0, run64[_RIP])
        rip = run64[_RIP]
        if (rip + (1 << 47)) & (1 << 64) - 1 >= 1 << 48:  # not canonical: the fault of the next fetch
            return Trap(Vector.GP, 0, 0, rip)
        run64[_RFLAGS] = run64[_RFLAGS] & RFLAGS_RING3 | _RFLAGS_ALWAYS
        # Before it looks at what is to be stored and flushed: whoever asks for more finds it running.
        self._runs += 1
        self.running = True
        try:
            interrupted = self._enter(code, stack)
        finally:
            self.running = False
        return Interrupted() if interrupted else self._event()

    def _enter(self, code: bytes, stack: bytes) -> bool:
        """Runs ring 3 to the next exit, False, or interruption, True."""
        vcpu = self.vcpu
        saved = None
        if self._stores or self._flush_wanted:
            saved = self._enter_storing()
        else:
            # Always all registers, by which the kernel loses less than a microsecond, on a software back end too.
            self._load(code, stack)
        while True:
            try:
                ioctl(vcpu.fd, _KVM_RUN)
            except OSError as error:
                if error.errno not in (errno.EINTR, errno.EAGAIN):
                    raise explain(_KVM_RUN, error.errno or 0, f"vCPU {vcpu.id}") from error
                vcpu.immediate_exit = False
                if saved is not None and self._on_the_way_in():
                    vcpu.run_bytes[REGS] = saved  # nothing has happened: the next run stores them all again
                    self._flush_wanted = True
                elif self._in_stub() or vcpu.exception_waits():
                    continue  # at an `out`, or on its way to one, an instruction or two off: the event comes first
                else:
                    self._stores.clear()
                    self._take_selectors()
                self._kicked = False
                return True
            self._stores.clear()
            return False

    def _on_the_way_in(self) -> bool:
        """Whether the vCPU is at STORES_AND_ENTER."""
        rip: int = self.vcpu.run64[_RIP]
        return self.monitor.stores_and_enter_va <= rip < self.monitor.stub_va + PAGE_SIZE

    def _in_stub(self) -> bool:
        """Whether the vCPU is at code of ours. Code of ours never loops, so this never lasts."""
        ring: int = self.vcpu.run_bytes[_CS_SELECTOR] & 3
        rip: int = self.vcpu.run64[_RIP]
        return ring == 0 or rip & -PAGE_SIZE == self.monitor.gate_va

    def _take_selectors(self) -> None:
        """Ring 3 was left from itself: CS and SS are its own."""
        run_bytes = self.vcpu.run_bytes
        self.cs = int.from_bytes(run_bytes[_CS_SELECTOR : _CS_SELECTOR + 2], "little")
        self.ss = int.from_bytes(run_bytes[_SS_SELECTOR : _SS_SELECTOR + 2], "little")

    def _event(self) -> Event:
        """What the exit in kvm_run means."""
        vcpu = self.vcpu
        run64 = vcpu.run64
        reason = vcpu.run32[_REASON]
        if reason == _EXIT_IO:
            port = run64[_IO] >> 16 & 0xFFFF
            if port == _SYSCALL_PORT and self._in_stub():
                # On SVM the gate's `out` would be completed by the next KVM_RUN: not any more when RIP has left it.
                rip = run64[_RIP] = run64[_RCX]
                run64[_RFLAGS] = run64[_R11]
                return SystemCall(rip)
            if vcpu.run_bytes[_CS_SELECTOR] & 3 == 0:
                return self._trap(port)
            if port == self._call_port and run64[_IO] & 0xFF == abi.KVM_EXIT_IO_OUT:
                self._take_selectors()
                rip = run64[_RIP] = run64[_RCX]  # as above: nothing is left to be completed
                return SystemCall(rip)
            open_ports = self.monitor.open_ports
            if open_ports is None or port in open_ports:
                return self._port_access()
            return self._refused_access()
        if reason == _EXIT_MMIO and not self._in_stub():
            return self._mmio_access()
        return Stopped(why_stopped(vcpu, reason, self.root))

    def _trap(self, vector: int) -> Event:
        """The exception, `int` or debug trap whose frame is on the trap stack. Registers become ring 3's."""
        run64, stack = self.vcpu.run64, self._stack
        top = (IST1_TOP if vector in ON_IST1 else STACK_TOP) // 8
        rip, cs, rflags, rsp, ss = stack[top - 5 : top]
        if cs & 3 == 0:
            return Stopped(f"exception {vector} at ring 0, RIP {rip:#x}")
        run64[_RIP], run64[_RFLAGS], run64[_RSP] = rip, rflags, rsp
        self.cs, self.ss = cs & 0xFFFF, ss & 0xFFFF
        error_code = stack[top - 6] & 0xFFFF_FFFF if vector in WITH_ERROR_CODE else 0
        if vector == Vector.PF:
            return Trap(vector, error_code, run64[_CR2], rip)
        # `int n`: on hardware #GP for its gate's DPL (SDM 3A 6.12.1.1), on a software back end #UD.
        refused = vector == Vector.GP and error_code & 7 == _IDT
        if vector == Vector.UD or refused:
            found = self._software_interrupt(rip)
            if found is None and refused:  # emulated SVM (QEMU 7.2) has RIP past `int 14`
                found = self._software_interrupt(rip - 2)
            if found is not None:
                return found
        return Trap(vector, error_code, 0, rip)

    def _software_interrupt(self, rip: int) -> Event | None:
        """The `int n` at `rip`, with RIP moved past it."""
        found = int_n(walk.read(self.monitor.memory, self.root, rip, LONGEST_INSTRUCTION))
        if found is None:
            return None
        end = self.vcpu.run64[_RIP] = rip + found.length
        # Its gate lets ring 3 through on hardware: what arrives there is a #BP like that of `int3`.
        return Trap(Vector.BP, 0, 0, end) if found.vector == Vector.BP else SoftwareInterrupt(found.vector, rip)

    def _port_access(self) -> PortAccess:
        run64 = self.vcpu.run64
        self._take_selectors()
        access, at = run64[_IO], run64[Run.IO_DATA_OFFSET // 8]
        is_write, size = access & 0xFF == abi.KVM_EXIT_IO_OUT, access >> 8 & 0xFF
        data = bytes(self.vcpu.run_bytes[at : at + size * (access >> 32)])
        self._pending(is_write, at, len(data))
        return PortAccess(access >> 16 & 0xFFFF, size, is_write, data)

    def _refused_access(self) -> Trap:
        """What the I/O bitmap would have made of ring 3's access to a port that is open for the gate alone."""
        vcpu = self.vcpu
        run64 = vcpu.run64
        self._take_selectors()
        access, saved = run64[_IO], bytes(vcpu.run_bytes[REGS])
        self._complete()
        self._exit_waits = False
        if access & 0xFF == abi.KVM_EXIT_IO_OUT:
            end = run64[_RIP]
            length = min(LONGEST_INSTRUCTION, (end - 1) % PAGE_SIZE + 1)  # no longer, lest the page before is not there
            code = walk.read(self.monitor.memory, self.root, end - length, length)
            run64[_RIP] = end - port_access_before(code, _SYSCALL_PORT, access >> 8 & 0xFF)
        else:
            vcpu.run_bytes[REGS] = saved
        return Trap(Vector.GP, 0, 0, run64[_RIP])

    def _mmio_access(self) -> MmioAccess:
        vcpu = self.vcpu
        self._take_selectors()
        size, address = vcpu.run32[Run.MMIO_LEN // 4], vcpu.run64[Run.MMIO_PHYS_ADDR // 8]
        is_write = bool(vcpu.run_bytes[Run.MMIO_IS_WRITE])
        data = bytes(vcpu.run_bytes[Run.MMIO_DATA : Run.MMIO_DATA + size])
        self._pending(is_write, Run.MMIO_DATA, size)
        return MmioAccess(address, is_write, data)

    def _pending(self, is_write: bool, at: int, length: int) -> None:
        """A write's instruction is completed now, so that the registers are those after it; a read's by its answer."""
        if is_write:
            self._complete()
        else:
            self._answer_at = at, length

    def answer(self, data: bytes) -> None:
        """Gives the `in` or MMIO read that `run` returned its data, and completes it. Unanswered ones read all ones.

        Raises ValueError when there is none, or it is of another length.
        """
        if self._answer_at is None or len(data) != self._answer_at[1]:
            raise ValueError(f"no read of {len(data)} bytes waits for an answer")
        at, length = self._answer_at
        self._answer_at = None
        self.vcpu.run_bytes[at : at + length] = data
        self._complete()

    def _complete(self) -> None:
        """Completes pending I/O. A long one (`rep outs`) may come back with its next piece, which waits for `run`."""
        self.vcpu.immediate_exit = True
        self._exit_waits = self.vcpu.run() is not None
        self.vcpu.immediate_exit = False  # a kick meanwhile is remembered in `_kicked`
