"""The guests on Xen itself, as its first domain, in an emulated machine: nobody's hypercalls but Xen's own."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest

from guest_os import image
from tests.guest_os.machines import DEADLINE
from toolkit.images import debian_package

pytestmark = pytest.mark.qemu

MEMORY_MIB = 64
ENDED = "Hardware Dom0"
"""What Xen begins to say when its first domain is gone; then it halts, which does not end an emulated machine."""


@pytest.fixture(scope="module")
def xen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's hypervisor, as the ELF file that QEMU loads (Multiboot)."""
    try:
        package = debian_package.depends("xen-system-amd64", r"xen-hypervisor-[\d.]+-amd64")
        (packed,) = (debian_package.unpacked(package) / "boot").glob("xen-*.gz")
    except debian_package.PackageMissing as error:
        pytest.skip(f"Debian's Xen cannot be had: {error}")
    path = tmp_path_factory.mktemp("xen") / "xen"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    return path


def run(xen: Path, name: str, cmdline: str = "", *, cpus: int = 1) -> tuple[list[str], str]:
    """The lines that the guest wrote, and how Xen says that it ended."""
    options = f"console=com1 com1=115200,8n1 dom0_mem={MEMORY_MIB}M noreboot=1"
    command = [
        *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "256", "-smp", str(cpus)),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-kernel", str(xen), "-append", options, "-initrd", f"{image(name, 'xen')} {cmdline}"),
    ]
    lines: list[str] = []
    with subprocess.Popen(["timeout", str(DEADLINE), *command], stdout=subprocess.PIPE, text=True) as machine:
        try:
            assert machine.stdout is not None
            for line in machine.stdout:
                line = line.rstrip()
                if line.startswith(f"(XEN) {ENDED}"):
                    return lines, line
                if "(XEN)" not in line:
                    lines.append(line)
        finally:
            machine.terminate()
    raise AssertionError(f"no end within {DEADLINE} s: {lines[-20:]}")


def test_hello_is_a_domain_of_xen(xen: Path) -> None:
    lines, end = run(xen, "hello", "one two=3")
    assert lines[-4].startswith("Hello from vtk")
    assert lines[-3:] == [
        "boot protocol: xen-pv",
        f"memory: {MEMORY_MIB << 10} KiB in 1 ranges",
        "command line: one two=3",
    ]
    assert end.endswith("halting machine")


def test_the_kernel_passes_its_own_checks(xen: Path) -> None:
    lines, _ = run(xen, "selftest")
    assert not [line for line in lines if '"ok":false' in line]
    assert lines[-1] == '{"selftest":"passed","failed":0}'


def test_every_processor_comes_up(xen: Path) -> None:
    assert run(xen, "smp", "cpus=2", cpus=2)[0][-1] == '{"cpus":2}'


@pytest.mark.parametrize(
    ("name", "ended"), [("panic", "noreboot"), ("triplefault", "noreboot"), ("reset", "rebooting")]
)
def test_xen_knows_how_a_guest_ended(xen: Path, name: str, ended: str) -> None:
    assert ended in run(xen, name)[1]
