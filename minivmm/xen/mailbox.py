"""Exitless hypercalls: a call posted in shared memory, answered by a thread of the hypervisor that looks there.

Leaving ring 3 costs 30 to 50 us on a software back end, a word through shared memory a quarter of one. So while a
domain's kernel makes one call after the other and a CPU is spare, a thread looks into the mailbox and answers calls
that need nothing of the vCPU itself; the vCPU waits at ring 3, in the hypercall page (hypercall_page.py). Everything
else leaves as before, and so does a call that nobody answers in the time leaving takes.

The page is the vCPU's own, mapped at one address in the tables its kernel runs on, and only there. The guest may write
anything into it at any time: the call is copied once under the lock, and what was carried out is remembered here.

    IDLE -> FILLING -> POSTED -> DONE -> IDLE     answered
                              -> LEAVE            answered or not: the rest happens at the exit
    and from any of these the kernel leaves when it has waited long enough, having stored SEQUENCE in LEAVING

From FILLING until the answer is taken the kernel is inside a call: no event is delivered, as none would be outside.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from minivmm.memory import PAGE_SIZE, GuestMemory
from minivmm.outcome import EndOfRun
from minivmm.xen.hypercall_abi import Hypercall, VcpuOp

if TYPE_CHECKING:
    from minivmm.xen.vcpu import VirtualCpu

MAILBOX_SLOT = 258
MAILBOX_VIRT = -1 << 48 & (1 << 64) - 1 | MAILBOX_SLOT << 39


class State:
    """Where a call is."""

    IDLE = 0
    FILLING = 1
    POSTED = 2
    DONE = 4
    LEAVE = 5  # the guest has to leave: events wait, or the call is not one for the mailbox


class Field:
    """Numbers of the page's 64-bit words."""

    STATE = 0
    SEQUENCE = 1  # counted up with every call
    NUMBER = 2
    ARGUMENTS = 3  # six of them
    RESULT = 9
    LEAVING = 10  # SEQUENCE of the call that the kernel is on its way out with
    OPEN = 15  # whether somebody looks


# What needs nothing of the vCPU but its memory: no page-table entry changes, no register but RAX. By number: all of it,
# or these commands (RDI).
_TIMERS = frozenset(
    {
        *(VcpuOp.SET_PERIODIC_TIMER, VcpuOp.STOP_PERIODIC_TIMER, VcpuOp.SET_SINGLESHOT_TIMER),
        *(VcpuOp.STOP_SINGLESHOT_TIMER, VcpuOp.IS_UP, VcpuOp.GET_RUNSTATE_INFO),
    }
)
EXITLESS: dict[int, frozenset[int] | None] = {
    Hypercall.XEN_VERSION: None,
    Hypercall.EVENT_CHANNEL_OP: None,
    Hypercall.CONSOLE_IO: None,
    Hypercall.SET_TIMER_OP: None,
    Hypercall.STACK_SWITCH: None,
    Hypercall.CALLBACK_OP: None,
    Hypercall.VM_ASSIST: None,
    Hypercall.GET_DEBUGREG: None,
    Hypercall.VCPU_OP: _TIMERS,
}

BURST_NS = 300_000  # calls closer together than this are a burst
IDLE_LOOKS = 5000  # without a call, some 50 ns each: the burst is over
TURN = 20e-6  # seconds: how long a vCPU's thread that came out waits for the interpreter while somebody looks
FIRST_PAUSE_NS, LAST_PAUSE_NS = 1_000_000, 1_000_000_000  # after a call nobody answered in time
_WORD = (1 << 64) - 1
_NUMBER = (1 << 32) - 1


