"""The guests of guest_os on the RISC-V machine: a kernel with Sv39, user programs, timer and virtio drivers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import guest_os
from minivmm.emulator.machine import RiscvMachine
from minivmm.outcome import Outcome
from minivmm.virtio.block import Disk


def test_the_kernel_finds_its_devices_in_the_device_tree() -> None:
    with RiscvMachine(guest_os.image("hello", "riscv64")) as machine:
        result = machine.run(timeout=60)
    assert result.outcome is Outcome.SHUTDOWN, result.detail
    assert b"virtio_mmio.device=0x1000@0x10001000:1" in result.console


def test_user_programs_run_fault_and_are_recovered_from() -> None:
    with RiscvMachine(guest_os.image("user", "riscv64")) as machine:
        result = machine.run(timeout=60)
    checks = [json.loads(line) for line in result.console.splitlines() if line.startswith(b"{")]
    assert result.outcome is Outcome.SHUTDOWN, result.detail
    assert len(checks) > 5
    assert all(check["ok"] for check in checks)


@pytest.mark.parametrize(
    ("name", "outcome"), [("halt", Outcome.HALTED), ("reset", Outcome.RESET), ("panic", Outcome.EXITED)]
)
def test_guests_end_as_they_do_elsewhere(name: str, outcome: Outcome) -> None:
    with RiscvMachine(guest_os.image(name, "riscv64")) as machine:
        assert machine.run(timeout=60).outcome is outcome


def test_its_drivers_drive_every_virtio_device(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    image = guest_os.image("drivers", "riscv64")
    with RiscvMachine(image, disks=[Disk(disk)], virtio_console=True, rng=True) as machine:
        result = machine.run(timeout=60)
        faults = [fault for transport in machine.transports for fault in transport.faults]
    assert (result.outcome, faults) == (Outcome.SHUTDOWN, []), result.detail
    assert b'{"driver":"virtio-blk","size":1048576,"read_only":false,"read":true}' in result.console
    assert b"through virtio-console" in result.console


def test_a_flood_over_a_mapped_device_walks_the_tables_once_for_it() -> None:
    with RiscvMachine(guest_os.image("flood", "riscv64")) as machine:
        machine._sink = lambda _: machine.stop("enough") if machine.figures.instructions > 50_000 else None
        result = machine.run(timeout=60)
    assert result.outcome is Outcome.INTERRUPTED
    assert result.exits["walks"] < 500
    assert len(result.console) > 1000
