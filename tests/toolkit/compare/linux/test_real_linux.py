"""Whole Linux guests: what is measured is what was asked for, or nothing; and whatever dies, nothing is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from toolkit.cli import invoke
from toolkit.compare.cell import Settings
from toolkit.compare.linux import consolidation, devices
from toolkit.compare.linux.containers import Containers
from toolkit.compare.linux.devices import DeviceTables
from toolkit.compare.linux.guest import LinuxGuest, prepare
from toolkit.compare.linux.hardware import DISKS
from toolkit.compare.linux.results import Row, from_json, linux_rows
from toolkit.compare.linux.works import TABLES
from toolkit.compare.results import Result, Status, load
from toolkit.host import Fact, Host, State
from toolkit.qemu.microvm import Accelerator

pytestmark = [pytest.mark.slow, pytest.mark.qemu]

SETTINGS = Settings(target=0.02, samples=1, markers=1, deadline=60.0, budget=1.0)
LIFETIME = 1200.0
START_TIMEOUT = 300.0  # seconds for a first boot on a busy host, the image's making included


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> LinuxGuest:
    return prepare(tmp_path_factory.mktemp("guest"), lambda _: None)


def measured(
    guest: LinuxGuest, tables: tuple[str, ...], directory: Path, tell: Callable[[str], None] = lambda _: None
) -> dict[tuple[str, str], Row]:
    results: list[Result] = []
    DeviceTables(guest, Accelerator.TCG, tables, directory, SETTINGS, LIFETIME).run(results, tell)
    return {(row.technique, row.workload): row for row in results if isinstance(row, Row)}


def test_every_disk_card_and_console_is_driven_by_its_own_driver_and_measured(
    guest: LinuxGuest, tmp_path: Path
) -> None:
    rows = measured(guest, ("disk", "net", "console"), tmp_path)

    assert {(cell, row.reason) for cell, row in rows.items() if row.status is not Status.OK} == set()
    drivers = {technique: row.device["driver"] for (technique, _), row in rows.items()}
    assert drivers == {
        "ide": "ata_piix",
        "ahci": "ahci",
        "nvme": "nvme",
        "virtio-blk": "virtio_blk",
        "e1000": "e1000",
        "rtl8139": "8139cp",
        "virtio-net": "virtio_net",
        "8250": "serial",
        "virtio-console": "virtio_console",
    }


def test_a_disk_plugged_into_another_controller_has_no_figure_and_the_others_have(
    guest: LinuxGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_ide = DISKS[1]._replace(options=("ahci,id=ahci", "ide-hd,id={id},drive={back},bus=ide.1"))
    monkeypatch.setitem(devices.DEVICES, "ahci", on_ide)

    rows = measured(guest, ("disk",), tmp_path)

    assert "0 disk devices driven by ahci" in rows["ahci", "disk-read"].reason
    assert "2 disk devices driven by ata_piix" in rows["ide", "disk-read"].reason
    assert rows["ahci", "disk-read"].median is rows["ide", "disk-read"].median is None
    assert rows["nvme", "disk-read"].status is rows["virtio-blk", "disk-read"].status is Status.OK


def children(name: str) -> list[int]:
    """The processes below this one whose program is called so."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,comm="], capture_output=True, text=True, check=True).stdout
    table = [line.split(None, 2) for line in listed.splitlines()]
    below = {os.getpid()}
    for _ in range(4):
        below |= {int(pid) for pid, parent, _ in table if int(parent) in below}
    return [int(pid) for pid, _, command in table if int(pid) in below and command.startswith(name)]


