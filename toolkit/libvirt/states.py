"""libvirt's states and reasons (libvirt-domain.h, virDomainState and its …Reason enumerations) in vtk's words."""

from __future__ import annotations

from toolkit.libvirt.connection import library
from toolkit.vm.provider import State, Status

NO_STATE, RUNNING, BLOCKED, PAUSED, SHUTDOWN, SHUTOFF, CRASHED, PMSUSPENDED = range(8)  # virDomainState

REASONS = {
    PAUSED: {
        2: "it is being migrated, or that was cut off",
        3: "it is being saved, or that was cut off",
        4: "it is being dumped",
        5: "its disk cannot be written: is the host's full?",
        6: "its watchdog fired",
        7: "it was restored from a snapshot",
        8: "it is shutting down",
        9: "a snapshot is being taken, or that was cut off",
        10: "its guest panicked",
        12: "migration has not ended well",
        13: "its QEMU could not go on (postcopy)",
    },
    SHUTOFF: {
        3: "its QEMU was killed or died",
        4: "it was migrated to another host",
        5: "it was saved: starting goes on from there",
        6: "it could not be started",
        7: "a snapshot of it when it was off was restored",
        8: "libvirt's daemon ended it",
    },
}
"""What is told of reasons that are not the usual ones."""

STATES = {
    NO_STATE: State.STARTING,
    RUNNING: State.RUNNING,
    BLOCKED: State.RUNNING,
    PAUSED: State.PAUSED,
    SHUTDOWN: State.RUNNING,
    SHUTOFF: State.STOPPED,
    CRASHED: State.CRASHED,
    PMSUSPENDED: State.PAUSED,
}


def status_of(state: int, reason: int) -> Status:
    """What virDomainGetState answered."""
    libvirt = library()
    detail = REASONS.get(state, {}).get(reason, "")
    if state == SHUTOFF and reason == libvirt.VIR_DOMAIN_SHUTOFF_CRASHED:
        return Status(State.CRASHED, detail=detail)
    if (state == CRASHED and reason == libvirt.VIR_DOMAIN_CRASHED_PANICKED) or (
        state == PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_CRASHED
    ):
        return Status(State.PANICKED, detail="its guest panicked")
    if state == PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_STARTING_UP:
        return Status(State.STARTING)
    if state == PMSUSPENDED:
        detail = "its guest has put it to sleep"
    elif state == SHUTDOWN:
        detail = "it is shutting down"
    return Status(STATES.get(state, State.PAUSED), detail=detail)
