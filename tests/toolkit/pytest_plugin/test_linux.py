"""vtk_vm and vtk_vm_factory: a test with a machine of `vtk vm`, and what becomes of its process."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toolkit.guests import write_guest
from toolkit.images.store import ImageStore
from toolkit.pytest_plugin.linux import CommandFailed, LinuxMachines
from toolkit.vm.errors import Unfinished

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.qemu

DEADLINE = 60.0  # seconds; what is waited for takes one
MIB = 1 << 20
MAKE = "kernel='echo.elf', memory=32 << 20, accelerator='tcg'"


@pytest.fixture
def inner(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project of its own with the echo guest in it."""
    write_guest(pytester.path, "echo")
    return pytester


def gone(pid: int) -> bool:
    """Whether the process ends before the deadline."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], DEADLINE)[0])
    finally:
        os.close(descriptor)


def test_a_test_talks_to_a_machine(vtk_vm: LinuxMachines, tmp_path: Path) -> None:
    vm = vtk_vm(kernel=write_guest(tmp_path, "echo"), memory=32 * MIB, accelerator="tcg")
    assert vm.expect("ready") == "ready"
    vm.send("hello")
    vm.expect("hello")
    assert vm.wait("running") == "running"


def test_silence_ends_the_wait_at_its_deadline(vtk_vm: LinuxMachines, tmp_path: Path) -> None:
    vm = vtk_vm(kernel=write_guest(tmp_path, "spin"), memory=32 * MIB, accelerator="tcg")
    with pytest.raises(Unfinished):
        vm.expect("never", timeout=0.3)


def test_the_report_of_a_failure_has_the_console_and_the_machine_is_gone(inner: pytest.Pytester) -> None:
    inner.makepyfile(f"""
        from pathlib import Path

        def test_fails(vtk_vm):
            vm = vtk_vm({MAKE})
            Path("pid").write_text(str(vm.machine.status().pid))
            vm.expect("ready")
            assert False
    """)
    result = inner.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Console of machine 'vm0' (running)*", "ready*"])
    assert gone(int((inner.path / "pid").read_text()))
    assert not list(inner.path.glob("**/disk.qcow2"))


def test_a_machine_for_a_module_lives_as_long_as_its_fixture(inner: pytest.Pytester) -> None:
    inner.makepyfile(f"""
        import pytest

        @pytest.fixture(scope="module")
        def vm(vtk_vm_factory):
            with vtk_vm_factory({MAKE}) as machine:
                yield machine

        def test_it_speaks(vm):
            vm.expect("ready")

        def test_it_is_the_same(vm):
            vm.send("again")
            vm.expect("again")
            assert False
    """)
    result = inner.runpytest_subprocess()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*Console of machine 'vm0' (running)*", "*again*"])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_machine_outlives_pytest_however_it_ends(inner: pytest.Pytester, how: signal.Signals) -> None:
    inner.makepyfile(f"""
        import time

        def test_hangs(vtk_vm):
            vm = vtk_vm({MAKE})
            print("process", vm.machine.status().pid, flush=True)
            time.sleep({DEADLINE})
    """)
    command = [sys.executable, "-m", "pytest", "-s", f"--basetemp={inner.path / 'tmp'}"]
    with subprocess.Popen(command, cwd=inner.path, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        words: list[str] = []
        while "process" not in words:
            words = run.stdout.readline().split()
            assert words or run.poll() is None, "the test has ended before it had a machine"
        pid = int(words[words.index("process") + 1])
        assert Path(f"/proc/{pid}").is_dir()
        run.send_signal(how)
        run.communicate(timeout=DEADLINE)
    assert gone(pid)


def test_without_qemu_a_test_is_skipped_with_the_remedy(
    inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    inner.makepyfile(f"def test_it(vtk_vm):\n    vtk_vm({MAKE})\n")
    result = inner.runpytest_subprocess("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*qemu-system-x86*"])


@pytest.mark.slow
def test_a_test_runs_commands_in_debian(vtk_vm: LinuxMachines) -> None:
    if not any(image.name == "debian" for image in ImageStore().list()):
        pytest.skip("there is no image 'debian' (try: vtk image build debian)")
    vm = vtk_vm("debian", memory=768 * MIB)
    assert "Debian" in vm.run("uname -v").stdout
    assert vm.run("cat", stdin="back").stdout == "back"
    with pytest.raises(CommandFailed, match="status 3"):
        vm.run("echo why >&2; exit 3")
    assert vm.run("exit 3", check=False).status == 3
