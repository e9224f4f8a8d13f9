"""The guests on another processor: the same kernel and the same work, on QEMU's RISC-V board without firmware."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from guest_os import guests, image, native, write_disk
from tests.guest_os.machines import RNG_ARGUMENTS, disk_arguments, run, session
from tests.guest_os.test_workloads import NAMES

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        shutil.which("qemu-system-riscv64") is None,
        reason="qemu-system-riscv64 is not installed (try: apt-get install qemu-system-misc)",
    ),
]

CONSOLE_ARGUMENTS = (
    *("-chardev", "null,id=console", "-device", "virtio-serial-device", "-device", "virtconsole,chardev=console"),
)


def qemu(name: str, *extra: str, append: str = "", memory: int = 64) -> list[str]:
    """The command that runs a guest on the board, its console on standard input and output."""
    return [
        *("qemu-system-riscv64", "-M", "virt", "-bios", "none", "-m", str(memory), "-nodefaults", "-no-user-config"),
        *("-no-reboot", "-display", "none", "-serial", "stdio", "-global", "virtio-mmio.force-legacy=false"),
        *("-kernel", str(image(name, "riscv64")), "-append", append, *extra),
    ]


def test_every_guest_that_needs_no_x86_has_an_image() -> None:
    without = {guest.name for guest in guests().values() if "riscv64" not in guest.platforms}
    assert without == {
        *("smp", "triplefault"),
        *(guest.name for guest in guests().values() if guest.platforms == ("xen",)),
    }


def test_hello_finds_memory_and_command_line_in_the_device_tree() -> None:
    done = run(qemu("hello", append="one two=3", memory=32))
    lines = done.text.splitlines()
    assert lines[0].startswith("Hello from vtk")
    assert lines[1:3] == ["boot protocol: devicetree", "memory: 32768 KiB in 1 ranges"]
    assert lines[3].startswith("command line: one two=3 virtio_mmio.device=0x1000@0x1000")
    assert done.status == 0


def test_the_kernel_passes_its_own_checks(tmp_path: Path) -> None:
    write_disk(tmp_path / "disk.img", 3 << 20)
    disk = disk_arguments(tmp_path / "disk.img", read_only=False)
    done = run(qemu("selftest", *disk, *RNG_ARGUMENTS, *CONSOLE_ARGUMENTS))
    assert '"ok":false' not in done.text, done.text
    assert "skipped" not in done.text
    assert done.objects[-1] == {"selftest": "passed", "failed": 0}
    assert done.status == 0


@pytest.mark.parametrize(
    ("name", "append", "status"),
    [("exit", "code=5", 5), ("panic", "", 0x7F), ("timer", "ticks=3", 0), ("reset", "", 0)],
)
def test_the_exit_code_is_that_of_the_machine(name: str, append: str, status: int) -> None:
    assert run(qemu(name, append=append)).status == status


def test_a_page_fault_in_the_kernel_is_told_with_its_address() -> None:
    done = run(qemu("wild", append="at=0x1000"))
    assert done.status == 0x7F
    assert "at=1000 is beyond what the kernel maps" in done.text


def test_every_workload_has_the_checksum_of_the_native_program(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    write_disk(disk, 3 << 20)
    found: list[dict[str, str]] = []
    for command in (
        [str(native()), "--disk", str(disk)],
        qemu("bench", *disk_arguments(disk, read_only=True), memory=128),
    ):
        with session(command) as place:
            ends = {name: place.run(name, 2) for name in NAMES}
            found.append({name: str(end.get("checksum") or end["error"]) for name, end in ends.items()})
            place.quit()
    in_process, on_riscv = found
    only_kernels = {name for name in NAMES if in_process[name].startswith("unsupported: a process")}
    assert only_kernels == {"cr", "portin", "mmio"}
    assert on_riscv["portin"] == "unsupported: RISC-V has no I/O ports"
    assert {name: on_riscv[name] for name in NAMES if name not in only_kernels} == {
        name: in_process[name] for name in NAMES if name not in only_kernels
    }
