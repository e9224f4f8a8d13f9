"""The real techniques on the real bench program: they start, agree on every checksum, and leave nothing behind."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest

import guest_os
from minivmm.kvm.closing import wait_until_closed
from minivmm.kvm.system import Kvm
from toolkit.cli import invoke
from toolkit.compare import protocol, techniques
from toolkit.compare.results import TOTAL, Status, load
from toolkit.compare.techniques import TECHNIQUES, Bench
from toolkit.compare.workloads import WORKLOADS

KVM = pytest.mark.kvm
QEMU = pytest.mark.qemu
SOURCES = Path(guest_os.__file__).parent / "workloads"


@pytest.mark.parametrize(
    "names",
    [
        ["native"],
        pytest.param(["native", "hvm"], marks=KVM),
        pytest.param(["native", "qemu-tcg"], marks=QEMU),
        pytest.param(["hvm", "qemu-kvm"], marks=[KVM, QEMU]),
    ],
    ids="+".join,
)
def test_a_quick_comparison_agrees_on_every_checksum(names: list[str], tmp_path: Path) -> None:
    wait_until_closed()
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    chosen = [part for name in names for part in ("--technique", name)]
    output = tmp_path / "r.json"

    status = invoke(
        ["compare", "--quick", *chosen, "--workload", "cpu", "--workload", "blk-rand", "--json", str(output)]
    )

    report = load(output)
    assert [(result.reason, result.status) for result in report.results] == [("", Status.OK)] * 2 * len(names)
    assert status == 0
    for workload in ("cpu", "blk-rand"):
        assert len({result.checksum for result in report.results if result.workload == workload}) == 1
    wait_until_closed()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) <= descriptors


@pytest.mark.kvm
def test_a_port_read_under_kvm_is_one_exit(tmp_path: Path) -> None:
    output = tmp_path / "r.json"

    assert invoke(["compare", "--quick", "--technique", "hvm", "--workload", "portin", "--json", str(output)]) == 0

    (result,) = load(output).results
    assert result.exits[TOTAL] == pytest.approx(1, abs=0.2)
    assert result.exits["user_io"] == pytest.approx(1, abs=0.2)


@KVM
def test_a_domain_does_the_same_work_and_has_no_disk_to_do_it_with(tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    names = ("native", "paravirt")
    chosen = [part for name in names for part in ("--technique", name)]

    assert invoke(["compare", "--quick", "--samples", "1", *chosen, "--json", str(output)]) == 0

    report = load(output)
    for workload in WORKLOADS:
        native, domain = (report.find(name, workload.name) for name in names)
        assert native is not None
        assert domain is not None
        if workload.name in ("portin", "mmio", "blk-seq", "blk-rand"):
            assert domain.status is Status.UNSUPPORTED
            assert domain.reason.startswith("a paravirtual domain has no ")
        else:
            assert domain.status is Status.OK, f"{workload.name}: {domain.reason}"
            assert native.checksum in (None, domain.checksum)  # a process has no control registers


@KVM
def test_hypercalls_are_counted_by_name_and_a_batch_is_one(tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    workloads = ("--workload", "ptemod", "--workload", "ptebatch")

    assert invoke(["compare", "--quick", "--technique", "paravirt", *workloads, "--json", str(output)]) == 0

    single, batched = load(output).results
    assert single.exits["hypercall_update_va_mapping"] == pytest.approx(1, abs=0.1)
    assert batched.exits["hypercall_multicall"] == pytest.approx(1 / 64, rel=0.1)
    assert batched.median is not None
    assert single.median is not None
    assert single.median > 2 * batched.median


@pytest.mark.parametrize(
    "name",
    ["native", *(pytest.param(name, marks=KVM) for name in ("hvm", "paravirt")), pytest.param("qemu-tcg", marks=QEMU)],
)
def test_every_workload_of_the_table_is_one_of_the_bench_program(name: str, tmp_path: Path) -> None:
    guest_os.write_disk(tmp_path / "disk", 1 << 20)
    session = techniques.BY_NAME[name].open(Bench(tmp_path / "disk", 64 << 20, 60.0))
    try:
        ready = protocol.read_ready(session, 60.0)
    finally:
        session.close()

    assert sorted(ready) == sorted(workload.name for workload in WORKLOADS)


def test_names_in_the_literature_are_those_of_the_sources() -> None:
    text = "".join(source.read_text() for source in SOURCES.glob("*.c"))
    found = re.findall(r'\.name = "([a-z-]+)",\s*\.nanobenchmark = "([a-z0-9]+)"', text)

    assert sorted(found) == sorted((w.name, w.nanobenchmark) for w in WORKLOADS if w.nanobenchmark)


@pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda technique: technique.name)
def test_what_stands_in_the_way_has_a_mend(
    technique: techniques.Technique, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def cannot_build(*_: object) -> Path:
        raise guest_os.BuildError("no compiler", cause="ziglang is not installed", remedy="pip install 'vtk[guests]'")

    def no_kvm() -> None:
        Kvm(str(tmp_path / "kvm"))

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(techniques, "_open_kvm", no_kvm)
    monkeypatch.setattr(guest_os, "native", cannot_build, raising=False)
    monkeypatch.setattr(guest_os, "image", cannot_build, raising=False)

    obstacle = technique.obstacle()

    assert obstacle is not None
    assert obstacle.reason
    assert obstacle.remedy
    expected = {
        "native": "no compiler",
        "hvm": "kvm",
        "paravirt": "kvm",
        "qemu-kvm": "qemu-system-x86_64",
        "qemu-tcg": "qemu-system-x86_64",
    }
    assert expected[technique.name] in obstacle.reason
