"""The playbook makes a Debian machine of `vtk vm` a lab machine, and finds nothing to do the second time."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from toolkit.images.store import ImageStore
from toolkit.pytest_plugin.linux import LinuxMachine, LinuxMachines
from toolkit.vm.ssh_settings import host_of

CHECKOUT = Path(__file__).parents[2]
GIB = 1 << 30
LEFT_OUT = shutil.ignore_patterns(
    *(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "dist", "report", ".vagrant")
)
PLAY_TIMEOUT = 5400.0  # seconds; a machine that is emulated on a host with other work takes long to install packages
HOST_SEEN_BY_GUEST = "10.0.2.2"  # by QEMU's user network
CERTIFICATES = "/var/tmp/ca.crt"


@pytest.fixture
def lab(vtk_vm: LinuxMachines) -> LinuxMachine:
    """A Debian machine that gets its packages the way this host does."""
    if not any(image.name == "debian" for image in ImageStore().list()):
        pytest.skip("there is no image 'debian' (try: vtk image build debian)")
    vm = vtk_vm("debian", memory=3 * GIB // 2, cpus=2, disk_size=8 * GIB)
    vm.run("sudo tee /etc/apt/apt.conf.d/90host", stdin=apt_settings(), timeout=120)
    if certificates := pip_settings().get("PIP_CERT"):
        vm.run(f"sudo tee {CERTIFICATES} >/dev/null", stdin=Path(certificates).read_text(), timeout=120)
    return vm


def apt_settings() -> str:
    """This host's proxies for apt, as the guest must call them."""
    if shutil.which("apt-config") is None:
        return ""
    told = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, timeout=30, check=True).stdout
    lines = [line for line in told.splitlines() if re.match(r"Acquire::https?::Proxy ", line)]
    return "".join(f"{_from_guest(line)}\n" for line in lines)


def pip_settings() -> dict[str, str]:
    """This host's own settings of pip that reach beyond it, as environment variables."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = {}
    for name, value in re.findall(r"^(?:global|install|:env:)\.([\w-]+)='(.*)'$", told, re.MULTILINE):
        if name in ("index-url", "extra-index-url", "proxy", "trusted-host"):
            reachable = [word for word in re.split(r"\s+|\\n", value) if word and not word.startswith(("file:", "/"))]
            found[name] = _from_guest(" ".join(reachable))
        elif name in ("cert", "timeout", "default-timeout"):
            found[name] = value
    return {f"PIP_{name.replace('-', '_').upper()}": value for name, value in found.items() if value}


def _from_guest(text: str) -> str:
    return re.sub(r"\b(localhost|127\.0\.0\.1)\b", HOST_SEEN_BY_GUEST, text)


def play(vm: LinuxMachine, source: Path, variables: dict[str, Any], directory: Path) -> dict[str, int]:
    """Runs the playbook of `source` on the machine; the figures of Ansible's recap."""
    name = host_of(vm.machine).alias
    known = directory / "ssh_config"
    known.write_text(host_of(vm.machine).block())  # what `vtk vm ssh-config` prints
    host = {
        "ansible_host": name,
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_common_args": f"-F {known}",
    }
    inventory = directory / "inventory.json"
    inventory.write_text(json.dumps({"lab": {"hosts": {"vm": host}}}))
    environment = os.environ | {
        "ANSIBLE_HOME": str(directory / "home"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_TIMEOUT": "600",  # seconds for a log-in, and for sudo to answer
    }
    done = subprocess.run(
        ["ansible-playbook", "-i", str(inventory), "-e", json.dumps(variables), str(source / "ansible/site.yml")],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PLAY_TIMEOUT,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    recap = re.findall(r"(\w+)=(\d+)", done.stdout.rsplit("PLAY RECAP", 1)[1])
    return {name: int(count) for name, count in recap}


@pytest.mark.slow
@pytest.mark.qemu
@pytest.mark.skipif(shutil.which("ansible-playbook") is None, reason="no Ansible (make test-lab brings it)")
def test_the_playbook_converges_and_the_second_time_nothing_changes(lab: LinuxMachine, tmp_path: Path) -> None:
    # A copy, that nobody changes between the two runs.
    source = Path(shutil.copytree(CHECKOUT, tmp_path / "vtk", ignore=LEFT_OUT))
    settings = pip_settings()
    if "PIP_CERT" in settings:
        settings["PIP_CERT"] = CERTIFICATES
    variables: dict[str, Any] = {"checkout_environment": settings | {"PIP_NO_COMPILE": "1"}}

    first = play(lab, source, variables, tmp_path)
    assert first["failed"] == first["unreachable"] == 0
    assert first["changed"] > 0

    second = play(lab, source, variables, tmp_path)
    assert second["changed"] == second["failed"] == second["unreachable"] == 0

    assert {"kvm", "libvirt"} <= set(lab.run("id -nG", timeout=300).stdout.split())
    assert "hello" in lab.run("/srv/vtk/.venv/bin/vtk guest list", timeout=600).stdout
