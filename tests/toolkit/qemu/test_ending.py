"""How QEMU's signs are read, without a QEMU."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from minivmm.outcome import Outcome
from toolkit.qemu.ending import Ending, ending


def shutdown(reason: str) -> dict[str, Any]:
    return {"event": "SHUTDOWN", "data": {"guest": True, "reason": reason}}


STOPPED = Ending(Outcome.INTERRUPTED, "stopped by the caller")


@pytest.mark.parametrize(
    ("events", "returncode", "words", "asked", "outcome", "code"),
    [
        ([], 1, "", None, Outcome.SHUTDOWN, 0),
        ([], 7, "", None, Outcome.EXITED, 3),
        ([shutdown("guest-shutdown")], 7, "", None, Outcome.EXITED, 3),  # QEMU from 9.0 on
        ([shutdown("guest-shutdown")], 0, "", None, Outcome.SHUTDOWN, None),
        ([shutdown("guest-reset")], 0, "", None, Outcome.TRIPLE_FAULT, None),
        ([shutdown("guest-reset")], 0, "pckbd_kbd_write_command 0xfe", None, Outcome.RESET, None),
        ([shutdown("guest-reset")], 0, "pckbd_kbd_write_command 0x20", None, Outcome.TRIPLE_FAULT, None),
        ([{"event": "GUEST_PANICKED"}, shutdown("guest-panic")], 0, "", None, Outcome.CRASHED, None),
        ([shutdown("host-signal")], 0, "", STOPPED, Outcome.INTERRUPTED, None),
        ([shutdown("host-signal")], 0, "", None, Outcome.INTERRUPTED, None),
        ([], -signal.SIGKILL, "", Ending(Outcome.DEADLINE), Outcome.DEADLINE, None),
        ([], -signal.SIGKILL, "", None, Outcome.INTERRUPTED, None),
        ([], -signal.SIGSEGV, "", None, Outcome.HOST_ERROR, None),
        ([], 1, "qemu-system-x86_64: no room", None, Outcome.HOST_ERROR, None),
    ],
)
def test_every_sign_has_its_outcome(
    events: list[dict[str, Any]],
    returncode: int,
    words: str,
    asked: Ending | None,
    outcome: Outcome,
    code: int | None,
) -> None:
    result = ending(events, returncode, words, asked)
    assert (result.outcome, result.code) == (outcome, code)


def test_a_guest_that_ended_by_itself_is_not_called_interrupted() -> None:
    assert ending([], 7, "", STOPPED).outcome is Outcome.EXITED


def test_qemus_own_words_are_the_detail_of_its_failure() -> None:
    words = "pckbd_kbd_write_command 0x20\nqemu-system-x86_64: warning: x\nqemu-system-x86_64: cannot allocate"
    assert ending([], 1, words, None).detail == "qemu-system-x86_64: cannot allocate"
