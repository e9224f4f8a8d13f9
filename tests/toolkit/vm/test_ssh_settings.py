"""What ssh(1) and vtk tell each other: the blocks of `ssh-config`, ~/.ssh/config, ssh-agent, one host key for both."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.toolkit.vm.conftest import MakeMachine
from tests.toolkit.vm.ssh_server import OpenSsh
from toolkit.vm.errors import Unreachable
from toolkit.vm.machine import Machine
from toolkit.vm.ports import free_port
from toolkit.vm.ssh import execute
from toolkit.vm.ssh_settings import Settings, host_of, settings_of

Reached = Callable[..., Machine]
DEADLINE = 30.0  # seconds


def runs(machine: Machine, command: str = "exit 4") -> bool:
    return execute(machine, command, stdout=len, stderr=len) == 4  # type: ignore[arg-type]


def by_ssh(machine: Machine, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "config"
    file.write_text(host_of(machine).block())
    line = ["ssh", "-F", str(file), "-o", "BatchMode=yes", f"vtk-{machine.name}", "exit 4"]
    return subprocess.run(line, capture_output=True, text=True, timeout=DEADLINE, check=False)


def home() -> Path:
    directory = Path(os.environ["HOME"], ".ssh")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def new_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


def test_the_key_is_still_known_to_both_when_the_port_is_another(reached: Reached, tmp_path: Path) -> None:
    machine = reached()
    assert runs(machine)
    assert by_ssh(machine, tmp_path).returncode == 4
    moved = replace(machine.config(), ssh_port=free_port())
    machine.directory.write_config(moved)
    server = OpenSsh(tmp_path / "sshd-a", moved.ssh_port, [machine.directory / "id_ed25519.pub"])
    try:
        assert runs(machine)
        done = by_ssh(machine, tmp_path)
        assert (done.returncode, done.stderr) == (4, "")
    finally:
        server.close()


def test_a_first_contact_by_ssh_pins_the_key_for_vtk(reached: Reached, tmp_path: Path) -> None:
    machine = reached()
    assert by_ssh(machine, tmp_path).returncode == 4
    kept = machine.directory / "known_hosts"
    assert kept.read_text().startswith("vtk-a ssh-ed25519 ")
    assert runs(machine)
    kept.write_text("vtk-a ssh-ed25519 AAAA\n")
    with pytest.raises(Unreachable, match="another host key"):
        runs(machine)


def test_a_server_of_several_keys_shows_the_pinned_one(reached: Reached, tmp_path: Path) -> None:
    other = tmp_path / "rsa"
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", other], check=True)
    machine = reached("a", f"HostKey {other}")
    kind, key, *_ = other.with_suffix(".pub").read_text().split()
    (machine.directory / "known_hosts").write_text(f"vtk-a {kind} {key}\n")
    assert runs(machine)


def test_a_key_kept_under_an_address_is_found_under_the_name(reached: Reached, tmp_path: Path) -> None:
    machine = reached()
    assert runs(machine)
    kept = machine.directory / "known_hosts"
    kept.write_text(kept.read_text().replace("vtk-a", "[127.0.0.1]:1"))
    assert runs(machine)
    line = [sys.executable, "-m", "toolkit.cli", "vm", "ssh-config", "a"]
    told = subprocess.run(line, capture_output=True, text=True, timeout=DEADLINE, check=True)
    assert told.stdout == host_of(machine).block()
    assert by_ssh(machine, tmp_path).stderr == ""


def test_only_blocks_about_machines_are_read(
    make: MakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    machine = make("web")
    others = "User somebody\nHost *\n  User me\n  ProxyCommand no\nHost web\n  User admin\n  HostName real\n"
    (home() / "config").write_text(others)
    assert settings_of(machine, None) == Settings("root", [], True, "")
    (home() / "config").write_text(
        others + "Host vtk-db\n  User db\nHost vtk-w* other\n  User=w\n  IdentityFile ~/k\n  IdentitiesOnly yes\n"
        "  ProxyJump a@one,two:22\nMatch host vtk-web\n  User x\nHost *\n"
    )
    port = machine.config().ssh_port
    proxy = f"ssh -J a@one -W '[127.0.0.1]:{port}' ssh://two:22"
    assert settings_of(machine, None) == Settings("w", [tmp_path / "k"], False, proxy)
    assert settings_of(machine, "me").user == "me"


def test_a_key_of_the_configuration_opens(reached: Reached, tmp_path: Path) -> None:
    machine = reached()
    key = new_key(tmp_path / "key")
    (tmp_path / "sshd-a" / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
    with pytest.raises(Unreachable, match=f"does not let {getpass.getuser()!r} in"):
        runs(machine)
    (home() / "config").write_text(f"Host vtk-a\n  IdentityFile {key}\n")
    assert runs(machine)


def test_a_key_of_ssh_agent_opens(reached: Reached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = reached()
    key = new_key(tmp_path / "key")
    (tmp_path / "sshd-a" / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL) as agent:
        try:
            deadline = time.monotonic() + DEADLINE
            while not (tmp_path / "agent").exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            subprocess.run(["ssh-add", "-q", key], check=True)
            assert runs(machine)
        finally:
            agent.terminate()


def test_a_proxy_command_carries_the_connection(reached: Reached, tmp_path: Path) -> None:
    machine = reached()
    relay = tmp_path / "relay.py"
    relay.write_text(
        "import os, socket, sys, threading\n"
        "open(sys.argv[3], 'w').close()\n"
        "there = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def up():\n"
        "    while data := os.read(0, 65536): there.sendall(data)\n"
        "    there.shutdown(socket.SHUT_WR)\n"
        "threading.Thread(target=up, daemon=True).start()\n"
        "while data := there.recv(65536): os.write(1, data)\n"
    )
    command = f"{sys.executable} {relay} %h %p {tmp_path / 'used'}"
    (home() / "config").write_text(f"Host vtk-a\n  HostName elsewhere\n  Port 1\n  ProxyCommand {command}\n")
    assert runs(machine)
    assert (tmp_path / "used").exists()
