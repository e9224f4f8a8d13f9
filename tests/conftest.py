"""What the whole suite shares: tests that need KVM or QEMU are skipped where it is not there, and say why."""

from __future__ import annotations

import os
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolkit.pytest_plugin import kvm_obstacle  # whose option --require-kvm is, too

NOBODY = 65534


def pytest_configure() -> None:
    """What an unattended run inherits as ignored (SIGHUP under nohup, SIGINT in a background job) works again: tests
    send these signals, to this process and to those it starts, which inherit what is ignored."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    lacking = {"qemu": _qemu_obstacle()}
    if not config.getoption("--require-kvm"):
        lacking["kvm"] = kvm_obstacle()
    for item in items:
        for marker, reason in lacking.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _qemu_obstacle() -> str:
    if shutil.which("qemu-system-x86_64"):
        return ""
    return "qemu-system-x86_64 is not on PATH (try: sudo apt install qemu-system-x86)"


@pytest.fixture
def ordinary_user(tmp_path: Path) -> Iterator[None]:
    """The test's own thread is no root while it runs: permissions are what they say."""
    if os.geteuid() != 0:
        yield
        return
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:  # pytest's own are closed to others
            folder.chmod(0o755)
    os.chown(tmp_path, NOBODY, NOBODY)
    for path in tmp_path.iterdir():
        os.chown(path, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
