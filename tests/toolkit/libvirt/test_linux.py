"""A Debian on libvirt, from its image to its end: started under emulation, reached by ssh, kept, restored, moved."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable

import pytest

from minivmm.errors import VtkError
from tests.toolkit.libvirt.daemon import Daemon
from toolkit.images.errors import ImageNotFound
from toolkit.images.store import ImageStore
from toolkit.libvirt.errors import LibvirtLost, LibvirtRefused
from toolkit.vm.directory import Machines
from toolkit.vm.errors import WrongState
from toolkit.vm.machine import Machine
from toolkit.vm.making import Parts, create
from toolkit.vm.provider import MIB, State
from toolkit.vm.ssh import execute
from toolkit.vm.waiting import wait

pytestmark = [pytest.mark.qemu, pytest.mark.slow]

BOOT_TIMEOUT = 900.0  # seconds; 72 on an idle machine under TCG
MEMORY = 768 * MIB


def run(machine: Machine, command: str) -> str:
    shown: list[bytes] = []
    status = execute(machine, command, stdout=shown.append, stderr=shown.append, wait_timeout=BOOT_TIMEOUT)
    assert status == 0, shown
    return b"".join(shown).decode().strip()


@pytest.fixture
def debian(mortal: Daemon, machines: Machines) -> Machine:
    try:
        ImageStore().get("debian")
    except ImageNotFound:
        pytest.skip("there is no image `debian` (try: vtk image build debian)")
    parts = Parts(image="debian", memory=MEMORY, cpus=2, accelerator="tcg", provider="libvirt", uri=mortal.uri)
    return Machine(create(machines, "d", parts))


def test_a_debian_lives_on_libvirt(debian: Machine, mortal: Daemon, neighbour: Daemon, machines: Machines) -> None:
    debian.start()
    wait(debian, "ssh", BOOT_TIMEOUT)
    run(debian, "echo before > state; sync")

    debian.snapshot("one")
    run(debian, "echo after > state; sync")
    debian.restore("one")
    assert run(debian, "cat state") == "before"
    debian.delete_snapshot("one")

    debian.balloon(MEMORY // 2)
    wait_until(lambda: debian.figures().balloon == MEMORY // 2)
    debian.balloon(MEMORY)
    wait_until(lambda: debian.figures().balloon == MEMORY)

    started = run(debian, "stat -c %Y /proc/1")
    debian.migrate(neighbour.uri)
    assert run(debian, "stat -c %Y /proc/1") == started
    debian.migrate(mortal.uri)

    # The daemon dies while it writes the memory to the disk: what the guest had synced is kept.
    failure: list[VtkError] = []

    def take() -> None:
        try:
            debian.snapshot("two")
        except VtkError as error:
            failure.append(error)

    taking = threading.Thread(target=take)
    taking.start()
    time.sleep(0.5)
    mortal.signal(signal.SIGKILL)
    taking.join(120.0)
    assert not failure or isinstance(failure[0], LibvirtLost)
    mortal.start()
    # libvirt had made it stand still for that; it gives up a machine whose QEMU is too busy to answer it again.
    with contextlib.suppress(WrongState, LibvirtRefused):
        debian.resume()
    if not debian.status().state.is_up:
        debian.start()
    assert run(debian, "cat state") == "before"

    debian.stop(300.0)
    assert debian.status().state is State.STOPPED
    debian.delete(machines)
    assert machines.names() == []


def wait_until(condition: Callable[[], bool], timeout: float = 120.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