def test_a_machine_that_dies_costs_one_cell_and_the_next_runs_on_a_new_one(guest: LinuxGuest, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_once(what: str) -> None:
        if what == "clock on hpet" and not killed:
            killed.extend(children("qemu-system"))
            os.kill(killed[0], signal.SIGKILL)

    rows = measured(guest, ("clock",), tmp_path, kill_once)

    assert rows["hpet", "clock"].status is Status.FAILED
    assert "the machine ended" in rows["hpet", "clock"].reason
    assert rows["tsc", "clock"].status is Status.OK
    assert children("qemu-system") == []


def test_ctrl_c_keeps_what_was_measured_and_leaves_nothing_running(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    command = [sys.executable, "-m", "toolkit.cli", "compare", "--linux", "--table", "clock", "--json", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + START_TIMEOUT
    while not children("qemu-system") and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)

    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)

    assert (process.returncode, error) == (130, "")
    assert "interrupted: not all was measured" in out.replace("\n", " ")
    assert from_json(file.read_text()).run["interrupted"] is True
    assert children("qemu-system") == []


def test_the_command_measures_consoles_and_writes_both_reports(tmp_path: Path) -> None:
    files = [tmp_path / "report.json", tmp_path / "report.html"]
    arguments = ["--linux", "--quick", "--table", "console", "--json", str(files[0]), "--html", str(files[1])]

    done = subprocess.run(
        [sys.executable, "-m", "toolkit.cli", "compare", *arguments],
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    rows = linux_rows(from_json(files[0].read_text()))
    median = {row.technique: row.median for row in rows if row.status is Status.OK}
    assert median.keys() == {"8250", "virtio-console"}
    assert median["8250"] is not None
    assert median["virtio-console"] is not None
    assert median["8250"] > 2 * median["virtio-console"]  # an exit a byte against one a line: 15 to 25 times, idle
    assert "virtio-console" in files[1].read_text()
    assert len(TABLES) == 6


PODMAN_CONF = """
[containers]
default_ulimits = []
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
"""


def daemon_of(engine: str, directory: Path) -> list[str]:
    """The command of a daemon with all its files in `directory`, and without networks."""
    socket = f"unix://{directory / 'engine.sock'}"
    if engine == "podman":
        places = ["--root", str(directory / "root"), "--runroot", str(directory / "run"), "--storage-driver", "vfs"]
        return ["podman", *places, "system", "service", "--time", "0", socket]
    off = ["--iptables=false", "--ip6tables=false", "--bridge=none", "--ip-forward=false", "--ip-masq=false"]
    places = [
        "--data-root",
        str(directory / "data"),
        "--exec-root",
        str(directory / "exec"),
        "-p",
        str(directory / "pid"),
    ]
    return ["dockerd", *off, *places, "-H", socket]


@pytest.fixture(params=["dockerd", "podman"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """A container engine of our own: the path of its socket."""
    with tempfile.TemporaryDirectory(prefix="vtk-engine-", ignore_cleanup_errors=True) as directory:  # short
        yield from run_engine(request, Path(directory))


def run_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if os.geteuid() != 0 or shutil.which(request.param) is None:
        pytest.skip(f"{request.param} must be installed, and needs root here")
    path = tmp_path / "engine.sock"
    (tmp_path / "containers.conf").write_text(PODMAN_CONF)
    environment = {**os.environ, "CONTAINERS_CONF": str(tmp_path / "containers.conf")}
    with (tmp_path / "log").open("wb") as log:
        daemon = subprocess.Popen(
            daemon_of(request.param, tmp_path), stdout=log, stderr=log, start_new_session=True, env=environment
        )
    try:
        deadline = time.monotonic() + 60
        while not path.exists() and time.monotonic() < deadline and daemon.poll() is None:
            time.sleep(0.05)
        yield str(path)
    finally:
        daemon.terminate()
        daemon.wait(30)


def test_containers_do_the_same_work_and_leave_neither_container_nor_image(engine: str) -> None:
    import docker

    results: list[Result] = []
    fact = Fact("containers", "containers", State.OK, f"an engine, {engine}")

    consolidation.measure([Containers(Host((fact,)))], "tcg", SETTINGS, results, lambda _: None)

    failed = [(result.workload, result.reason) for result in results if result.status is Status.FAILED]
    assert failed == []
    client = docker.DockerClient(base_url=f"unix://{engine}")
    try:
        assert client.containers.list(all=True) == []
        assert client.images.list() == []
    finally:
        client.close()


def test_a_container_is_a_technique_that_does_the_work_of_native(
    engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import docker

    output = tmp_path / "r.json"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{engine}")
    workloads = ("cpu", "divzero", "ctxswitch", "irq", "blk-rand", "console")
    chosen = [part for name in workloads for part in ("--workload", name)]
    techniques = ("--technique", "native", "--technique", "container")

    assert invoke(["compare", "--quick", *techniques, *chosen, "--json", str(output)]) == 0

    report = load(output)
    assert [(result.status, result.reason) for result in report.results] == [(Status.OK, "")] * 2 * len(workloads)
    for name in workloads:
        assert len({result.checksum for result in report.results if result.workload == name}) == 1
    client = docker.DockerClient(base_url=f"unix://{engine}")
    try:
        assert client.containers.list(all=True) == []
        assert client.images.list() == []
    finally:
        client.close()
