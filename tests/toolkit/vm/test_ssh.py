"""A command in a guest: its output, its status, and only the guest that was known before."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from paramiko import ECDSAKey

from tests.toolkit.vm.conftest import MakeMachine
from tests.toolkit.vm.ssh_server import SshServer
from toolkit.vm.errors import Unfinished, Unreachable
from toolkit.vm.machine import Machine
from toolkit.vm.ssh import execute

Serve = Callable[..., SshServer]


@pytest.fixture
def machine(make: MakeMachine) -> Machine:
    return make()


@pytest.fixture
def serve(machine: Machine) -> Iterator[Serve]:
    """Starts the ssh server of the machine's guest, by default with the machine's key known to it."""
    servers: list[SshServer] = []

    def start(public_key: str = "") -> SshServer:
        known = public_key or (machine.directory / "id_ed25519.pub").read_text()
        servers.append(SshServer(machine.config().ssh_port, ECDSAKey.generate(), known))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def run(machine: Machine, command: str, **options: float | bytes) -> tuple[int, bytes, bytes]:
    stdout, stderr = bytearray(), bytearray()
    status = execute(machine, command, stdout=stdout.extend, stderr=stderr.extend, **options)  # type: ignore[arg-type]
    return status, bytes(stdout), bytes(stderr)


def test_output_and_status_come_whole(machine: Machine, serve: Serve) -> None:
    serve()
    assert run(machine, "it") == (7, b"ran it\n" + b"x" * 100_000, b"words\n")


def test_input_goes_along(machine: Machine, serve: Serve) -> None:
    serve()
    assert run(machine, "cat", stdin=b"a\0b") == (0, b"a\0b", b"")


def test_another_host_key_than_at_first_is_refused(machine: Machine, serve: Serve) -> None:
    first = serve()
    run(machine, "it")
    run(machine, "it")
    first.close()
    serve()
    with pytest.raises(Unreachable, match="another host key"):
        run(machine, "it")


def test_a_guest_that_does_not_know_the_key_is_told(machine: Machine, serve: Serve) -> None:
    serve("ssh-ed25519 AAAA other")
    with pytest.raises(Unreachable, match="does not let 'root' in"):
        run(machine, "it")


def test_a_connection_that_breaks_is_told(machine: Machine, serve: Serve) -> None:
    serve()
    with pytest.raises(Unreachable, match="is not reached by ssh"):
        run(machine, "vanish")


def test_a_command_that_hangs_meets_its_deadline(machine: Machine, serve: Serve) -> None:
    serve()
    with pytest.raises(Unfinished, match=r"has not ended within 0\.2 s"):
        run(machine, "hang", timeout=0.2)


def test_a_stopped_machine_is_not_waited_for(machine: Machine) -> None:
    with pytest.raises(Unfinished, match="is stopped: no ssh can come"):
        run(machine, "it")


def test_the_command_line_passes_arguments_and_the_status_on(machine: Machine, serve: Serve) -> None:
    serve()
    line = [sys.executable, "-m", "toolkit.cli", "vm", "exec", machine.name, "--json", "--", "echo", "a b", "$HOME"]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 7, done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == 7
    assert told["stdout"].startswith("ran echo 'a b' '$HOME'\n")
    assert told["stderr"] == "words\n"
