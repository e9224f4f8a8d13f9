"""The balloon: what the guest gives goes back to the host, and a guest that cannot give is told of."""

from __future__ import annotations

import subprocess
import sys

import pytest

from minivmm.errors import ConfigError
from tests.toolkit.vm.conftest import MakeMachine
from toolkit.cli import ExitStatus, invoke
from toolkit.vm.errors import WrongState
from toolkit.vm.machine import Machine
from toolkit.vm.provider import MIB

pytestmark = pytest.mark.qemu


def test_a_guest_without_a_driver_is_told(make: MakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    machine = make()
    machine.start()
    with pytest.raises(WrongState, match=r"(?s)nothing in machine 'a' hears its balloon.*virtio_balloon"):
        machine.balloon(16 * MIB)
    assert invoke(["vm", "balloon", "a", "16M"]) == ExitStatus.USAGE
    assert "hears" in capsys.readouterr().err


@pytest.mark.parametrize("size", [0, 64 * MIB])
def test_a_size_that_cannot_be_is_refused(make: MakeMachine, size: int) -> None:
    machine = make()
    machine.start()
    with pytest.raises(ConfigError, match="cannot make do with"):
        machine.balloon(size)


def test_a_stopped_machine_has_no_balloon(make: MakeMachine) -> None:
    with pytest.raises(WrongState, match="is stopped"):
        make().balloon(MIB)


@pytest.mark.slow
def test_what_a_linux_gives_goes_back_to_the_host_and_returns(debian: Machine) -> None:
    def vtk(*arguments: str) -> str:
        line = [sys.executable, "-m", "toolkit.cli", "vm", *arguments]
        return subprocess.run(line, capture_output=True, text=True, timeout=180, check=True).stdout

    def resident() -> int:
        found = debian.figures().resident
        assert found is not None
        return found

    # A file in the guest's RAM. Freed, its pages go back by free page reporting or with the balloon.
    vtk("exec", "d", "--", "sh", "-c", "dd if=/dev/urandom of=/dev/shm/x bs=1M count=100 2>/dev/null")
    before = resident()
    vtk("exec", "d", "--", "rm", "/dev/shm/x")
    vtk("balloon", "d", "288M", "--wait", "--timeout", "120")
    assert before - resident() > 64 * MIB
    assert debian.figures().balloon == 288 * MIB
    vtk("balloon", "d", "512M", "--wait", "--timeout", "120")
    assert int(vtk("exec", "d", "--", "awk", "/MemTotal/ { print $2 }", "/proc/meminfo")) > 400 << 10
