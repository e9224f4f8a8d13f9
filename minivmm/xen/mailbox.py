"""The mailbox of exitless hypercalls: a call posted in shared memory, for a thread to find (exitless.py).

The page is the vCPU's own, mapped at one address in the tables its kernel runs on, and only there. The guest may write
anything into it at any time: a call is copied once under the lock, and what was carried out is remembered here.

    IDLE -> FILLING -> POSTED -> DONE -> IDLE     answered
                              -> LEAVE            answered or not: the rest happens at the exit
    and from any of these the kernel leaves when it has waited long enough, having stored SEQUENCE in LEAVING

From FILLING until the answer is taken the kernel is inside a call: no event is delivered, as none would be outside.
"""

from __future__ import annotations

import threading
import time

from minivmm.memory import PAGE_SIZE, GuestMemory
from minivmm.xen.hypercall_abi import Hypercall, VcpuOp

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

    STATE = 0  # its low half
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
FIRST_PAUSE_NS, LAST_PAUSE_NS = 1_000_000, 1_000_000_000  # after a call nobody answered in time


class Mailbox:
    """A vCPU's mailbox at machine address `page`. Everything but `wanted` and `quiet_until` under the lock."""

    def __init__(self, memory: GuestMemory, page: int) -> None:
        memory.write(page, bytes(PAGE_SIZE))
        self.words = memory.view(page, PAGE_SIZE).cast("Q")
        self.state = self.words.cast("B").cast("I")  # its first is State
        self.wanted = threading.Event()
        """Calls come one after the other: somebody should look."""
        self.quiet_until = 0
        """When it is worth another try, monotonic ns."""
        self.answered = 0
        """Calls carried out without an exit."""
        self.missed = 0
        """Calls that left since nobody came."""
        self._sequence = -1  # of the last call carried out
        self._result = 0
        self._last_call = 0
        self._pause = FIRST_PAUSE_NS

    def close(self) -> None:
        """The domain is gone, and nobody looks."""
        self.state.release()
        self.words.release()

    @property
    def busy(self) -> bool:
        """Whether the kernel is inside a posted call."""
        return bool(self.state[0])

    def forget_user(self) -> None:
        """The kernel is entered: nothing that stands in the mailbox is its."""
        self.words[Field.STATE] = State.IDLE

    def answer(self, sequence: int, result: int, leave: bool) -> None:
        """The call was carried out: the kernel gets `result`, here or at the exit it is told to make."""
        self.answered += 1
        self._pause = FIRST_PAUSE_NS
        self._sequence, self._result = sequence, result
        self.words[Field.RESULT] = result
        self.words[Field.STATE] = State.LEAVE if leave else State.DONE

    def exit(self, number: int) -> int | None:
        """The kernel came out with a hypercall. Its result if it was posted and is carried out already, else None."""
        words = self.words
        sequence = words[Field.SEQUENCE]
        if self.state[0] and words[Field.LEAVING] == sequence:
            words[Field.STATE] = State.IDLE
            if self._sequence == sequence:
                return self._result
            if words[Field.OPEN]:
                self._miss()
        if number in EXITLESS:
            now = time.monotonic_ns()
            if now - self._last_call < BURST_NS and now >= self.quiet_until:
                self.wanted.set()
            self._last_call = now
        return None

    def _miss(self) -> None:
        """Nobody came: no CPU was spare. The next try is later, and later each time."""
        self.missed += 1
        self.quiet_until = time.monotonic_ns() + self._pause
        self._pause = min(self._pause * 2, LAST_PAUSE_NS)
