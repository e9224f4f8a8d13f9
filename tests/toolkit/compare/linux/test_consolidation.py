"""Several at once: real processes, and kinds that cannot be had or that fail, each with its reason in its cells."""

from __future__ import annotations

import pytest

from minivmm.errors import HostError
from toolkit.compare.cell import Settings
from toolkit.compare.linux import runner
from toolkit.compare.linux.consolidation import TABLE, measure
from toolkit.compare.linux.containers import Containers
from toolkit.compare.linux.kinds import Kind, Processes, Running
from toolkit.compare.linux.memory import MemoryUnreadable, memory_of
from toolkit.compare.linux.results import Row
from toolkit.compare.linux.works import BY_NAME, TABLES
from toolkit.compare.results import Result, Status
from toolkit.compare.techniques import Obstacle
from toolkit.host import Fact, Host, State

SETTINGS = Settings(target=0.002, samples=3, markers=1, deadline=10.0, budget=1.0)


def measured(*kinds: Kind) -> dict[tuple[str, str], Row]:
    results: list[Result] = []
    measure(kinds, "tcg", SETTINGS, results, lambda _: None)
    return {(row.technique, row.workload): row for row in results if isinstance(row, Row)}


class Refused:
    """A kind that can be had, but does not start."""

    name = "container"

    def __init__(self, obstacle: Obstacle | None = None) -> None:
        self._obstacle = obstacle
        self.closed = 0

    def obstacle(self) -> Obstacle | None:
        return self._obstacle

    def open(self) -> Running:
        raise HostError("it does not start", cause="no room", remedy="make room")

    def close(self) -> None:
        self.closed += 1


def test_processes_are_measured_in_every_row_and_have_no_ram_of_their_own() -> None:
    rows = measured(Processes())

    assert {name for _, name in rows} == {work.name for work in TABLE.works}
    statuses = {name: row.status for (_, name), row in rows.items()}
    assert statuses.pop("guest-ram") is Status.UNSUPPORTED
    assert set(statuses.values()) == {Status.OK}
    memory = rows["process", "memory"].median
    assert memory is not None
    assert 4096 <= memory < 4 << 20


def test_what_does_not_start_fails_with_its_reason_and_the_others_go_on() -> None:
    refused = Refused()

    rows = measured(refused, Processes())

    assert rows["container", "cpu-2"].status is Status.FAILED
    assert rows["container", "cpu-2"].reason == "it does not start: no room"
    assert rows["container", "cpu-2"].remedy == "make room"
    assert rows["container", "start"].status is Status.FAILED
    assert rows["process", "cpu-4-all"].status is Status.OK
    assert refused.closed == 1


def test_without_an_engine_containers_are_unsupported_with_the_remedy_the_doctor_has() -> None:
    fact = Fact(
        "containers", "containers", State.MISSING, "no engine answers", "no socket", "sudo apt install docker.io"
    )

    rows = measured(Containers(Host((fact,))))

    assert {row.status for row in rows.values()} == {Status.UNSUPPORTED}
    assert {name for _, name in rows} == {work.name for work in TABLE.works}
    assert rows["container", "start"].reason == "no engine answers: no socket"
    assert rows["container", "start"].remedy == "sudo apt install docker.io"


def test_an_engine_that_went_away_is_a_failure_with_its_words(tmp_path: object) -> None:
    fact = Fact("containers", "containers", State.OK, f"Docker 1.0, {tmp_path}/docker.sock")

    rows = measured(Containers(Host((fact,))))

    assert rows["container", "cpu-1"].status is Status.FAILED
    assert rows["container", "cpu-1"].reason.startswith("the container engine did not answer: ")


def test_the_memory_of_a_process_that_is_gone_is_an_error_that_says_so() -> None:
    with pytest.raises(MemoryUnreadable, match="cannot be read"):
        memory_of(1 << 22)


def host(kvm: State, hardware: State) -> Host:
    return Host(
        (
            Fact("kvm", "kvm", kvm, "API 12" if kvm is State.OK else "there is no /dev/kvm", remedy="mend kvm"),
            Fact("kvm", "kvm-hw", hardware, "software (kvm_pvm)", remedy="mend the hardware"),
            Fact("containers", "containers", State.MISSING, "no engine answers"),
        )
    )


@pytest.mark.parametrize(
    ("kvm", "hardware", "reason", "remedy"),
    [
        (State.MISSING, State.MISSING, "KVM cannot be used: there is no /dev/kvm", "mend kvm"),
        (State.OK, State.WARN, "interprets guest kernels", "mend the hardware"),
    ],
)
@pytest.mark.qemu
def test_kvm_that_cannot_run_a_linux_is_unsupported_in_every_cell(
    monkeypatch: pytest.MonkeyPatch, kvm: State, hardware: State, reason: str, remedy: str
) -> None:
    monkeypatch.setattr(runner, "_measure", lambda *_: None)  # what TCG would take minutes for
    monkeypatch.setattr(runner, "prepare", lambda *_: None)
    rows: list[Result] = []

    runner.compare([table.name for table in TABLES], runner.QUICK, host(kvm, hardware), rows, lambda *_: None)

    assert len(rows) == sum(len(table.columns) * len(table.works) for table in TABLES)
    assert {(row.status, row.remedy) for row in rows} == {(Status.UNSUPPORTED, remedy)}
    assert all(reason in row.reason for row in rows)


def test_without_qemu_every_cell_is_unsupported_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    rows: list[Result] = []

    runner.compare(["disk"], runner.QUICK, host(State.OK, State.OK), rows, lambda *_: None)

    assert len(rows) == 2 * len(BY_NAME["disk"].columns) * len(BY_NAME["disk"].works)
    assert {row.remedy for row in rows} == {"sudo apt install qemu-system-x86"}
    assert {row.status for row in rows} == {Status.UNSUPPORTED}
