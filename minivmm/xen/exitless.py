"""Answers hypercalls that a domain's kernel posts in its mailbox (mailbox.py), while that pays.

Leaving ring 3 costs 30 to 50 us on a software back end, a word through shared memory a quarter of one. So while a
domain's kernel makes one call after the other and a CPU is spare, a thread looks into the mailbox and answers calls
that need nothing of the vCPU itself; the vCPU waits at ring 3, in the hypercall page (hypercall_page.py). Everything
else leaves as before, and so does a call that nobody answers in the time leaving takes.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from minivmm.outcome import EndOfRun
from minivmm.xen.calls import TABLE, call
from minivmm.xen.mailbox import EXITLESS, Field, Mailbox, State
from minivmm.xen.vcpu import VirtualCpu

IDLE_LOOKS = 5000  # without a call, some 50 ns each: the burst is over
TURN = 20e-6  # seconds: how long a vCPU's thread that came out waits for the interpreter while somebody looks

_NONE: frozenset[int] = frozenset()
_WORD = (1 << 64) - 1
_NUMBER = (1 << 32) - 1
_FIRST = range(Field.ARGUMENTS, Field.ARGUMENTS + 1)
_ARGUMENTS = {number: range(Field.ARGUMENTS, Field.ARGUMENTS + TABLE[number].arguments) for number in EXITLESS}
_looking = 0
_turn = 0.0
_looking_lock = threading.Lock()


def pays() -> bool:
    """Whether this host has a back end where leaving is dear, and a second CPU."""
    return len(os.sched_getaffinity(0)) > 1 and Path("/sys/module/kvm_pvm").exists()


def attend(vcpu: VirtualCpu, mailbox: Mailbox) -> None:
    """The thread of a mailbox: until the domain has ended and `wanted` is set once more."""
    words, domain = mailbox.words, vcpu.domain
    while domain.end is None:
        mailbox.wanted.wait()
        if domain.end is not None:
            return
        words[Field.OPEN] = 1
        with _short_turns():
            _look(vcpu, mailbox)
        words[Field.OPEN] = 0
        mailbox.wanted.clear()


def _look(vcpu: VirtualCpu, mailbox: Mailbox) -> None:
    """Until a while without a call, or a call that nobody answered in time."""
    state, posted, lock, domain = mailbox.state, State.POSTED, vcpu.core.lock, vcpu.domain
    looks = 0
    while looks < IDLE_LOOKS:
        if state[0] == posted:
            with lock:
                if state[0] == posted:
                    _carry_out(vcpu, mailbox)
            looks = 0
        looks += 1
        if not looks & 0xFF and (domain.end is not None or time.monotonic_ns() < mailbox.quiet_until):
            return


def _carry_out(vcpu: VirtualCpu, mailbox: Mailbox) -> None:
    """The call that is posted. About 3 us: benchmark `paravirt`."""
    words, core, domain = mailbox.words, vcpu.core, vcpu.domain
    sequence, number = words[Field.SEQUENCE], words[Field.NUMBER] & _NUMBER
    # As many arguments as the call takes, each copied once.
    arguments = tuple([words[index] for index in _ARGUMENTS.get(number, _FIRST)])
    commands = EXITLESS.get(number, _NONE)
    fit = commands is None or arguments[0] in commands
    if not fit or not vcpu.in_kernel or domain.end is not None or domain.paused:
        words[Field.STATE] = State.LEAVE
        return
    core.current = vcpu
    try:
        result = call(vcpu, number, arguments) & _WORD
    except EndOfRun as end:
        domain.finish(end)
        words[Field.STATE] = State.LEAVE
        return
    finally:
        core.current = None
    info = vcpu.info
    mailbox.answer(sequence, result, bool(info[0] and not info[1]))


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
