"""The guest agent's protocol, spoken to an agent of the test's own, and to none."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.toolkit.vm.conftest import MakeMachine
from toolkit.vm import agent
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.errors import AgentSilent, Unfinished
from toolkit.vm.machine import Machine
from toolkit.vm.waiting import wait

Answer = Callable[[str, dict[str, Any]], bytes]


@contextmanager
def agent_in(directory: Path, answer: Answer) -> Iterator[MachineDirectory]:
    """A machine's directory with an agent that answers one connection."""
    machine = MachineDirectory(directory)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rwb") as lines:
            try:
                for line in lines:
                    question = json.loads(line.lstrip(b"\xff"))
                    lines.write(answer(question["execute"], question.get("arguments", {})))
                    lines.flush()
            except OSError:
                return  # the other end has left

    with machine.listen("agent.sock") as listener:
        serving = threading.Thread(target=serve)
        serving.start()
        yield machine
        serving.join(10.0)


def returned(value: Any) -> bytes:
    return json.dumps({"return": value}).encode() + b"\n"


def synchronized(answer: Answer) -> Answer:
    return lambda command, arguments: (
        b"\xff" + returned(arguments["id"]) if command == "guest-sync-delimited" else answer(command, arguments)
    )


INTERFACES = [
    {"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1"}], "statistics": {"rx-bytes": 7, "tx-bytes": 7}},
    {
        "name": "enp0s2",
        "ip-addresses": [{"ip-address": "10.0.2.15"}, {"ip-address": "fe80::1"}],
        "statistics": {"rx-bytes": 1000, "tx-bytes": 2000},
    },
    {"name": "dummy0"},
]


def test_what_the_guest_says_of_itself(tmp_path: Path) -> None:
    told = {
        "guest-get-osinfo": {"pretty-name": "Debian \x1b[31mGNU/Linux 12"},
        "guest-get-host-name": {"host-name": "d"},
        "guest-network-get-interfaces": INTERFACES,
    }
    with agent_in(tmp_path, synchronized(lambda command, _: returned(told[command]))) as machine:
        facts = agent.facts(agent.ask(machine, agent.FACTS))
    assert facts.os == "Debian [31mGNU/Linux 12"  # nothing that a terminal would obey
    assert facts.hostname == "d"
    assert facts.addresses == ("10.0.2.15", "fe80::1")
    assert (facts.received, facts.sent) == (1000, 2000)


def test_what_was_for_somebody_else_is_passed_over(tmp_path: Path) -> None:
    def answer(_command: str, arguments: dict[str, Any]) -> bytes:
        old = returned("half of an old answer") + b'{"return'
        return old + b"\xff" + returned(1) + b"\xff" + returned(arguments["id"]) if "id" in arguments else returned(5)

    with agent_in(tmp_path, answer) as machine:
        assert agent.ask(machine, [("guest-ping", {})]) == [5]


def test_a_refused_command_is_no_answer(tmp_path: Path) -> None:
    refusal = json.dumps({"error": {"class": "CommandNotFound", "desc": "disabled"}}).encode() + b"\n"
    with agent_in(tmp_path, synchronized(lambda *_: refusal)) as machine:
        assert agent.ask(machine, [("guest-get-osinfo", {}), ("guest-ping", {})]) == [None, None]


@pytest.mark.parametrize("said", [b"", b"\xffno json\n", b"x" * 4096, b"\xff[[\n"])
def test_an_agent_that_does_not_speak_as_one_is_silent(tmp_path: Path, said: bytes) -> None:
    with agent_in(tmp_path, lambda *_: said) as machine, pytest.raises(AgentSilent, match="does not answer"):
        agent.ask(machine, agent.FACTS, timeout=0.3)


@pytest.mark.parametrize("answer", [None, 5, [], "x", [5, None], [{"ip-addresses": 5, "statistics": 7}], {"x": {}}])
def test_whatever_a_guest_answers_is_taken(answer: Any) -> None:
    facts = agent.facts([answer, answer, answer])
    assert facts.addresses == ()
    assert agent.network_bytes([answer]) == (None, None)


@pytest.mark.parametrize("count", ["many", None, -5, 1.5, [1]])
def test_a_counter_that_is_none_counts_nothing(count: Any) -> None:
    assert agent.network_bytes([[{"name": "e", "statistics": {"rx-bytes": count, "tx-bytes": 3}}]]) == (0, 3)


@pytest.mark.qemu
def test_where_no_agent_is_it_is_told_at_once(make: MakeMachine) -> None:
    machine = make()
    machine.start()
    with pytest.raises(AgentSilent, match=r"(?s)no guest agent in machine 'a'.*qemu-guest-agent"):
        machine.guest_facts()
    with pytest.raises(Unfinished, match="no agent within"):
        wait(machine, "agent", 0.3)


@pytest.mark.qemu
@pytest.mark.slow
def test_a_linux_tells_its_system_and_its_address(debian: Machine) -> None:
    assert "Debian" in wait(debian, "agent", 120.0)
    facts = debian.guest_facts()
    assert facts.hostname == "d"
    assert "10.0.2.15" in facts.addresses
    figures = debian.figures()
    assert (figures.net_received or 0) > 0
    assert 0 < (figures.available or 0) < (figures.memory or 0)
