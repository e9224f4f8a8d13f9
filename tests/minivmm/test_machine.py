"""A machine's life on real KVM: every way it can end, and nothing left of it afterwards."""

from __future__ import annotations

import os
import signal
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from minivmm import Disk, Machine, Outcome
from minivmm.errors import ConfigError, ImageError, KvmError, KvmMissing
from minivmm.exits import ExitRecord, MmioAccess, PortAccess
from minivmm.kvm.closing import wait_until_closed
from minivmm.kvm.system import Kvm
from tests.minivmm.images import CLI, HLT, SPIN, elf64, exit_with, print_text, write_elf

pytestmark = pytest.mark.kvm

UD2 = b"\x0f\x0b"
OUT_PORT = b"\x66\xba"  # mov dx, imm16; then out dx, al = ee


def out(port: int, value: int) -> bytes:
    return b"\xb0" + bytes([value]) + OUT_PORT + struct.pack("<H", port) + b"\xee"


Write = Callable[[bytes], Path]


@pytest.fixture
def guest(tmp_path: Path) -> Write:
    """Makes a guest of a few bytes of code."""
    return lambda code: write_elf(tmp_path, code)


@pytest.mark.svm_smoke
@pytest.mark.parametrize(
    ("code", "outcome", "status"),
    [
        pytest.param(exit_with(0), Outcome.SHUTDOWN, 0, id="exit 0"),
        pytest.param(exit_with(7), Outcome.EXITED, 7, id="exit 7"),
        pytest.param(exit_with(255), Outcome.EXITED, 19, id="exit 255"),
        pytest.param(out(0x64, 0xFE), Outcome.RESET, 21, id="reset"),
        pytest.param(out(0x505, 1), Outcome.CRASHED, 22, id="panic"),
        pytest.param(UD2, Outcome.TRIPLE_FAULT, 23, id="triple fault"),
        pytest.param(CLI + HLT, Outcome.HALTED, 20, id="cli hlt"),
    ],
)
def test_every_way_a_guest_ends_itself_is_its_own_outcome(
    guest: Write, code: bytes, outcome: Outcome, status: int
) -> None:
    with Machine(guest(code)) as machine:
        result = machine.run(timeout=60)
    assert result.outcome is outcome
    assert result.exit_status == status


@pytest.mark.svm_smoke
def test_the_console_arrives_byte_for_byte_and_exits_are_counted(guest: Write) -> None:
    seen: list[bytes] = []
    with Machine(guest(print_text(b"hello\n") + exit_with(0)), console=seen.append) as machine:
        result = machine.run(timeout=60)
    assert result.console == b"hello\n" == b"".join(seen)
    assert result.exits == {"io": 7}


@pytest.mark.svm_smoke
def test_an_observer_sees_every_exit_with_its_data(guest: Write) -> None:
    seen: list[ExitRecord] = []
    # in al, 0x3fd; then mov eax, 0xfeb00000; mov [rax], al; then exit 3
    code = b"\x66\xba\xfd\x03\xec" + b"\xb8\0\0\xb0\xfe\x88\x00" + exit_with(3)
    with Machine(guest(code), on_exit=seen.append) as machine:
        result = machine.run(timeout=60)
    assert seen == [
        PortAccess(0, 0x3FD, 1, False, b"\x60"),
        MmioAccess(0, 0xFEB00000, 1, True, 0),
        PortAccess(0, 0xF4, 1, True, b"\x03"),
    ]
    assert result.exits == {"io": 2, "mmio": 1}
    assert result.code == 3


def test_the_deadline_ends_a_guest_that_never_does_and_shows_where_it_was(guest: Write) -> None:
    with Machine(guest(SPIN)) as machine:
        result = machine.run(timeout=0.2)
    assert result.outcome is Outcome.DEADLINE
    assert result.registers["rip"] == 0x100000


