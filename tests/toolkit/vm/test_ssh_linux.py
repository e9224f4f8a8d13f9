"""A whole Debian by ssh: the keys of its seed, a shell, files, and what ssh(1) makes of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from minivmm.errors import VtkError
from tests.toolkit.vm.ssh_server import OpenSsh
from toolkit.images.store import ImageStore
from toolkit.vm.directory import Machines

pytestmark = [pytest.mark.qemu, pytest.mark.slow]


def test_a_debian_is_reached_by_vtk_and_by_ssh(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        ImageStore(machines=machines.root).get("debian")
    except VtkError:
        pytest.skip("no image debian: vtk image build debian")
    monkeypatch.setenv("HOME", str(tmp_path))

    def vtk(*words: str, typed: bytes = b"") -> bytes:
        line = [sys.executable, "-m", "toolkit.cli", "vm", *words]
        done = subprocess.run(line, input=typed, capture_output=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    vtk("create", "d", "--image", "debian", "--mem", "512M", "--accel", "tcg")
    pinned = (machines.get("d") / "known_hosts").read_text()
    vtk("start", "d")
    assert vtk("exec", "--wait", "600", "d", "--", "echo", "a  b") == b"a  b\n"
    assert (machines.get("d") / "known_hosts").read_text() == pinned
    data = bytes(range(256)) * 4096
    assert vtk("exec", "d", "--", "cat", typed=data) == data
    (tmp_path / "tree" / "ü b").mkdir(parents=True)
    (tmp_path / "tree" / "ü b" / "file").write_bytes(data)
    vtk("cp", "-rp", str(tmp_path / "tree"), "d:")
    vtk("cp", "-rp", "d:tree", str(tmp_path / "back"))
    assert (tmp_path / "back" / "ü b" / "file").read_bytes() == data
    if not OpenSsh.missing():
        (tmp_path / "config").write_bytes(vtk("ssh-config", "d"))
        line = ["ssh", "-F", str(tmp_path / "config"), "-o", "BatchMode=yes", "vtk-d", "cat tree/*/file"]
        done = subprocess.run(line, capture_output=True, timeout=300, check=False)
        assert (done.stderr, done.stdout) == (b"", data)
    vtk("exec", "d", "--", "sudo", "poweroff")
    vtk("wait", "d", "--for", "stopped", "--timeout", "120")
