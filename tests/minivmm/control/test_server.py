"""QMP on a socket, as its specification has it, for clients of every kind."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qemu.qmp import QMPClient

from minivmm.control.commands import COMMANDS
from minivmm.control.messages import MAX_TEXT
from minivmm.control.server import CONNECTIONS
from minivmm.outcome import Outcome
from tests.minivmm.control.conftest import PATIENCE, Serve, Speaker
from tests.minivmm.images import SPIN, exit_with
from tests.toolkit.guests import CODES

pytestmark = pytest.mark.kvm

NOT_FOUND = "CommandNotFound"


def refusal(answer: dict[str, Any]) -> str:
    kind: str = answer["error"]["class"]
    return kind


def test_the_client_of_qemu_drives_a_machine_through_its_life(serve: Serve) -> None:
    served = serve(SPIN, cpus=2)

    async def drive() -> list[str]:
        client = QMPClient("test")
        await client.connect(str(served.path))
        events: list[str] = []
        status: Any = await client.execute("query-status")
        assert status["running"]
        cpus: Any = await client.execute("query-cpus-fast")
        assert [cpu["cpu-index"] for cpu in cpus] == [0, 1]
        assert all(Path(f"/proc/self/task/{cpu['thread-id']}").exists() for cpu in cpus)
        with client.listener() as listener:
            await client.execute("stop")
            await client.execute("cont")
            await client.execute("quit")
            async for event in listener:
                events.append(str(event["event"]))
                if event["event"] == "SHUTDOWN":
                    assert event["data"] == {"guest": False, "reason": "host-qmp-quit"}
                    break
        await client.disconnect()
        return events

    assert asyncio.run(asyncio.wait_for(drive(), PATIENCE)) == ["STOP", "RESUME", "SHUTDOWN"]
    assert served.wait().outcome is Outcome.INTERRUPTED


def test_nothing_but_negotiation_comes_first_and_only_once(serve: Serve) -> None:
    speaker = serve(SPIN).connect()
    assert set(speaker.greeting["QMP"]) == {"version", "capabilities"}
    assert refusal(speaker.say(b'{"execute": "query-status"}')) == NOT_FOUND
    assert "error" in speaker.say(b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}')
    speaker.negotiate()
    assert refusal(speaker.say(b'{"execute": "qmp_capabilities"}')) == NOT_FOUND
    assert speaker.ask("query-status")["status"] == "running"


def test_ids_come_back_whatever_they_are(serve: Serve) -> None:
    speaker = serve(SPIN).connect().negotiate()
    assert speaker.say(b'{"execute": "query-name", "id": {"a": [1]}}') == {"return": {"name": "m"}, "id": {"a": [1]}}
    assert speaker.say(b'{"execute": "no-such", "id": null}')["id"] is None
    assert "id" not in speaker.say(b'{"execute": "no-such"}')


@pytest.mark.parametrize(
    ("arguments", "desc"),
    [
        (b"{}", "'target' is missing"),
        (b'{"target": true}', "expected: string"),
        (b'{"target": "vcpu", "x": 1}', "'x' is unexpected"),
        (b'{"target": "disk"}', "does not accept"),
        (b'{"target": "vcpu", "providers": [1]}', "expected: object"),
        (b'{"target": "vcpu", "providers": [{}]}', "'providers.provider' is missing"),
    ],
)
def test_arguments_are_checked_by_the_table(serve: Serve, arguments: bytes, desc: str) -> None:
    speaker = serve(SPIN).connect().negotiate()
    answer = speaker.say(b'{"execute": "query-stats", "arguments": ' + arguments + b"}")
    assert desc in answer["error"]["desc"]
    assert refusal(answer) == "GenericError"


def test_every_query_of_the_table_answers(serve: Serve) -> None:
    speaker = serve(SPIN).connect().negotiate()
    listed = {command["name"] for command in speaker.ask("query-commands")}
    assert listed == {"qmp_capabilities", *COMMANDS}
    for name in COMMANDS:
        if name.startswith("query-") and name != "query-balloon":
            speaker.ask(name, **({"target": "vcpu"} if name == "query-stats" else {}))


def test_the_counters_of_kvm_are_the_statistics(serve: Serve) -> None:
    served = serve(CODES["flood"])
    speaker = served.connect().negotiate()
    provider = {"provider": "kvm", "names": ["exits"]}
    [vcpu] = speaker.ask("query-stats", target="vcpu", providers=[provider])
    if not any(served.machine.vcpu_stats()):
        pytest.skip("this kernel's KVM keeps no statistics")
    assert [stat["name"] for stat in vcpu["stats"]] == ["exits"]
    assert speaker.ask("query-stats", target="vcpu", vcpus=[]) == []
    assert speaker.ask("query-stats", target="vm") == []


def test_a_guest_that_panics_is_an_event_before_the_end(serve: Serve) -> None:
    served = serve(CODES["panic"], paused=True)
    speaker = served.connect().negotiate()
    assert speaker.ask("query-status")["status"] == "prelaunch"
    assert speaker.say(b'{"execute": "cont"}')["event"] == "RESUME"
    lines = [speaker.read() for _ in range(3)]
    events = [line["event"] for line in lines if "event" in line]
    assert events == ["GUEST_PANICKED", "SHUTDOWN"]
    assert all({"seconds", "microseconds"} == line["timestamp"].keys() for line in lines if "event" in line)
    assert served.wait().outcome is Outcome.CRASHED


def test_a_power_button_that_no_guest_can_hear_is_refused(serve: Serve) -> None:
    speaker = serve(SPIN).connect().negotiate()
    answer = speaker.say(b'{"execute": "system_powerdown"}')
    assert refusal(answer) == "GenericError"
    assert "ACPI" in answer["error"]["desc"]


def test_a_machine_without_a_balloon_says_so_in_qemus_words(serve: Serve) -> None:
    speaker = serve(SPIN).connect().negotiate()
    for request in (b'{"execute": "query-balloon"}', b'{"execute": "balloon", "arguments": {"value": 1048576}}'):
        assert refusal(speaker.say(request)) == "DeviceNotActive"


def test_clients_come_one_after_another_and_all_at_once(serve: Serve) -> None:
    served = serve(SPIN)
    for _ in range(3):
        speaker = served.connect().negotiate()
        assert speaker.ask("query-status")["running"]
        speaker.close()
    silent = [Speaker(served.path) for _ in range(CONNECTIONS)]  # they never say a word
    assert served.connect().negotiate().ask("query-status")["running"]
    assert silent[0].read() == {}  # the one too many was let in, and this one had to go


def test_one_request_may_come_a_byte_at_a_time(serve: Serve) -> None:
    served = serve(SPIN)
    slow, other = served.connect(), served.connect().negotiate()
    for byte in b'{"execute": "qmp_capabilities"}':
        slow.socket.sendall(bytes([byte]))
        assert other.ask("query-status")["running"]
    assert slow.read() == {"return": {}}


def test_a_request_without_end_is_refused_and_hung_up_on(serve: Serve) -> None:
    speaker = serve(SPIN).connect()
    answer = speaker.say(b'{"execute": "' + b"x" * (2 * MAX_TEXT))
    assert "longer" in answer["error"]["desc"]
    with contextlib.suppress(ConnectionError):  # with what it had not read yet
        assert speaker.read() == {}


def test_who_does_not_read_holds_up_nobody(serve: Serve) -> None:
    served = serve(SPIN)
    deaf = served.connect()
    deaf.socket.setblocking(False)
    other = served.connect().negotiate()
    with contextlib.suppress(BlockingIOError):  # until its socket is full of requests, for the answers go nowhere
        while True:
            other.ask("query-status")
            deaf.socket.send(b"[]" * 1000)
    assert served.connect().negotiate().ask("query-status")["running"]


@given(chunks=st.lists(st.binary(max_size=300) | st.sampled_from([b"{", b"[", b'"', b"\n", b"\\"]), max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_input_takes_the_server_down(hostile_server: Path, chunks: list[bytes]) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(hostile_server))
        for chunk in chunks:
            client.sendall(chunk)
    assert Speaker(hostile_server).negotiate().ask("query-status")["running"]


@pytest.fixture
def hostile_server(serve: Serve) -> Path:
    return serve(SPIN).path


def test_clients_hear_of_the_end_before_the_socket_closes(serve: Serve) -> None:
    served = serve(exit_with(0), paused=True)
    speaker = served.connect().negotiate()
    speaker.ask("cont")
    assert speaker.read()["data"] == {"guest": True, "reason": "guest-shutdown"}
