"""pytest's plugin: a test gets machines, with their consoles in the report when it fails, and none is left running.

    def test_it_echoes(vtk_machine):                 def test_it_is_debian(vtk_vm):
        guest = vtk_machine("echo.elf")                  vm = vtk_vm("debian", memory=768 << 20)
        guest.send("hello\\n")                            assert "Debian" in vm.run("uname -v").stdout
        guest.expect("hello", timeout=5)

pytest loads this wherever vtk is installed: nothing else of vtk is imported before a fixture is used.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from toolkit.pytest_plugin.guest import Guests
    from toolkit.pytest_plugin.linux import LinuxMachines

SHOWN_LINES = 100  # of each console in a failure's report


class Shown(Protocol):
    """A machine, as the report of a failure sees it."""

    @property
    def title(self) -> str:
        """What it is and how it stands, in a few words."""

    @property
    def console(self) -> str:
        """What it has shown."""


MACHINES = pytest.StashKey[list[Shown]]()
"""On an item, the machines of that test alone; on the configuration, those of vtk_vm_factory."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("vtk", "virtual machines").addoption(
        "--require-kvm",
        action="store_true",
        help="let the tests that need KVM fail where it cannot be used, instead of skipping them",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The consoles of a failed test's machines become sections of its report."""
    report = yield
    if report.failed:
        shown: list[Shown] = item.stash.get(MACHINES, [])
        if MACHINES in item.config.stash and "vtk_vm_factory" in getattr(item, "fixturenames", ()):
            shown = shown + item.config.stash[MACHINES]
        for machine in shown:
            report.sections.append((f"Console of {machine.title}", last_lines(machine.console)))
    return report


def last_lines(text: str, count: int = SHOWN_LINES) -> str:
    """The end of a console as text that does nothing to a terminal: a guest may have written anything."""
    lines = [line.rstrip("\r") for line in text.rstrip().split("\n")[-count:]]
    printable = (
        "".join(letter if letter.isprintable() or letter == "\t" else "\N{REPLACEMENT CHARACTER}" for letter in line)
        for line in lines
    )
    return "\n".join(printable) or "(nothing)"


@functools.cache
def kvm_obstacle() -> str:
    """Why KVM cannot be used here, and what mends it; "" when it can."""
    from minivmm.errors import HostError
    from minivmm.kvm.system import Kvm

    try:
        Kvm().close()
    except HostError as error:
        return f"{error.message} (try: {error.remedy})" if error.remedy else error.message
    return ""


@pytest.fixture
def vtk_machine(request: pytest.FixtureRequest) -> Iterator[Guests]:
    """Call it with a kernel's file: a minivmm machine that has been started. See toolkit.pytest_plugin.guest.Guests.

    Without KVM the test is skipped, or fails with --require-kvm.
    """
    from toolkit.pytest_plugin.guest import Guests

    if not request.config.getoption("--require-kvm") and (reason := kvm_obstacle()):
        pytest.skip(reason)
    with Guests(request.node.stash.setdefault(MACHINES, [])) as guests:
        yield guests


@pytest.fixture
def vtk_vm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinuxMachines]:
    """Call it with the name of an image: a machine of `vtk vm`, started, deleted when the test has ended.

    Without QEMU the test is skipped. See toolkit.pytest_plugin.linux.LinuxMachines.
    """
    yield from _linux_machines(request.node.stash.setdefault(MACHINES, []), tmp_path_factory.mktemp("vtk"))


@pytest.fixture(scope="session")
def vtk_vm_factory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinuxMachines]:
    """As vtk_vm, for fixtures of a wider scope: each machine is a context manager, and is deleted where it ends."""
    yield from _linux_machines(request.config.stash.setdefault(MACHINES, []), tmp_path_factory.mktemp("vtk"))


def _linux_machines(shown: list[Shown], directory: Path) -> Iterator[LinuxMachines]:
    from toolkit.pytest_plugin.linux import LinuxMachines
    from toolkit.qemu.errors import QemuMissing
    from toolkit.qemu.find import find_qemu

    try:
        find_qemu("x86_64")
    except QemuMissing as error:
        pytest.skip(f"{error.message} (try: {error.remedy})")
    with LinuxMachines(directory, shown) as machines:
        yield machines