def test_a_flood_of_output_is_kept_within_bounds(guest: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 4096
    monkeypatch.setattr("minivmm.life.CONSOLE_LIMIT", limit)
    # mov edx, 0x3f8; mov esi, 0x100000; again: mov ecx, 0x400; rep outsb; jmp mov esi
    flood = b"\xba\xf8\x03\0\0" + b"\xbe\0\0\x10\0\xb9\0\4\0\0\xf3\x6e\xeb\xf2"
    total = 0

    def count(data: bytes) -> None:
        nonlocal total
        total += len(data)
        if total > 3 * limit:
            machine.stop("enough")

    with Machine(guest(flood), console=count) as machine:
        result = machine.run(timeout=60)
    assert result.outcome is Outcome.INTERRUPTED
    assert len(result.console) == limit


def test_stop_from_another_thread_ends_the_run(guest: Write) -> None:
    with Machine(guest(SPIN)) as machine:
        machine.start(timeout=60)
        threading.Thread(target=machine.stop).start()
        assert machine.wait().outcome is Outcome.INTERRUPTED


def test_ctrl_c_in_the_waiting_thread_is_an_outcome_and_not_an_exception(guest: Write) -> None:
    def interrupt(data: bytes) -> None:  # noqa: ARG001
        os.kill(os.getpid(), signal.SIGINT)

    with Machine(guest(print_text(b".") + SPIN), console=interrupt) as machine:
        assert machine.run(timeout=60).outcome is Outcome.INTERRUPTED


def test_closing_a_running_machine_ends_it(guest: Write) -> None:
    machine = Machine(guest(SPIN))
    machine.start(timeout=60)
    machine.close()
    assert not machine.processors[0].is_alive()
    machine.close()


@pytest.mark.parametrize(
    "error", [RuntimeError("no room"), BrokenPipeError(32, "no room"), InterruptedError(4, "no room")]
)
def test_a_console_callback_that_raises_ends_the_run_as_a_host_error(guest: Write, error: Exception) -> None:
    def refuse(data: bytes) -> None:  # noqa: ARG001
        raise error

    with Machine(guest(print_text(b"x") + SPIN), console=refuse) as machine:
        result = machine.run(timeout=60)
    assert result.outcome is Outcome.HOST_ERROR
    assert type(error).__name__ in result.detail
    assert "no room" in result.detail


@pytest.mark.svm_smoke
def test_what_is_sent_reaches_the_guests_serial_port(guest: Write) -> None:
    # mov dx, 0x3fd; wait: in al, dx; test al, 1; jz wait; mov dx, 0x3f8; in al, dx; out dx, al; then exit 0
    echo = b"\x66\xba\xfd\x03" + b"\xec\xa8\x01\x74\xfb" + b"\x66\xba\xf8\x03\xec\xee"
    with Machine(guest(echo + echo + exit_with(0))) as machine:
        machine.start(timeout=60)
        machine.send(b"ok")
        result = machine.wait()
    assert (result.outcome, result.console) == (Outcome.SHUTDOWN, b"ok")


def test_a_store_outside_memory_reaches_nobody_and_harms_nobody(guest: Write) -> None:
    # mov eax, 0xd0000000; mov [rax], eax; mov ecx, [rax]; cmp ecx, -1; jne spin; exit 0
    code = b"\xb8\0\0\0\xd0\x89\x00\x8b\x08\x83\xf9\xff\x75\xfe" + exit_with(0)
    with Machine(guest(code), memory=16 << 20) as machine:
        assert machine.run(timeout=60).outcome is Outcome.SHUTDOWN
        assert machine.bus.unclaimed == {"write 0xd0000000": 1, "read 0xd0000000": 1}


def test_a_wild_jump_is_a_typed_outcome(guest: Write) -> None:
    with Machine(guest(b"\xb8\0\0\0\xd0\xff\xe0"), memory=16 << 20) as machine:  # mov eax, 0xd0000000; jmp rax
        outcome = machine.run(timeout=60).outcome
    assert outcome in (Outcome.TRIPLE_FAULT, Outcome.INTERNAL_ERROR)


def test_no_interrupt_controller_means_hlt_is_the_end(guest: Write) -> None:
    with Machine(guest(HLT), irqchip=False) as machine:
        assert machine.run(timeout=60).outcome is Outcome.HALTED


@pytest.mark.svm_smoke
def test_a_second_cpu_started_by_the_first_runs_at_the_same_time(tmp_path: Path) -> None:
    # The AP: real mode at 0x9000, cs:ip 0900:0000. It sets the byte at 0x8000 and halts.
    trampoline = b"\x31\xc0\x8e\xd8\xc6\x06\x00\x80\x01\xfa\xf4"  # xor ax,ax; mov ds,ax; mov byte [8000h],1; cli; hlt
    copy = b"".join(
        b"\xc6\x04\x25" + struct.pack("<I", 0x60000 + index) + bytes([byte]) for index, byte in enumerate(trampoline)
    )
    icr = b"".join(
        b"\xb8" + struct.pack("<I", 0xFEE00300) + b"\xc7\x00" + struct.pack("<I", command)
        for command in (0x000C4500, 0x000C4660)  # INIT, then SIPI to page 0x60, to all but self
    )
    wait = b"\x80\x3c\x25\x00\x80\x00\x00\x01\x75\xf6"  # wait: cmp byte [8000h], 1; jne wait
    path = write_elf(tmp_path, copy + icr + wait + exit_with(0))
    with Machine(path, cpus=2) as machine:
        result = machine.run(timeout=60)
    assert result.outcome is Outcome.SHUTDOWN, result


def test_machines_leave_no_descriptor_thread_or_memory_behind(guest: Write, tmp_path: Path) -> None:
    from benchmarks.life_cycle import open_fds, resident_kib

    path = guest(exit_with(0))
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))

    def cycle(notify: str) -> None:
        with Machine(path, memory=16 << 20, disks=[Disk(disk)], rng=True, notify=notify) as machine:
            assert machine.run(timeout=60).outcome is Outcome.SHUTDOWN

    for notify in ("inline", "ioeventfd"):
        for _ in range(40):  # threads, arenas and caches find their size
            cycle(notify)
        wait_until_closed()
        fds, resident = open_fds(), resident_kib()
        for _ in range(150):
            cycle(notify)
        wait_until_closed()
        assert open_fds() == fds
        assert resident_kib() - resident < 1800  # less than one kvm_run (12 KiB) a machine
    assert [thread for thread in threading.enumerate() if thread.name.startswith(("vcpu", "virtio", "closing"))] == []


