"""vtk_machine: a test with a guest on minivmm, run by a pytest of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

import guest_os
from minivmm import Outcome
from minivmm.errors import ImageError
from tests.toolkit.guests import write_guest
from toolkit.pytest_plugin.guest import Guests
from toolkit.vm.errors import Unfinished

pytest_plugins = ["pytester"]


@pytest.mark.kvm
def test_a_test_talks_to_a_guest(vtk_machine: Guests) -> None:
    guest = vtk_machine(guest_os.image("echo"), timeout=30)
    guest.send("first\n")
    guest.expect("first")
    guest.send(b"second\n")
    assert guest.expect(rb"sec(\w+)\r?\n")[1] == b"ond"
    guest.send("quit\n")
    assert guest.wait().outcome is Outcome.SHUTDOWN
    assert not guest.running


@pytest.mark.kvm
def test_what_was_expected_once_is_not_found_again(vtk_machine: Guests) -> None:
    guest = vtk_machine(guest_os.image("hello"))
    guest.wait()
    guest.expect("Hello")
    with pytest.raises(Unfinished):
        guest.expect("Hello")


@pytest.mark.kvm
def test_a_guest_that_ends_without_a_word_ends_the_wait_at_once(vtk_machine: Guests) -> None:
    guest = vtk_machine(guest_os.image("panic"))
    with pytest.raises(Unfinished) as raised:
        guest.expect("never", timeout=300)
    assert "has ended without 'never'" in str(raised.value)
    assert "crashed" in str(raised.value)


@pytest.mark.kvm
def test_silence_ends_the_wait_at_its_deadline(vtk_machine: Guests) -> None:
    guest = vtk_machine(guest_os.image("spin"))
    with pytest.raises(Unfinished, match=r"within 0\.2 s"):
        guest.expect("never", timeout=0.2)
    assert guest.running


@pytest.mark.kvm
def test_a_guest_that_never_ends_meets_its_deadline(vtk_machine: Guests) -> None:
    assert vtk_machine(guest_os.image("spin"), timeout=0.3).wait().outcome is Outcome.DEADLINE


@pytest.mark.kvm
def test_a_guest_that_writes_without_end_can_be_waited_for(vtk_machine: Guests, tmp_path: Path) -> None:
    guest = vtk_machine(write_guest(tmp_path, "flood"))
    guest.expect("A{100}")
    with pytest.raises(Unfinished):
        guest.expect("B", timeout=0.5)


@pytest.mark.kvm
def test_a_paravirtual_domain_is_a_machine_too(vtk_machine: Guests) -> None:
    guest = vtk_machine(guest_os.image("hello", "xen"), xen=True, memory=32 << 20)
    guest.expect("xen-pv")
    assert guest.wait().outcome is Outcome.SHUTDOWN


@pytest.mark.kvm
def test_a_file_that_is_no_kernel_is_refused_in_words(vtk_machine: Guests, tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"none")
    with pytest.raises(ImageError):
        vtk_machine(tmp_path / "kernel")


@pytest.mark.kvm
def test_the_report_of_a_failure_has_the_console(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(f"""
        def test_fails(vtk_machine):
            guest = vtk_machine({str(guest_os.image("echo"))!r})
            guest.send("a \\x1b[31mred\\x1b[0m word\\n")
            guest.expect("word")
            assert False

        def test_passes(vtk_machine):
            vtk_machine({str(guest_os.image("hello"))!r}).wait()
    """)
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*Console of guest 'echo' (running)*", "*red*word*"])
    assert "\x1b[31m" not in result.stdout.str()
    assert "Console of guest 'hello'" not in result.stdout.str()


@pytest.mark.kvm
def test_no_guest_outlives_its_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(f"""
        import threading

        BEFORE = set(threading.enumerate())

        def test_fails(vtk_machine):
            for _ in range(3):
                vtk_machine({str(guest_os.image("spin"))!r}, timeout=600)
            assert False

        def test_nothing_is_left():
            came = [thread for thread in threading.enumerate() if thread not in BEFORE]
            for thread in came:
                thread.join(10.0)  # one may be giving memory back; a guest's would go on
            assert [thread.name for thread in came if thread.is_alive()] == []
    """)
    pytester.runpytest_inprocess().assert_outcomes(failed=1, passed=1)


NO_KVM = """
    import pytest
    from minivmm.errors import KvmMissing
    from minivmm.kvm.system import Kvm

    @pytest.fixture(autouse=True)
    def no_kvm(monkeypatch):
        def missing(*_):
            raise KvmMissing("there is no /dev/kvm", remedy="modprobe kvm_amd")
        monkeypatch.setattr(Kvm, "__init__", missing)
"""
ONE_TEST = """
    import guest_os

    def test_it(vtk_machine):
        vtk_machine(guest_os.image("hello")).wait()
"""


def test_without_kvm_a_test_is_skipped_with_the_remedy(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(NO_KVM)
    pytester.makepyfile(ONE_TEST)
    result = pytester.runpytest_subprocess("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*there is no /dev/kvm (try: modprobe kvm_amd)"])


def test_with_require_kvm_it_fails(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(NO_KVM)
    pytester.makepyfile(ONE_TEST)
    result = pytester.runpytest_subprocess("--require-kvm")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*there is no /dev/kvm*"])


def test_the_plugin_loads_nothing_of_vtk_before_it_is_used(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import sys

        def test_nothing_is_loaded(pytestconfig):
            assert pytestconfig.pluginmanager.has_plugin("vtk")
            loaded = [name for name in sys.modules if name.split(".")[0] in ("minivmm", "guest_os", "toolkit")]
            assert sorted(loaded) == ["toolkit", "toolkit.pytest_plugin"]
            assert "paramiko" not in sys.modules
    """)
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
