"""The guests on our own hypervisor, entered both ways: one file, one behaviour."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guest_os import image, native, write_disk
from minivmm import Boot, Disk, Machine, Outcome
from tests.guest_os.machines import session

pytestmark = pytest.mark.kvm

DEADLINE = 60.0  # seconds; nothing here needs it, a loaded machine may
ENTRIES = pytest.mark.parametrize("boot", [Boot.PVH, Boot.LINUX64], ids=["pvh", "linux64"])


@pytest.mark.svm_smoke
@ENTRIES
def test_hello_tells_how_it_was_entered(boot: Boot) -> None:
    with Machine(image("hello"), boot=boot, cmdline="one two=3") as machine:
        result = machine.run(timeout=DEADLINE)
    lines = result.console.decode().splitlines()
    assert result.outcome is Outcome.SHUTDOWN
    assert f"boot protocol: {boot.value}" in lines
    assert "command line: one two=3" in lines


@pytest.mark.svm_smoke
@ENTRIES
def test_the_kernel_passes_its_own_checks(boot: Boot, tmp_path: Path) -> None:
    write_disk(tmp_path / "disk", 2 << 20)
    with Machine(
        image("selftest"), boot=boot, disks=[Disk(tmp_path / "disk")], rng=True, virtio_console=True
    ) as machine:
        result = machine.run(timeout=DEADLINE)
    text = result.console.decode()
    assert '"ok":false' not in text
    assert "skipped" not in text
    assert '{"selftest":"passed","failed":0}' in text, result


@pytest.mark.svm_smoke
@ENTRIES
def test_every_processor_comes_up(boot: Boot) -> None:
    with Machine(image("smp"), boot=boot, cpus=2, cmdline="cpus=2") as machine:
        result = machine.run(timeout=DEADLINE)
    assert result.console == b'{"cpus":2}\n'


@pytest.mark.svm_smoke
def test_every_workload_computes_what_it_computes_as_an_ordinary_process(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    write_disk(disk, 2 << 20)
    with session([str(native()), "--disk", str(disk)]) as process:
        names = process.ready["workloads"]
        expected = {name: process.run(name, 1).get("checksum") for name in names}
        process.quit()
    assert [name for name in names if expected[name] is None] == ["cr", "portin", "mmio"]  # a process has none
    with Machine(image("bench"), disks=[Disk(disk, read_only=True)]) as machine:
        machine.start(timeout=4 * DEADLINE)
        machine.send("".join(f"run {name} 1\n" for name in names).encode() + b"quit\n")
        result = machine.wait()
    assert result.outcome is Outcome.SHUTDOWN
    ends = [json.loads(line) for line in result.console.splitlines() if line.startswith(b'{"end"')]
    assert [end["end"] for end in ends] == names
    assert {end["end"]: end["checksum"] for end in ends if expected[end["end"]] is not None} == {
        name: checksum for name, checksum in expected.items() if checksum is not None
    }


@pytest.mark.svm_smoke
@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("panic", Outcome.CRASHED),
        ("reset", Outcome.RESET),
        ("triplefault", Outcome.TRIPLE_FAULT),
        ("halt", Outcome.HALTED),
        ("wild", Outcome.SHUTDOWN),
    ],
)
def test_each_way_to_end_is_its_own_outcome(name: str, outcome: Outcome) -> None:
    with Machine(image(name)) as machine:
        assert machine.run(timeout=DEADLINE).outcome is outcome


@pytest.mark.parametrize(("name", "cmdline"), [("spin", ""), ("spin", "user=1"), ("flood", "")])
def test_a_guest_that_never_ends_meets_the_deadline(name: str, cmdline: str) -> None:
    with Machine(image(name), cmdline=cmdline) as machine:
        assert machine.run(timeout=0.5).outcome is Outcome.DEADLINE
