"""The figures of machines: counters become rates, what nobody tells is not made up, and Prometheus reads them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest

from minivmm.errors import ConfigError, HostError
from tests.toolkit.vm.conftest import MakeMachine
from toolkit.cli import ExitStatus, invoke
from toolkit.vm.directory import Machines
from toolkit.vm.exposition import CONTENT_TYPE, exposition, parsed_address, server
from toolkit.vm.figures import Reading, read_all, sample
from toolkit.vm.provider import MIB, Figures, State, Status
from toolkit.vm.waiting import wait

LINE = re.compile(r'[a-z_]+\{name="[^"]*"(,state="[a-z]+")?\} \d+(\.\d+)?(e-?\d+)?')


def reading(figures: Figures, at: float, pid: int = 1) -> Reading:
    return Reading("a", Status(State.RUNNING, pid), figures, at)


def test_a_rate_is_what_was_used_over_the_time_between() -> None:
    before = reading(Figures(cpu_time=10.0, disk_read=1000, exits=5), 100.0)
    now = reading(Figures(cpu_time=11.0, disk_read=5000, exits=5), 102.0)
    (told,) = sample([before], [now])
    assert (told.rates["cpu"], told.rates["disk_read"], told.rates["exits"]) == (0.5, 2000.0, 0.0)


def test_no_rate_is_made_up() -> None:
    unknown = sample([reading(Figures(), 0.0)], [reading(Figures(cpu_time=1.0), 1.0)])
    new = sample([], [reading(Figures(cpu_time=1.0), 1.0)])
    another_process = sample([reading(Figures(cpu_time=1.0), 0.0)], [reading(Figures(cpu_time=5.0), 1.0, pid=2)])
    went_back = sample([reading(Figures(net_sent=9), 0.0)], [reading(Figures(net_sent=3), 1.0)])
    for (told,) in (unknown, new, another_process, went_back):
        assert set(told.rates.values()) == {None}


def test_the_exposition_names_each_family_once_and_skips_what_is_unknown() -> None:
    text = exposition([reading(Figures(cpu_time=1.5, memory=MIB), 0.0), reading(Figures(memory=MIB), 0.0)])
    assert text.count("# TYPE vtk_machine_memory_bytes gauge") == 1
    assert text.count("vtk_machine_memory_bytes{") == 2
    assert 'vtk_machine_cpu_seconds_total{name="a"} 1.5\n' in text
    assert "exits" not in text
    assert all(LINE.fullmatch(line) for line in text.splitlines() if not line.startswith("#"))


@pytest.mark.parametrize("text", ["", "9177", ":9177", "host:", "host:x", "host:70000", "host:²"])
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        parsed_address(text)


def test_addresses() -> None:
    assert parsed_address("127.0.0.1:9177") == ("127.0.0.1", 9177)
    assert parsed_address("[::1]:80") == ("::1", 80)


def test_a_scrape_gets_the_figures_and_another_path_nothing(machines: Machines) -> None:
    with server(("127.0.0.1", 0), lambda: read_all(machines)) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{http.server_address[1]}"
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            assert answer.headers["Content-Type"] == CONTENT_TYPE
            assert b"vtk_machine_state" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/", timeout=10)
        with pytest.raises(HostError, match="cannot be listened on"):
            server(("127.0.0.1", http.server_address[1]), list)
        http.shutdown()


@pytest.mark.qemu
def test_a_running_machine_has_figures_and_a_stopped_one_none(make: MakeMachine) -> None:
    machine = make()
    assert machine.figures() == Figures()
    machine.start()
    wait(machine, "console:ready", 30.0)
    told = machine.figures()
    assert (told.cpu_time or 0) > 0
    assert (told.memory, told.balloon) == (32 * MIB, 32 * MIB)
    assert (told.resident or 0) > MIB
    assert (told.available, told.net_sent, told.exits) == (None, None, None)


@pytest.mark.qemu
def test_top_and_metrics_tell_of_every_machine(make: MakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    make("a", "spin").start()
    make("b")
    assert invoke(["vm", "top", "--once", "--interval", "0.2", "--json"]) == ExitStatus.OK
    told = json.loads(capsys.readouterr().out)
    assert [machine["name"] for machine in told["machines"]] == ["a", "b"]
    assert told["machines"][0]["rates"]["cpu"] > 0
    assert told["machines"][1]["rates"]["cpu"] is None
    assert invoke(["vm", "top", "--once", "--interval", "0.2"]) == ExitStatus.OK
    heading, first, second = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["NAME", "STATE", "CPU"]
    assert (first.split()[:2], second.split()[:3]) == (["a", "running"], ["b", "stopped", "-"])
    assert invoke(["metrics", "--once"]) == ExitStatus.OK
    text = capsys.readouterr().out
    assert 'vtk_machine_memory_bytes{name="a"} 33554432\n' in text
    assert 'vtk_machine_state{name="b",state="stopped"} 1\n' in text


@pytest.mark.usefixtures("machines")
def test_metrics_listens_on_the_loopback_and_ends_at_ctrl_c() -> None:
    line = [sys.executable, "-m", "toolkit.cli", "metrics", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as vtk:
        assert vtk.stderr is not None
        told = vtk.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/metrics", told)
        assert found is not None, told
        with urllib.request.urlopen(found[0], timeout=10) as answer:
            assert answer.status == 200
        vtk.send_signal(2)
        assert vtk.wait(10) == ExitStatus.INTERRUPTED
        assert "Traceback" not in vtk.stderr.read()
