"""A whole Linux, from an image to its end, by the verbs of `vtk vm`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.images import tiny
from toolkit.images.store import ImageStore
from toolkit.vm.directory import Machines

pytestmark = [pytest.mark.qemu, pytest.mark.slow]


def test_a_tiny_linux_is_created_used_on_its_console_and_powers_off(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    tiny.build(ImageStore(), "tiny")

    def vtk(*arguments: str, typed: str = "") -> str:
        line = [sys.executable, "-m", "toolkit.cli", "vm", *arguments]
        done = subprocess.run(line, input=typed, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    vtk("create", "t", "--image", "tiny", "--mem", "256M", "--accel", "tcg")
    vtk("start", "t")
    vtk("wait", "t", "--for", "console:ends the machine", "--timeout", "120")
    shell = "cat /sys/class/net/eth0/address; ls /sys/bus/virtio/drivers; echo end-$((6*7))\n"
    said = vtk("console", "t", "--until", "end-42", "--timeout", "60", typed=shell)
    assert machines.get("t").config().mac in said
    vtk("console", "t", "--timeout", "60", typed="exit\n")
    assert "stopped" in vtk("list")
    vtk("delete", "t")
