"""Each guest does what its first line says, on QEMU's microvm."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from guest_os import guests, image, write_disk
from tests.guest_os.machines import DEADLINE, RNG_ARGUMENTS, disk_arguments, qemu, run

pytestmark = pytest.mark.qemu

TCG_AND_KVM = pytest.mark.parametrize("accel", ["tcg", pytest.param("kvm", marks=pytest.mark.kvm)])
ENDED_BY_QEMU = 0  # pvpanic, or a reset with -no-reboot


@TCG_AND_KVM
def test_hello_says_hello_first_and_ends_well(accel: str) -> None:
    done = run(qemu(accel, image("hello"), append="one two=3"))
    lines = done.text.splitlines()
    assert lines[0].startswith("Hello from vtk")
    assert "boot protocol: pvh" in lines
    assert "command line: one two=3" in lines
    assert done.status == 1


@TCG_AND_KVM
def test_the_kernel_passes_its_own_checks(accel: str, tmp_path: Path) -> None:
    write_disk(tmp_path / "disk", 2 << 20)
    console = ("-device", "virtio-serial-device", "-device", "virtconsole,chardev=file")
    extra = (
        *disk_arguments(tmp_path / "disk", read_only=False),
        *RNG_ARGUMENTS,
        *("-chardev", f"file,id=file,path={tmp_path / 'console'}", *console),
    )
    done = run(qemu(accel, image("selftest"), extra=extra))
    assert [check for check in done.objects if check.get("ok") is False or "skipped" in check] == []
    assert done.objects[-1] == {"selftest": "passed", "failed": 0}
    assert len(done.objects) > 40
    assert done.status == 1
    assert (tmp_path / "console").read_text() == "selftest\n"


def test_the_kernel_compiled_by_gcc_passes_its_own_checks(gcc_images: dict[str, Path]) -> None:
    done = run(qemu("tcg", gcc_images["selftest"], extra=RNG_ARGUMENTS))
    assert done.objects[-1] == {"selftest": "passed", "failed": 0}


def test_a_read_only_disk_refuses_writes(tmp_path: Path) -> None:
    write_disk(tmp_path / "disk", 2 << 20)
    done = run(qemu("tcg", image("selftest"), extra=disk_arguments(tmp_path / "disk", read_only=True)))
    assert {"check": "virtio-blk: a read-only disk refuses a write", "ok": True} in done.objects
    assert done.objects[-1]["failed"] == 0


@TCG_AND_KVM
def test_a_panic_shows_the_registers_and_ends_the_machine(accel: str) -> None:
    done = run(qemu(accel, image("panic")))
    assert "panic: #PF page fault in kernel code" in done.text
    for register in ("rax", "r15", "rip", "rflags", "cr2 00007ead00000000", "cr3", "vector 14", "stack:"):
        assert register in done.text
    assert done.status == ENDED_BY_QEMU


@pytest.mark.parametrize("name", ["reset", "triplefault"])
@TCG_AND_KVM
def test_a_reset_ends_the_machine(accel: str, name: str) -> None:
    assert run(qemu(accel, image(name))).status == ENDED_BY_QEMU


@pytest.mark.parametrize(("append", "code"), [("code=7", 7), ("code=0x10", 16), ("", 0), ("code=x", 0), ("code=", 0)])
def test_the_exit_code_is_the_machines(append: str, code: int) -> None:
    assert run(qemu("tcg", image("exit"), append=append)).status == code << 1 | 1


@TCG_AND_KVM
def test_the_timer_ticks(accel: str) -> None:
    done = run(qemu(accel, image("timer"), append="ticks=5"))
    assert done.objects == [{"ticks": 5}]


@TCG_AND_KVM
def test_every_processor_comes_up(accel: str) -> None:
    done = run(qemu(accel, image("smp"), append="cpus=2", extra=("-smp", "2")))
    assert done.objects == [{"cpus": 2}]
    assert done.status == 1


def test_echo_repeats_lines_until_quit() -> None:
    with subprocess.Popen(
        qemu("tcg", image("echo")), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as guest:
        assert guest.stdout is not None
        assert guest.stdout.readline().startswith("echo:")  # what is sent before the UART is set up is lost
        output, _ = guest.communicate("one\ntwo words\nquit\n", timeout=DEADLINE)
    assert output.splitlines() == ["one", "two words"]
    assert guest.returncode == 1


def test_user_checks_pass() -> None:
    done = run(qemu("tcg", image("user")))
    assert done.objects
    assert all(check["ok"] for check in done.objects)
    assert done.status == 1


def test_drivers_use_every_device(tmp_path: Path) -> None:
    write_disk(tmp_path / "disk", 1 << 20)
    done = run(
        qemu("tcg", image("drivers"), extra=(*disk_arguments(tmp_path / "disk", read_only=True), *RNG_ARGUMENTS))
    )
    assert done.objects == [
        {"driver": "virtio-rng", "bytes": 16},
        {"driver": "virtio-blk", "size": 1 << 20, "read_only": True, "read": True},
        {"driver": "virtio-console", "written": 0},
    ]


@pytest.mark.parametrize(
    "device",
    [
        "",
        "512",
        "512@",
        "512@0xfeb00e00",
        "512@0xfeb00e00:",
        "512@0xfeb00e00:x",
        "x@0xfeb00e00:12",
        "1@0xfeb00e00:12",
        "512@0xfeb00e01:12",
        "512@0x1000:12",
        "512@0xffffffffffffff00:12",
        "512@0xfffffe01:12",
        "512@99999999999999999999:12",
        "512@0xfeb00e00:4294967308",
    ],
)
def test_a_malformed_device_is_reported_and_passed_over(device: str) -> None:
    done = run(qemu("tcg", image("drivers"), append=f"virtio_mmio.device={device}", extra=RNG_ARGUMENTS))
    assert f"virtio_mmio.device={device}: not understood" in done.text
    assert {"driver": "virtio-rng", "bytes": 16} in done.objects  # QEMU adds the real one after it
    assert done.status == 1


@pytest.mark.parametrize("append", ["x" * 2000, "a=" * 500, "= == ===", "virtio_mmio.device", "  hello  "])
def test_an_odd_command_line_does_no_harm(append: str) -> None:
    assert run(qemu("tcg", image("drivers"), append=append)).status == 1


def test_every_guest_has_a_line_that_describes_it() -> None:
    for guest in guests().values():
        assert guest.description.endswith((".", ":", ",")) or len(guest.description) > 20, guest.name
