"""How a QEMU machine ended, put together from what QEMU tells: QMP events, its exit status, its trace and its words."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from minivmm.outcome import Outcome
from toolkit.qemu.microvm import RESET_TRACE

RESET_COMMAND = 0xFE  # to port 0x64: pulse the reset line


class Ending(NamedTuple):
    """The outcome, what is known of it, and the guest's own exit code where it gave one."""

    outcome: Outcome
    detail: str = ""
    code: int | None = None


def exited(code: int) -> Ending:
    """The end by the debug-exit port with `code`."""
    return Ending(Outcome.EXITED if code else Outcome.SHUTDOWN, f"the guest exited with code {code}", code)


def ending(
    events: Sequence[Mapping[str, Any]], returncode: int, words: str, asked: Ending | None, target: str = "x86_64"
) -> Ending:
    """`events` in the order they came, `asked` the end the host side asked for, if it did.

    isa-debug-exit ends QEMU with status (code << 1) | 1: older versions by exit() and with no event, newer ones
    through an orderly shutdown with its event. QEMU's own failures have status 1 as well, and words on standard
    error. The RISC-V board's test finisher ends QEMU with the code itself, in older versions by exit() too.
    """
    shutdown = ""
    for event in events:
        if event.get("event") == "GUEST_PANICKED":
            return Ending(Outcome.CRASHED, "the guest's kernel panicked (pvpanic)")
        if event.get("event") == "SHUTDOWN":
            shutdown = str(event.get("data", {}).get("reason", ""))
    complaint = complaints(words)
    if target == "riscv64" and returncode >= 0 and shutdown in ("", "guest-shutdown") and not complaint:
        return exited(returncode)
    if returncode > 0 and returncode & 1 and shutdown in ("", "guest-shutdown") and not complaint:
        return exited(returncode >> 1)
    match shutdown:
        case "guest-shutdown":
            return Ending(Outcome.SHUTDOWN, "the guest powered off")
        case "guest-panic":
            return Ending(Outcome.CRASHED, "the guest's kernel panicked")
        case "guest-reset" if f"{RESET_TRACE} {RESET_COMMAND:#x}" in words:
            return Ending(Outcome.RESET, "the guest pulsed the reset line (i8042)")
        case "guest-reset":
            return Ending(Outcome.TRIPLE_FAULT, "the CPU shut down: a fault while delivering a double fault")
        case "host-error":
            return Ending(Outcome.HOST_ERROR, complaint or "QEMU reports a host error")
    if asked is not None:
        return asked
    if shutdown or returncode in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGKILL):
        return Ending(Outcome.INTERRUPTED, f"QEMU was stopped from outside ({shutdown or f'signal {-returncode}'})")
    return Ending(Outcome.HOST_ERROR, complaint or f"QEMU ended with status {returncode}")


def complaints(words: str) -> str:
    """QEMU's standard error without the trace lines and warnings: what it says when it fails."""
    return "\n".join(line for line in words.splitlines() if RESET_TRACE not in line and "warning:" not in line).strip()
