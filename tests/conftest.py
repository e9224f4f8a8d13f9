"""What the whole suite shares: tests that need KVM or QEMU are skipped where it is not there, and say why."""

from __future__ import annotations

import shutil

import pytest

from minivmm.errors import HostError


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-kvm",
        action="store_true",
        help="let the tests that need KVM fail where it cannot be used, instead of skipping them",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    lacking = {"qemu": _qemu_obstacle()}
    if not config.getoption("--require-kvm"):
        lacking["kvm"] = _kvm_obstacle()
    for item in items:
        for marker, reason in lacking.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _kvm_obstacle() -> str:
    from minivmm.kvm.system import Kvm

    try:
        Kvm().close()
    except HostError as error:
        return f"{error.message} (try: {error.remedy})" if error.remedy else error.message
    return ""


def _qemu_obstacle() -> str:
    if shutil.which("qemu-system-x86_64"):
        return ""
    return "qemu-system-x86_64 is not on PATH (try: sudo apt install qemu-system-x86)"