class Mailbox:
    """A vCPU's mailbox at machine address `page`, and the thread that looks into it while that pays."""

    def __init__(self, memory: GuestMemory, page: int) -> None:
        memory.write(page, bytes(PAGE_SIZE))
        self.words = memory.view(page, PAGE_SIZE).cast("Q")
        self.answered = 0
        """Calls carried out without an exit."""
        self.missed = 0
        """Calls that left since nobody came."""
        self._sequence = -1  # of the last call carried out
        self._result = 0
        self._last_call = 0
        self._pause, self._quiet_until = FIRST_PAUSE_NS, 0
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, vcpu: VirtualCpu) -> None:
        """Has a thread ready to look."""
        self._thread = threading.Thread(target=self._attend, args=(vcpu,), name="xen-mailbox", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The domain has ended: so does the thread. Not with the lock held."""
        if self._thread is not None:
            self._wanted.set()
            self._thread.join()
            self._thread = None
        self.words.release()

    @property
    def busy(self) -> bool:
        """Whether the kernel is inside a posted call."""
        return bool(self.words[Field.STATE] & _NUMBER)

    def forget_user(self) -> None:
        """The kernel is entered: nothing that stands in the mailbox is its."""
        self.words[Field.STATE] = State.IDLE

    def exit(self, number: int) -> int | None:
        """The kernel came out with a hypercall. Its result if it was posted and is carried out already, else None."""
        words = self.words
        sequence = words[Field.SEQUENCE]
        if words[Field.STATE] and words[Field.LEAVING] == sequence:
            words[Field.STATE] = State.IDLE
            if self._sequence == sequence:
                return self._result
            if words[Field.OPEN]:
                self._miss()
        if number in EXITLESS:
            now = time.monotonic_ns()
            if now - self._last_call < BURST_NS and now >= self._quiet_until:
                self._wanted.set()
            self._last_call = now
        return None

    def _miss(self) -> None:
        """Nobody came: no CPU was spare. The next try is later, and later each time."""
        self.missed += 1
        self._quiet_until = time.monotonic_ns() + self._pause
        self._pause = min(self._pause * 2, LAST_PAUSE_NS)

    def _attend(self, vcpu: VirtualCpu) -> None:
        words = self.words
        domain = vcpu.domain
        while domain.end is None:
            self._wanted.wait()
            if domain.end is not None:
                return
            words[Field.OPEN] = 1
            with _short_turns():
                self._look(vcpu)
            words[Field.OPEN] = 0
            self._wanted.clear()

    def _look(self, vcpu: VirtualCpu) -> None:
        """Until a while without a call, or a call that nobody answered in time."""
        words, posted = self.words.cast("B").cast("I"), State.POSTED
        looks = 0
        while looks < IDLE_LOOKS:
            if words[0] == posted:
                self._answer(vcpu)
                looks = 0
            looks += 1
            if not looks & 0xFF and (vcpu.domain.end is not None or time.monotonic_ns() < self._quiet_until):
                return

    def _answer(self, vcpu: VirtualCpu) -> None:
        from minivmm.xen.calls import call

        core, words = vcpu.core, self.words
        with core.lock:
            if words[Field.STATE] & _NUMBER != State.POSTED:
                return
            sequence = words[Field.SEQUENCE]
            number, arguments = words[Field.NUMBER] & _NUMBER, words[Field.ARGUMENTS : Field.RESULT].tolist()
            commands = EXITLESS.get(number, frozenset())
            fit = commands is None or arguments[0] in commands
            if not fit or not vcpu.in_kernel or vcpu.domain.end is not None or vcpu.domain.paused:
                words[Field.STATE] = State.LEAVE
                return
            core.current = vcpu
            try:
                result = call(vcpu, number, tuple(arguments)) & _WORD
            except EndOfRun as end:
                vcpu.domain.finish(end)
                words[Field.STATE] = State.LEAVE
                return
            finally:
                core.current = None
            self.answered += 1
            self._pause = FIRST_PAUSE_NS
            self._sequence, self._result = sequence, result
            info = vcpu.info
            words[Field.RESULT] = result
            words[Field.STATE] = State.LEAVE if info[0] and not info[1] else State.DONE


_looking = 0
_turn = 0.0
_looking_lock = threading.Lock()


@contextlib.contextmanager
def _short_turns() -> Iterator[None]:
    """Threads take turns at the interpreter more often: one that looks never waits for anything."""
    global _looking, _turn  # noqa: PLW0603  the switch interval is the process's, too
    with _looking_lock:
        if not _looking:
            _turn = sys.getswitchinterval()
            sys.setswitchinterval(TURN)
        _looking += 1
    try:
        yield
    finally:
        with _looking_lock:
            _looking -= 1
            if not _looking:
                sys.setswitchinterval(_turn)


def pays() -> bool:
    """Whether this host has a back end where leaving is dear, and a second CPU."""
    return len(os.sched_getaffinity(0)) > 1 and Path("/sys/module/kvm_pvm").exists()
