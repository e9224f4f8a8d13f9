"""QEMU's RISC-V board by the verbs of every machine, with the outcomes of minivmm's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from guest_os import image, write_disk
from minivmm import Disk, RiscvMachine
from minivmm.errors import ImageError
from minivmm.outcome import Outcome
from toolkit.qemu import QemuMachine
from toolkit.qemu.virt import Virt

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-system-riscv64") is None, reason="qemu-system-riscv64 (try: sudo apt install qemu-system-misc)"
)


@pytest.mark.parametrize(
    ("name", "cmdline", "outcome", "code"),
    [
        ("hello", "", Outcome.SHUTDOWN, 0),
        ("exit", "code=6", Outcome.EXITED, 6),
        ("exit", "code=7", Outcome.EXITED, 7),
    ],
)
def test_a_guest_ends_there_as_it_does_on_minivmm(name: str, cmdline: str, outcome: Outcome, code: int) -> None:
    file = image(name, "riscv64")

    with QemuMachine.shaped(Virt(file, cmdline=cmdline)) as machine:
        theirs = machine.run(timeout=60)
    with RiscvMachine(file, cmdline=cmdline) as ours_machine:
        ours = ours_machine.run(timeout=60)

    assert (theirs.outcome, theirs.code) == (outcome, code), theirs.detail
    assert (ours.outcome, ours.code) == (outcome, code), ours.detail
    assert theirs.console.splitlines()[:1] == ours.console.splitlines()[:1]


def test_a_deadline_ends_it() -> None:
    with QemuMachine.shaped(Virt(image("spin", "riscv64"))) as machine:
        assert machine.run(timeout=1).outcome is Outcome.DEADLINE


def test_disks_are_in_the_order_given_as_on_minivmm(tmp_path: Path) -> None:
    for number in range(2):
        write_disk(tmp_path / f"disk{number}", (1 + number) << 20)
    disks = [Disk(tmp_path / f"disk{number}", read_only=True) for number in range(2)]

    with QemuMachine.shaped(Virt(image("drivers", "riscv64"), disks=disks)) as machine:
        theirs = machine.run(timeout=60).console.splitlines()
    with RiscvMachine(image("drivers", "riscv64"), disks=disks) as ours_machine:
        ours = ours_machine.run(timeout=60).console.splitlines()

    assert [line for line in theirs if b"virtio-blk" in line] == [line for line in ours if b"virtio-blk" in line]
    assert any(b'"size":1048576' in line.replace(b" ", b"") for line in theirs)


def test_a_disk_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="disk"):
        QemuMachine.shaped(Virt(image("hello", "riscv64"), disks=[Disk(tmp_path, read_only=True)]))
