"""A paused machine does nothing, a reset one begins anew, and an ended one stays ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guest_os import image
from minivmm import Machine, XenMachine
from minivmm.control.controlled import Controlled, RunState
from minivmm.errors import ConfigError
from minivmm.outcome import Outcome, RunResult
from tests.minivmm.control.conftest import PATIENCE, Serve
from tests.minivmm.images import print_text, write_elf
from tests.toolkit.guests import CODES

pytestmark = pytest.mark.kvm

COUNTER = 0x200000
COUNT = b"\xff\x04\x25" + COUNTER.to_bytes(4, "little") + b"\xeb\xf7"  # again: inc dword [COUNTER]; jmp again
START = b"\xfe\x04\x25" + COUNTER.to_bytes(4, "little")  # inc byte [COUNTER]


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[Machine]:
    with Machine(write_elf(tmp_path, COUNT), cpus=1, memory=16 << 20) as machine:
        yield machine


def goes_on(machine: Machine, seen: int) -> bool:
    """Whether the guest counts on, within PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if machine.memory.read_u32(COUNTER) != seen:
            return True
    return False


def test_a_paused_machine_makes_no_step_until_it_is_resumed(counting: Machine) -> None:
    counting.start()
    for _ in range(20):
        assert goes_on(counting, counting.memory.read_u32(COUNTER))
        counting.pause()
        stands_at = counting.memory.read_u32(COUNTER)
        assert {counting.memory.read_u32(COUNTER) for _ in range(1000)} == {stands_at}
        counting.resume()
        assert goes_on(counting, stands_at)


def test_a_machine_paused_before_its_start_has_not_begun(counting: Machine) -> None:
    counting.pause()
    counting.start()
    counting.pause()  # returns when the vCPU stands
    assert counting.memory.read_u32(COUNTER) == 0
    counting.resume()
    assert goes_on(counting, 0)


def test_a_paused_machine_can_be_ended_and_its_deadline_still_comes(counting: Machine) -> None:
    counting.start(timeout=0.3)
    counting.pause()
    assert counting.wait().outcome is Outcome.DEADLINE


def test_a_paused_machine_stops_when_told(counting: Machine) -> None:
    counting.start()
    counting.pause()
    counting.stop()
    assert counting.wait().outcome is Outcome.INTERRUPTED


def test_a_machine_whose_guest_is_held_in_hlt_pauses_too(tmp_path: Path) -> None:
    with Machine(write_elf(tmp_path, b"\xfb\xf4\xeb\xfd"), memory=16 << 20) as machine:  # sti; again: hlt; jmp again
        machine.start()
        machine.pause()
        machine.resume()
        machine.stop()
        assert machine.wait().outcome is Outcome.INTERRUPTED


def test_a_guest_that_resets_begins_anew_with_fresh_memory(tmp_path: Path) -> None:
    told: list[str] = []
    shown = bytearray()
    # Counts its starts in memory that a reset clears, and resets: a second start would be seen as a 2.
    code = START + b"\x8a\x04\x25" + COUNTER.to_bytes(4, "little")  # mov al, [COUNTER]
    code += b"\x04\x30\x66\xba\xf8\x03\xee" + CODES["reset"]  # add al, '0'; mov dx, 0x3f8; out dx, al
    guest = write_elf(tmp_path, code)

    with Controlled("m", lambda: Machine(guest, memory=16 << 20, console=shown.extend)) as machine:

        def tell(event: str, _data: dict[str, Any]) -> None:
            told.append(event)
            if len(told) == 3:
                machine.quit("host-signal", "enough")

        machine.announce = tell
        assert machine.run().outcome is Outcome.INTERRUPTED
    assert told == ["RESET", "RESET", "RESET", "SHUTDOWN"]
    assert set(shown) == {ord("1")}


def test_a_guest_that_resets_in_the_moment_it_is_ended_was_ended(tmp_path: Path) -> None:
    class LateMachine(Machine):
        """Told to end when the guest has just reset by itself."""

        def wait(self) -> RunResult:
            result = super().wait()
            controlled.quit("host-qmp-quit", "enough")
            return result

    guest = write_elf(tmp_path, CODES["reset"])
    with Controlled("m", lambda: LateMachine(guest, memory=16 << 20)) as controlled:
        result = controlled.run()
    assert (result.outcome, result.detail) == (Outcome.INTERRUPTED, "enough")


def test_a_reset_from_outside_starts_the_kernel_again(serve: Serve, tmp_path: Path) -> None:
    shown = bytearray()
    guest = write_elf(tmp_path, CODES["echo"], "echo.elf")
    served = serve(make=lambda: Machine(guest, memory=16 << 20, console=shown.extend))
    speaker = served.connect().negotiate()
    until(lambda: shown == b"ready\n")
    speaker.ask("system_reset")
    assert speaker.read()["data"]["reason"] == "host-qmp-system-reset"
    until(lambda: shown == b"ready\n" * 2)
    served.machine.send(b"q")
    assert served.wait().outcome is Outcome.SHUTDOWN


def test_a_machine_that_cannot_be_made_anew_ends_with_the_reason(tmp_path: Path) -> None:
    guest = write_elf(tmp_path, print_text(b"once") + CODES["reset"])

    def make() -> Machine:
        machine = Machine(guest, memory=16 << 20)
        guest.unlink()
        return machine

    with Controlled("m", make) as machine:
        result = machine.run()
    assert result.outcome is Outcome.HOST_ERROR
    assert "could not be reset" in result.detail
    assert machine.state is RunState.SHUTDOWN


def test_a_domain_pauses_resumes_and_is_asked_to_power_off() -> None:
    shown = bytearray()
    with XenMachine(image("echo", "xen"), console=shown.extend) as machine:
        machine.start()
        until(lambda: b"quit ends" in shown)
        machine.pause()
        said = bytes(shown)
        machine.send(b"hello\n")
        assert not any(vcpu.inside for vcpu in machine.domain.vcpus)
        assert shown == said
        machine.resume()
        until(lambda: b"hello" in shown)
        with pytest.raises(ConfigError, match="does not listen"):
            machine.press_power_button()
        control = f"/local/domain/{machine.domain.domid}/control"
        store = machine.hypervisor.core.store.tools
        with machine.hypervisor.core.lock:
            store.write(f"{control}/feature-poweroff", b"1")
        machine.press_power_button()
        with machine.hypervisor.core.lock:
            assert store.read(f"{control}/shutdown") == b"poweroff"
        machine.balloon(32 << 20)
        with machine.hypervisor.core.lock:
            assert store.read(f"/local/domain/{machine.domain.domid}/memory/target") == b"32768"
        assert machine.balloon_size() == 64 << 20  # this kernel has no balloon, and keeps what it has
        assert len(machine.vcpu_stats()) == len(machine.vcpu_threads()) == 1
        assert Path(f"/proc/self/task/{machine.vcpu_threads()[0]}").exists()


def until(holds: Any) -> None:
    """Waits for what is bound to come."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)
