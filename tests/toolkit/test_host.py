"""What is said of a host: every fact stands, every shortcoming has a cause and a remedy."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from minivmm.errors import KvmDenied, KvmMissing
from toolkit import host
from toolkit.host import REQUIRABLE, Fact, Host, State, gather


@pytest.fixture(scope="module")
def this_host() -> Host:
    return gather(measure=False)


def test_everything_that_can_be_required_is_a_fact(this_host: Host) -> None:
    assert set(REQUIRABLE) <= {fact.name for fact in this_host.facts}


def test_no_fact_is_told_twice(this_host: Host) -> None:
    names = [fact.name for fact in this_host.facts]
    assert sorted(names) == sorted(set(names))


def test_every_shortcoming_has_a_cause_and_a_remedy(this_host: Host) -> None:
    assert [fact for fact in this_host.facts if fact.state is not State.OK and not (fact.cause and fact.remedy)] == []


def test_the_summary_leaves_out_what_is_missing() -> None:
    facts = (Fact("cpu", "cpu", State.OK, "a CPU"), Fact("qemu", "qemu", State.MISSING, "no"))
    assert Host(facts).summary() == {"cpu": "a CPU"}


def _without_kvm(monkeypatch: pytest.MonkeyPatch, error: Exception) -> dict[str, Fact]:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr("minivmm.kvm.system.Kvm.__init__", refuse)
    return {fact.name: fact for fact in gather(measure=True).facts}


def test_a_user_without_the_group_is_told_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    denied = KvmDenied("/dev/kvm may not be opened", cause="not in the group", remedy="sudo usermod -aG kvm $USER")
    facts = _without_kvm(monkeypatch, denied)
    assert facts["kvm"].state is State.MISSING
    assert facts["kvm"].remedy == "sudo usermod -aG kvm $USER"
    assert facts["qemu-kvm"].state is State.MISSING


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        ({"vmx"}, "sudo modprobe kvm_intel"),
        ({"svm"}, "sudo modprobe kvm_amd"),
        ({"hypervisor"}, "nested=1"),
        (set(), "BIOS"),
    ],
)
def test_a_missing_kvm_is_explained_by_the_cpu(monkeypatch: pytest.MonkeyPatch, flags: set[str], remedy: str) -> None:
    monkeypatch.setattr(host, "cpu_flags", lambda: frozenset(flags))
    assert remedy in _without_kvm(monkeypatch, KvmMissing("there is no /dev/kvm"))["kvm"].remedy


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A listening socket where DOCKER_HOST says an engine is."""
    path = tmp_path / "docker.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield listener


def _answer(listener: socket.socket, answer: bytes) -> threading.Thread:
    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_an_engine_that_answers_is_named_with_its_version(engine: socket.socket) -> None:
    thread = _answer(engine, b'HTTP/1.0 200 OK\r\n\r\n{"Version":"27.1.0","ApiVersion":"1.46"}\n')
    fact = next(iter(host._containers()))
    thread.join()
    assert fact.state is State.OK
    assert "27.1.0" in fact.value


def test_an_engine_that_answers_nonsense_is_no_engine(engine: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "CONTAINER_SOCKETS", ())
    thread = _answer(engine, b"what?")
    fact = next(iter(host._containers()))
    thread.join()
    assert fact.state is State.MISSING
    assert fact.cause


def test_gathering_leaves_nothing_open() -> None:
    gather(measure=False)
    before = set(os.listdir("/proc/self/fd"))
    gather(measure=False)
    assert set(os.listdir("/proc/self/fd")) == before