def test_a_machine_that_cannot_be_built_leaves_no_descriptor(tmp_path: Path, guest: Write) -> None:
    from benchmarks.life_cycle import open_fds

    wait_until_closed()
    before = open_fds()
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(512))
    with pytest.raises(ImageError):
        Machine(tmp_path / "missing", disks=[Disk(disk)])
    with pytest.raises(ImageError):
        Machine(guest(HLT), disks=[Disk(disk), Disk(tmp_path / "missing")])
    with pytest.raises(ConfigError):
        Machine(guest(HLT), memory=12345)
    with pytest.raises(ConfigError):
        Machine(guest(HLT), cpus=0)
    with pytest.raises(ConfigError):
        Machine(guest(HLT), cpus=1000)
    with pytest.raises(ConfigError):
        Machine(guest(HLT), disks=[Disk(disk, read_only=True)] * 9)
    with pytest.raises(ConfigError):
        Machine(guest(HLT), disks=[Disk(disk)], notify="telepathy")
    wait_until_closed()
    assert open_fds() == before


@pytest.mark.svm_smoke
def test_kernel_counters_are_readable_while_the_guest_sleeps(guest: Write) -> None:
    halted = threading.Event()
    # out 0x3f8, then sti; again: hlt; jmp again
    code = print_text(b"z") + b"\xfb\xf4\xeb\xfd"
    with Machine(guest(code), console=lambda _: halted.set()) as machine:
        machine.start(timeout=60)
        assert halted.wait(60)
        for _ in range(3):
            counters = machine.kernel_stats()
            assert counters == {} or counters["exits"] >= 1
        machine.stop()
        assert machine.wait().outcome is Outcome.INTERRUPTED


def test_a_machine_runs_once(guest: Write) -> None:
    with Machine(guest(exit_with(0))) as machine:
        first = machine.run(timeout=60)
        assert machine.wait() is first
        with pytest.raises(ConfigError, match="has run already"):
            machine.run(timeout=60)


def test_memory_beyond_the_hole_is_there(tmp_path: Path) -> None:
    # mov rax, 0x100000000; needs a mapping of its own: the identity map ends at 4 GiB, so #PF ends it
    code = b"\x48\xb8\0\0\0\0\1\0\0\0\x88\x00" + exit_with(0)
    path = tmp_path / "guest"
    path.write_bytes(elf64(code))
    with Machine(path, memory=(3 << 30) + (16 << 20)) as machine:
        assert len(machine.memory.regions) == 2
        assert machine.run(timeout=60).outcome is Outcome.TRIPLE_FAULT


def test_a_missing_device_node_says_so_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(KvmMissing) as caught:
        Kvm(str(tmp_path / "kvm"))
    assert caught.value.remedy


def test_a_file_that_is_not_kvm_is_told_from_kvm() -> None:
    with pytest.raises(KvmError, match="KVM_GET_API_VERSION on /dev/null failed: ENOTTY"):
        Kvm("/dev/null")
